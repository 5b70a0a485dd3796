"""Golden samples and references as files, verified.json, identities, and the check of an engine's target."""

import dataclasses
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_samples import INPUT, OUTPUT, checkpoint_of, entry_of, golden_of

from accel.engines import Bundle, Golden, Reference, compat, verified
from accel.engines.identity import variant_identity
from accel.errors import CorruptArtifact, IncompatibleArtifact, MissingExtra, UsageError
from accel.types import EngineSource, Variant


def test_golden_samples_survive_the_file(tmp_path: Path) -> None:
    golden = golden_of()
    golden.write(tmp_path / "golden.npz")
    found = Golden.read(tmp_path / "golden.npz")
    assert found.sha256 == golden.sha256
    assert len(found) == 4
    assert found.images is not None
    np.testing.assert_array_equal(found.images, golden.images)
    without = dataclasses.replace(golden, images=None)
    without.write(tmp_path / "golden.npz")
    assert Golden.read(tmp_path / "golden.npz").images is None


def _pickled() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **{"input.x": np.array([{}], dtype=object)})
    return stream.getvalue()


def _zip_of(name: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, data)
    return stream.getvalue()


def _npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04junk", _pickled(), _zip_of("input.x", b"text"), _zip_of("a.npy", b"\x93NUMPY"), _npy()])
def test_what_is_no_golden_file_is_corrupt(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "golden.npz").write_bytes(data)
    for kind in (Golden, Reference):
        with pytest.raises(CorruptArtifact):
            kind.read(tmp_path / "golden.npz")


def test_a_truncated_golden_file_is_corrupt(tmp_path: Path) -> None:
    golden_of().write(tmp_path / "golden.npz")
    data = (tmp_path / "golden.npz").read_bytes()
    for size in range(0, len(data), 97):
        (tmp_path / "golden.npz").write_bytes(data[:size])
        with pytest.raises(CorruptArtifact):
            Golden.read(tmp_path / "golden.npz")


def test_results_are_kept_by_identity(bundle: Bundle) -> None:
    assert verified.read(bundle.path) == {}
    verified.record(bundle.path, "a", {"top1": 95.1})
    verified.record(bundle.path, "b", {"top1": 92.0})
    verified.record(bundle.path, "a", {"top1": 95.2})
    assert verified.read(bundle.path) == {"a": {"top1": 95.2}, "b": {"top1": 92.0}}


@pytest.mark.parametrize("text", ["", "{}", '{"schema_version": 2, "results": {}}', '{"schema_version": 1, "results": {"a": 3}}'])
def test_a_damaged_record_of_results_says_what_to_do(bundle: Bundle, text: str) -> None:
    (bundle.path / "verified.json").write_text(text)
    with pytest.raises(CorruptArtifact, match=r"delete .*verified\.json and run accel verify again"):
        verified.read(bundle.path)


def source(bundle: Bundle, **fields: Any) -> EngineSource:
    values = {"variant": Variant.parse("ort:fp32"), "device": "cpu", "inputs": (INPUT,), "outputs": (OUTPUT,), "entry": bundle.entries[0]}
    return EngineSource(**{**values, **fields})


def test_an_identity_changes_with_all_that_changes_the_answer(bundle: Bundle, tmp_path: Path) -> None:
    plain = source(bundle)
    other = dataclasses.replace(bundle.entries[0], files={"onnx-fp32/model.onnx": "1" * 64})
    retrained = checkpoint_of(tmp_path / "other", seed=1)
    eager = source(bundle, variant=Variant.parse("eager:fp32"), entry=None)
    asked = [
        (plain, None, "1.31.1", "cpu"),
        (source(bundle, entry=other), None, "1.31.1", "cpu"),
        (source(bundle, batch=8), None, "1.31.1", "cpu"),
        (source(bundle, variant=Variant.parse("ort:tf32")), None, "1.31.1", "cpu"),
        (source(bundle, variant=Variant.parse("ort:fp32+nhwc")), None, "1.31.1", "cpu"),
        (plain, None, "1.32.0", "cpu"),
        (plain, None, "1.31.1", "NVIDIA H200"),
        (eager, bundle.checkpoint, "2.15.0", "cpu"),
        (eager, retrained, "2.15.0", "cpu"),
        (eager, dataclasses.replace(retrained, factory_args={"num_classes": 5}), "2.15.0", "cpu"),
        (eager, dataclasses.replace(retrained, factory="engine_samples:build_number"), "2.15.0", "cpu"),
    ]
    identities = [variant_identity(*item) for item in asked]
    assert len(set(identities)) == len(asked)
    assert all(len(identity) == 64 for identity in identities)
    assert variant_identity(source(bundle, threads=2), None, "1.31.1", "cpu") == identities[0]
    with pytest.raises(UsageError, match="neither an engine file nor a checkpoint"):
        variant_identity(eager, None, "2.15.0", "cpu")


@pytest.mark.parametrize(
    ("made", "installed", "fits"), [("2.15.0", "2.15.1+cu132", True), ("2.11.0", "2.15.0", True), ("2.15.0", "2.11.0", False)]
)
def test_torchscript_needs_a_torch_that_is_not_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str, installed: str, fits: bool
) -> None:
    monkeypatch.setattr(compat, "version_of", lambda name: installed)
    entry = entry_of(tmp_path / "x", name="torchscript-fp16", target={"torch": made})
    if fits:
        compat.check(entry, "cpu")
    else:
        with pytest.raises(IncompatibleArtifact, match=r"made with torch 2\.15\.0; .* torch 2\.11\.0, .*\n.*torch>=2\.15.*--fp16"):
            compat.check(entry, "cpu")


def test_other_targets_are_judged_before_a_runtime_sees_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "version_of", lambda name: None)
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    entry = entry_of(tmp_path / "x")
    compat.check(entry, "cpu")
    compat.check(dataclasses.replace(entry, target={"isa": "x86_64", "device": "cuda"}), "cuda:0")
    refusals = {
        "isa": ("aarch64", "made for aarch64"),
        "device": ("cpu", "made for cpu; it was to run on cuda:0"),
        "new": (1, "judge"),
    }
    for key, (value, said) in refusals.items():
        with pytest.raises(IncompatibleArtifact, match=said):
            compat.check(dataclasses.replace(entry, target={key: value}), "cuda:0")
    with pytest.raises(MissingExtra, match="torch is not installed"):
        compat.check(dataclasses.replace(entry, target={"torch": "2.15.0"}), "cpu")
