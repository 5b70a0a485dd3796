"""A checkpoint comes back as it was written, and an edited one is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from accel import trainers
from accel.bench.results import read_rows
from accel.checkpoint import exported_sha256, read_checkpoint, write_checkpoint
from accel.errors import CorruptArtifact
from accel.types import Checkpoint, TensorSpec


@pytest.fixture
def written(tmp_path: Path) -> Checkpoint:
    draft = Checkpoint(
        path=tmp_path / "net",
        sha256="",
        name="net",
        factory="nets:build",
        num_classes=3,
        input=TensorSpec("input", ("batch", 3, 8, 8), layout="NCHW"),
        output=TensorSpec("logits", ("batch", 3), layout="NC"),
        labels=("a", "b", "c"),
        top1=91.25,
        recipe={"epochs": 2},
    )
    return write_checkpoint(draft, {"weight": np.ones((3, 3), np.float16)})


def test_a_checkpoint_comes_back_as_it_was_written(written: Checkpoint) -> None:
    assert read_checkpoint(written.path) == written
    assert len(written.sha256) == 64


def test_edited_weights_are_corrupt_and_both_hashes_are_named(written: Checkpoint) -> None:
    written.weights.write_bytes(written.weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptArtifact, match=written.sha256) as caught:
        read_checkpoint(written.path)
    assert caught.value.exit_code == 5


def test_missing_weights_are_corrupt(written: Checkpoint) -> None:
    written.weights.unlink()
    with pytest.raises(CorruptArtifact, match="is missing"):
        read_checkpoint(written.path)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"name": "net"}'])
def test_a_broken_description_is_corrupt(written: Checkpoint, text: str) -> None:
    (written.path / "checkpoint.json").write_text(text)
    with pytest.raises(CorruptArtifact, match=r"checkpoint\.json cannot be read"):
        read_checkpoint(written.path)


def test_every_field_but_the_path_is_stored(written: Checkpoint) -> None:
    stored = json.loads((written.path / "checkpoint.json").read_text())
    assert set(stored) == {field.name for field in dataclasses.fields(Checkpoint)} - {"path"}


def test_the_hash_of_exported_weights_is_the_one_that_committed_rows_have() -> None:
    root = Path(__file__).resolve().parents[1]
    row = read_rows(root / "results/h200/resnet18-cuda0-20261122T183505Z")[0]
    stored = load_file(trainers.shipped("resnet18") / "weights.safetensors")
    assert stored["conv1.weight"].dtype == np.float16
    assert exported_sha256(stored) == row["weights_sha256"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("factory", 5), ("num_classes", "10"), ("preprocess", []), ("top1", "high"), ("labels", 3), ("input", "x"), ("seed", None)],
)
def test_a_value_of_a_wrong_kind_is_corrupt(written: Checkpoint, key: str, value: object) -> None:
    file = written.path / "checkpoint.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(CorruptArtifact, match=r"checkpoint\.json cannot be read"):
        read_checkpoint(written.path)
