"""A dataset of another number of classes, from its archive to a checkpoint."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from datasets_world import PER_BATCH

from accel import datasets, trainers
from accel.checkpoint import read_checkpoint
from accel.engines.module import build_module


@pytest.mark.parametrize("model", sorted(trainers.MODELS))
def test_cifar100_trains_with_its_100_classes(world, tmp_path, model):
    datasets.fetch("cifar100", from_path=world.archive("cifar100"))
    changes = {"dataset": "cifar100", "epochs": 1, "batch_size": PER_BATCH, "amp": "off"}
    trained = trainers.train(model, overrides=changes, out=tmp_path / "run", device="cpu")
    checkpoint = read_checkpoint(tmp_path / "run")
    assert (checkpoint.num_classes, checkpoint.dataset, checkpoint.output.shape) == (100, "cifar100", ("batch", 100))
    assert checkpoint.labels == datasets.load("cifar100", "test").classes
    assert len(checkpoint.labels) == 100
    assert build_module(trained).state_dict().keys() == build_module(checkpoint).state_dict().keys()
    assert [layer.out_features for layer in build_module(checkpoint).modules() if hasattr(layer, "out_features")][-1] == 100
