"""Export: written, held against the golden samples, and only then part of the bundle."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nets
import pytest

from accel import exporters
from accel.api import evaluate, export, origins, verify
from accel.api.export_job import ExportJob
from accel.engines import Bundle, trust
from accel.errors import CorruptArtifact, MissingExtra, ParityError, UnknownName, UntrustedArtifact, UsageError
from accel.verify import parity

pytest.importorskip("torch")
pytest.importorskip("onnx")


@pytest.fixture
def options(tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    return {"weights": tiny_weights, "input": "1x3x8x8", "name": "tiny", "device": "cpu"}


def test_every_format_and_precision_passed_parity_at_opset_17(tiny: Path) -> None:
    bundle = Bundle.open(tiny)
    assert {entry.name for entry in bundle.entries} == {"onnx-fp32", "onnx-fp16", "torchscript-fp32", "torchscript-fp16"}
    assert {entry.parity["status"] for entry in bundle.entries} == {"passed"}
    assert bundle.entry("onnx", "fp16").opset == 17
    assert bundle.entry("onnx", "fp16").inputs[0].dtype == "float16"


def test_an_exported_bundle_is_trusted_and_carries_its_settings(tiny: Path) -> None:
    assert trust.is_trusted(Bundle.open(tiny))
    assert json.loads((tiny / "settings.json").read_text())["device"] == {"value": "cpu", "source": "flag"}


def test_the_same_export_again_keeps_what_is_there(tiny: Path, options: dict[str, Any]) -> None:
    before = (tiny / "accel.json").read_bytes()
    (done,) = export("nets:build", "onnx", **options)
    assert done.status == "kept"
    assert (tiny / "accel.json").read_bytes() == before


def test_another_opset_is_another_engine(tiny: Path, options: dict[str, Any]) -> None:
    (done,) = export("nets:build", "onnx", opset=13, **options)
    assert (done.status, done.entry and done.entry.opset) == ("added", 13)


def test_an_edited_engine_is_exported_anew(tiny: Path, options: dict[str, Any]) -> None:
    (tiny / "onnx-fp32" / "model.onnx").write_bytes(b"truncated")
    (done,) = export("nets:build", "onnx", **options)
    assert done.status == "added"
    Bundle.open(tiny).file(Bundle.open(tiny).entry("onnx", "fp32"))


def test_a_bundle_of_the_engines_folder_is_found_by_its_name(tiny: Path) -> None:
    # As `accel verify tiny` and every other command finds it.
    (done,) = export("tiny", "torchscript", batch=2, device="cpu")
    assert (done.status, done.bundle.resolve(), done.plan.name) == ("added", tiny, "torchscript-fp32-b2")


def test_so_is_one_of_a_model_that_accel_can_train_and_does_not_ship(tiny: Path) -> None:
    trained = tiny.with_name("alexnet.accel")
    tiny.rename(trained)
    (done,) = export("alexnet", "torchscript", batch=2, device="cpu")
    assert (done.status, done.bundle.resolve()) == ("added", trained)


@pytest.mark.parametrize("name", ["a/b", "../a", "..", "a\nb", "a\\b"])
def test_a_name_that_no_bundle_can_have_is_refused_before_anything_is_written(options: dict[str, Any], tmp_path: Path, name: str) -> None:
    # `a\nb` was written, and could not be read back; `../a` left the engines folder.
    with pytest.raises(UsageError, match="cannot be a bundle's name"):
        export("nets:build", "onnx", **{**options, "name": name})
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_writes_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    done = export("nets:build", ["onnx", "torchscript"], batch=4, dry_run=True, **options)
    assert [(item.status, item.plan.name) for item in done] == [("planned", "onnx-fp32-b4"), ("planned", "torchscript-fp32-b4")]
    assert list(tmp_path.iterdir()) == []


def test_a_dynamic_batch_is_one_engine_for_every_batch(tiny: Path, options: dict[str, Any]) -> None:
    (done,) = export("nets:build", "onnx", batch="dynamic", **options)
    assert done.entry is not None
    assert done.entry.name == "onnx-fp32-dynamic"
    assert done.entry.inputs[0].shape[0] == "batch"
    assert done.entry.parity["status"] == "passed"


def test_an_engine_that_disagrees_is_not_added(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failed = {"status": "failed", "reason": "output: max|Δ|/max|golden| is 0.5", "limit": 1e-4}
    monkeypatch.setattr(parity, "run", lambda source, golden: failed)
    with pytest.raises(ParityError, match=r"is 0\.5") as caught:
        export("nets:build", "onnx", **options)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "engines" / "tiny.accel").exists()


def test_parity_that_cannot_be_run_is_said_and_the_file_is_kept(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(source: object, golden: object) -> None:
        raise MissingExtra("onnxruntime", "ort")

    monkeypatch.setattr(parity, "run", absent)
    (done,) = export("nets:build", "onnx", **options)
    assert done.entry is not None
    assert done.entry.parity == {"status": "not run", "reason": "onnxruntime is not installed"}
    assert done.to_row()["parity"] == "not run"


def test_an_unknown_format_is_refused_before_anything_is_built(options: dict[str, Any]) -> None:
    with pytest.raises(UnknownName, match="no export format called 'tflite'"):
        export("no_such_package:build", ["onnx", "tflite"], **options)


def test_an_opset_that_was_typed_is_held_against_every_format(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="torchscript has no opset"):
        export("nets:build", "torchscript", opset=17, dry_run=True, **options)
    monkeypatch.setenv("ACCEL_EXPORT_OPSET", "16")
    (ts, onnx) = export("nets:build", ["torchscript", "onnx"], dry_run=True, **options)
    assert (ts.plan.opset, onnx.plan.opset) == (None, 16)


def test_a_bundle_of_another_model_is_replaced_only_by_force(tiny: Path, options: dict[str, Any], tmp_path: Path) -> None:
    import nets
    import torch
    from safetensors.torch import save_file

    other = nets.trained()
    with torch.no_grad():
        other[5].bias.add_(1)
    save_file(other.state_dict(), str(tmp_path / "other.safetensors"))
    changed = {**options, "weights": tmp_path / "other.safetensors"}
    with pytest.raises(UsageError, match="holds another model"):
        export("nets:build", "onnx", **changed)
    export("nets:build", "onnx", force=True, **changed)
    assert [entry.name for entry in Bundle.open(tiny).entries] == ["onnx-fp32"]


def test_a_damaged_bundle_is_replaced_only_by_force(tiny: Path, options: dict[str, Any]) -> None:
    (tiny / "accel.json").write_text("{}")
    with pytest.raises(CorruptArtifact, match="lacks the key") as caught:
        export("nets:build", "onnx", **options)
    assert "--force" in str(caught.value)
    export("nets:build", "onnx", force=True, **options)
    assert [entry.name for entry in Bundle.open(tiny).entries] == ["onnx-fp32"]


def test_adding_to_a_strangers_bundle_does_not_make_it_trusted(
    tiny: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "another user"))
    (done,) = export("nets:build", "onnx", batch=2, **options)
    assert done.status == "added"
    assert not trust.is_trusted(Bundle.open(tiny))


@pytest.mark.parametrize("more", [{}, {"name": "mine"}])
def test_the_factory_of_a_strangers_bundle_is_not_called(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, more: dict[str, str]
) -> None:
    # What docs/trust.md promises of every command: a bundle may name any callable of any package as its model's factory.
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "another user"))
    called: list[object] = []
    monkeypatch.setattr(nets, "build", lambda real=nets.build: called.append(1) or real())
    with pytest.raises(UntrustedArtifact, match="its model is built by calling nets:build") as caught:
        export(str(tiny), "onnx", batch=2, device="cpu", **more)
    assert "--trusted" in str(caught.value)
    assert called == []
    (done,) = export(str(tiny), "onnx", batch=2, device="cpu", trusted=True, **more)
    assert (done.status, bool(called)) == ("added", True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({}, "its model is built by calling nets:build"), ({"dataset": "nets:samples"}, "its test data is code, nets:samples")],
)
def test_the_code_that_a_checkpoint_names_is_not_called(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], named: str
) -> None:
    # A folder that somebody sent; exported, it would be a bundle of this user's, whose code runs from then on.
    called: list[object] = []
    monkeypatch.setattr(nets, "build", lambda real=nets.build: called.append(1) or real())
    if changes:
        monkeypatch.setattr(trust, "_OUR_FACTORY", re.compile("nets:build"))
    model = tmp_path / "sent"
    shutil.copytree(tiny / "checkpoint", model)
    described = json.loads((model / "checkpoint.json").read_text())
    (model / "checkpoint.json").write_text(json.dumps({**described, **changes}))
    for spelled in (model, model / "weights.safetensors"):
        with pytest.raises(UntrustedArtifact, match=named) as caught:
            export(spelled, "onnx", name="mine", device="cpu")
        assert "--trusted" in str(caught.value)
    assert called == []
    assert not (tiny.parent / "mine.accel").exists()
    (done,) = export(model, "onnx", name="mine", device="cpu", trusted=True)
    assert (done.status, bool(called)) == ("added", True)


@pytest.fixture
def sly(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, list[object]]]:
    """A stranger's bundle that names a callable as its test data, and the list of its calls."""
    called: list[object] = []
    monkeypatch.setattr(nets, "samples", lambda: called.append(1) or [], raising=False)
    model = tmp_path / "model"
    shutil.copytree(tiny / "checkpoint", model)
    described = json.loads((model / "checkpoint.json").read_text())
    (model / "checkpoint.json").write_text(json.dumps({**described, "dataset": "nets:samples"}))
    with monkeypatch.context() as patched:
        patched.setattr(trust, "demand_checkpoint", lambda *_: None)
        bundle = Path(export(model, "onnx", name="sly", device="cpu")[0].bundle)
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "another user"))
    yield bundle, called
    assert called == []


def test_test_data_of_a_strangers_bundle_is_not_imported_to_verify(sly: tuple[Path, list[object]]) -> None:
    (row,) = verify(sly[0], ["onnxruntime:fp32"], device="cpu").rows
    assert (row["verdict"], row.get("top1")) == ("UNVERIFIED", None)
    assert "its test data is code (nets:samples)" in row["reason"]


def test_test_data_of_a_strangers_bundle_is_not_imported_to_evaluate(
    sly: tuple[Path, list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "demand_module", lambda bundle, trusted=False: None)  # as if its factory were one of ours
    with pytest.raises(UntrustedArtifact, match=r"its test data is code \(nets:samples\)"):
        evaluate(str(sly[0]), device="cpu")


def test_a_strangers_bundle_that_is_exported_elsewhere_does_not_become_this_users_with_its_code(
    sly: tuple[Path, list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if its factory were one of ours: what is left is the test data, which the new bundle would name, vouched for by this user.
    monkeypatch.setattr(trust, "_OUR_FACTORY", re.compile("nets:build"))
    with pytest.raises(UntrustedArtifact, match="its test data is code, nets:samples") as caught:
        export(sly[0], "onnx", name="mine", device="cpu")
    assert "--trusted" in str(caught.value)
    assert not (sly[0].parent / "mine.accel").exists()


def test_builds_of_a_strangers_bundle_are_not_verified_by_its_code(
    sly: tuple[Path, list[object]], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nets, "build", lambda: sly[1].append(2))
    for bundle, said in ((sly[0], "its test data is code (nets:samples)"), (tiny, "its model is built by calling nets:build")):
        origin = origins.find(str(bundle), tmp_path, tmp_path, weights=None, shape=None, name=None, moved=False)
        assert ExportJob(origin, "cpu", False, {})._reference(tmp_path) is None
        assert f"the builds are not verified: {bundle} was not exported by this user" in caplog.text
        assert said in caplog.text


def test_an_interrupted_export_leaves_nothing(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(format: str, request: exporters.ExportRequest) -> None:
        (request.folder / "model.onnx").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(exporters, "export", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export("nets:build", "onnx", **options)
    assert list((tmp_path / "engines").iterdir()) == []


def test_a_compiled_engine_is_kept_for_the_device_that_it_was_compiled_for(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from accel.exporters import aoti

    compiled_for = iter([{"device": "cuda"}, *[{"device": "cpu"}] * 4])

    def compile(program: object, package_path: str, inductor_configs: object) -> None:
        with zipfile.ZipFile(package_path, "w") as archive:
            archive.writestr("model/wrapper.so", b"needs libstdc++.so.6")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile)
    monkeypatch.setattr(parity, "run", lambda source, golden: {"status": "passed", "reason": ""})
    monkeypatch.setattr(aoti, "target", lambda torch, device: next(compiled_for))
    # Compiled, for a GPU; looked at and compiled anew; looked at.
    statuses = [export("nets:build", "aoti", **options)[0].status for _ in range(3)]
    assert statuses == ["added", "added", "kept"]
