import dataclasses
import errno
from pathlib import Path

import numpy as np
import pytest
from engine_samples import checkpoint_of, entry_of, golden_of

from accel import engines
from accel.engines import Bundle, Reference, tuned, verified
from accel.errors import BundleMissing, CorruptArtifact, UsageError
from accel.types import TensorSpec


def test_a_bundle_holds_the_checkpoint_upcast_to_fp32_and_the_golden_samples(empty: Bundle, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    shipped = load_file(tmp_path / "trained/weights.safetensors")
    stored = load_file(empty.path / "checkpoint/weights.safetensors")
    assert stored["0.weight"].dtype == np.float32
    assert stored["1.num_batches_tracked"].dtype == np.int64
    np.testing.assert_array_equal(stored["0.weight"], shipped["0.weight"].astype(np.float32))
    assert empty.checkpoint.factory == "engine_samples:build"
    assert empty.golden().sha256 == golden_of().sha256 == empty.manifest.golden_sha256
    assert (empty.name, empty.labels, empty.inputs[0].shape) == ("tiny", ("a", "b", "c", "d"), ("batch", 3, 8, 8))
    assert {path.name for path in empty.path.iterdir()} == {"accel.json", "checkpoint", "golden.npz"}


def test_creating_it_again_for_the_same_model_keeps_it(bundle: Bundle, tmp_path: Path) -> None:
    again = engines.create(bundle.path, checkpoint_of(tmp_path / "trained"), golden_of(seed=9))
    assert again.manifest == bundle.manifest
    assert engines.holds(again, again.checkpoint)


def test_another_model_is_refused_unless_replacing(bundle: Bundle, tmp_path: Path) -> None:
    other = checkpoint_of(tmp_path / "other", seed=1)
    with pytest.raises(UsageError, match="holds another model"):
        engines.create(bundle.path, other, golden_of())
    assert Bundle.open(bundle.path) == bundle
    assert engines.create(bundle.path, other, golden_of(), replace=True).entries == ()
    assert not list(tmp_path.glob(".*.old"))


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").write_bytes(b"cat")
    for replace in (False, True):
        with pytest.raises(UsageError, match="exists and is no bundle"):
            engines.create(tmp_path / "photos", checkpoint_of(tmp_path / "trained"), golden_of(), replace=replace)
    assert (tmp_path / "photos/cat.png").read_bytes() == b"cat"


def test_what_is_not_there_names_the_command(empty: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleMissing, match=r"found nothing\n.*accel export none --to onnx"):
        Bundle.open(tmp_path / "none.accel")
    with pytest.raises(BundleMissing, match=r"no engines\n.*accel export tiny --to onnx --fp16 --batch 8"):
        empty.entry("onnx", "fp16", 8)


def test_an_engine_of_the_exact_batch_wins_over_a_dynamic_one(bundle: Bundle, tmp_path: Path) -> None:
    for batch in ("batch", 8):
        spec = (TensorSpec("input", (batch, 3, 8, 8)),)
        name = engines.entry_name("onnx", "fp32", "dynamic" if batch == "batch" else batch)
        bundle = engines.add(bundle.path, entry_of(tmp_path / name, name=name, inputs=spec), tmp_path / name)
    assert [bundle.entry("onnx", "fp32", batch).name for batch in (1, 8, 3)] == ["onnx-fp32", "onnx-fp32-b8", "onnx-fp32-dynamic"]


def test_the_file_is_given_after_its_hash_was_checked(bundle: Bundle) -> None:
    file = bundle.file(bundle.entry("onnx", "fp32"))
    assert file == bundle.path / "onnx-fp32/model.onnx"
    file.write_bytes(b"ol")
    with pytest.raises(CorruptArtifact, match=r"model\.onnx \(2 bytes\) has SHA-256 .*; accel\.json says "):
        bundle.file(bundle.entries[0])
    file.unlink()
    with pytest.raises(CorruptArtifact, match=r"is missing; accel\.json names it"):
        bundle.file(bundle.entries[0])


def test_a_link_out_of_the_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    file = bundle.path / "onnx-fp32/model.onnx"
    file.unlink()
    file.symlink_to(tmp_path / "old/model.onnx")
    with pytest.raises(CorruptArtifact, match="a link that leaves the bundle"):
        bundle.file(bundle.entries[0])


@pytest.mark.parametrize("name", ["accel.json", "golden.npz", "reference.npz", "verified.json", "tuned.json", "onnx-fp32", "checkpoint"])
def test_nothing_of_a_bundle_may_be_a_link_out(bundle: Bundle, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    if (bundle.path / name).exists():
        (bundle.path / name).rename(outside)
    else:
        outside.write_text("{}")
    (bundle.path / name).symlink_to(outside)

    def read_all() -> None:
        opened = Bundle.open(bundle.path)
        opened.golden()
        opened.reference()
        verified.read(bundle.path)
        tuned.read(bundle.path)
        _ = opened.checkpoint, opened.file(opened.entries[0])

    with pytest.raises(CorruptArtifact, match=rf"{name}.* is a link that leaves the bundle"):
        read_all()


def test_a_bundle_may_itself_be_reached_through_a_link(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle.path)
    assert Bundle.open(tmp_path / "current").file(bundle.entries[0]).read_bytes() == b"old"
    replaced = engines.create(tmp_path / "current", checkpoint_of(tmp_path / "other", seed=1), golden_of(), replace=True)
    assert (tmp_path / "current").is_symlink()
    assert Bundle.open(bundle.path).manifest == replaced.manifest


@pytest.mark.parametrize("name", ["weights.safetensors", "checkpoint.json"])
def test_an_edited_checkpoint_is_corrupt(empty: Bundle, name: str) -> None:
    with open(empty.path / "checkpoint" / name, "ab") as stream:
        stream.write(b" ")
    with pytest.raises(CorruptArtifact, match=name):
        _ = Bundle.open(empty.path).checkpoint


def test_other_golden_samples_are_corrupt(empty: Bundle) -> None:
    golden_of(seed=1).write(empty.path / "golden.npz")
    with pytest.raises(CorruptArtifact, match="holds samples of SHA-256"):
        empty.golden()


def test_a_reference_belongs_to_one_checkpoint(empty: Bundle) -> None:
    assert empty.reference() is None
    reference = Reference(np.zeros((5, 4), np.float32), empty.checkpoint.sha256, "d" * 64)
    engines.write_reference(empty.path, reference)
    found = empty.reference()
    assert found is not None
    assert found.dataset_sha256 == "d" * 64
    assert found.logits.shape == (5, 4)
    engines.write_reference(empty.path, dataclasses.replace(reference, checkpoint_sha256="0" * 64))
    with pytest.raises(CorruptArtifact, match="accel verify again"):
        empty.reference()


def test_a_bundle_with_leftovers_opens_on_a_read_only_disk(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    (bundle.path / ".onnx-fp32.old").mkdir()
    monkeypatch.setattr("accel.engines.commit.held", refuse)
    assert Bundle.open(bundle.path) == bundle
