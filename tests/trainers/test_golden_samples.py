from __future__ import annotations

import numpy as np
import pytest
from trainable_net import pictures

from accel.errors import CorruptArtifact, DatasetMissing
from accel.trainers import golden, golden_images, write_golden_samples


def test_golden_samples_are_64_images_spread_over_the_classes_and_always_the_same(tmp_path):
    dataset = pictures(500, "train")
    write_golden_samples(dataset, tmp_path / "one.npz")
    write_golden_samples(dataset, tmp_path / "two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "one.npz") as file:
        assert file["images"].shape == (64, 32, 32, 3)
        assert file["images"].dtype == np.uint8
        assert sorted(np.bincount(file["labels"])) == [6] * 6 + [7] * 4
        assert np.array_equal(dataset.images[file["indices"]], file["images"])
        assert np.array_equal(dataset.labels[file["indices"]], file["labels"])
        assert len(set(file["indices"].tolist())) == 64


def test_golden_images_of_an_unknown_dataset_are_missing():
    with pytest.raises(DatasetMissing, match="mnist"):
        golden_images("mnist")


def test_a_damaged_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(golden, "__file__", str(tmp_path / "golden.py"))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "golden-cifar10.npz").write_bytes(b"PK\x03\x04 not whole")
    with pytest.raises(CorruptArtifact, match="golden-cifar10"):
        golden_images("cifar10")
