"""Plans from ONNX files: of a bundle, and of anywhere, where there is no torch. The builder is a fake; what it is given is real."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporters import onnx_samples

from accel import exporters
from accel.api import export, export_job
from accel.engines import Bundle, Reference, trust, write_reference
from accel.errors import BundleMissing, CorruptArtifact, IncompatibleArtifact, RuntimeUnavailable, UsageError
from accel.exporters import ExportRequest
from accel.exporters.describing import describe
from accel.runtimes import RUNTIMES, RuntimeInfo
from accel.types import EngineEntry
from accel.verify.data import open_data

pytest.importorskip("onnx")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[ExportRequest]:
    """Every request that reached the builder of `tensorrt-rtx`, which copies its ONNX file in the place of a plan."""
    made: list[ExportRequest] = []
    real = exporters.export

    def fake(format: str, request: ExportRequest) -> EngineEntry:
        if format != "tensorrt-rtx":
            return real(format, request)
        made.append(request)
        assert request.onnx is not None
        shutil.copyfile(request.onnx, request.folder / "model.plan")
        proof = {"share": 1.0}
        return describe(
            format, request, 0.0, toolchain={"onnx": request.onnx.parent.name}, precision_proof=proof, target={"device": "cuda"}
        )

    monkeypatch.setattr(exporters, "export", fake)
    monkeypatch.setattr(exporters, "is_current", lambda entry, request: request.opset in (None, entry.opset))
    row = RuntimeInfo("accel.runtimes.fake:Fake", "tensorrt-rtx", ("fp32", "fp16"), (), ("nothing",), "rtx")
    monkeypatch.setitem(RUNTIMES, "tensorrt-rtx", RUNTIMES.get("tensorrt-rtx", row))
    real_parity = export_job.parity.run

    def parity(source: Any, golden: Any) -> dict[str, Any]:
        if source.variant.runtime == "tensorrt-rtx":
            raise RuntimeUnavailable("plans run on NVIDIA GPUs only")
        return real_parity(source, golden)

    monkeypatch.setattr(export_job.parity, "run", parity)
    return made


def test_a_plan_is_built_from_the_bundles_onnx_engine_without_torch(
    tiny: Path, requests: list[ExportRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (done,) = export(str(tiny), "trt", flavor="rtx", precision="fp16", device="cpu")
    assert (done.bundle, done.status, done.plan.name) == (tiny, "added", "tensorrt-rtx-fp16")
    assert [request.onnx for request in requests] == [tiny / "onnx-fp16" / "model.onnx"]
    assert requests[0].module is None
    assert done.entry is not None
    assert done.entry.parity == {"status": "not run", "reason": "plans run on NVIDIA GPUs only"}
    assert trust.is_trusted(Bundle.open(tiny))
    (again,) = export(str(tiny), "trt", flavor="rtx", precision="fp16", device="cpu")
    assert (again.status, len(requests)) == ("kept", 1)


def test_a_missing_onnx_engine_is_exported_first(tiny: Path, requests: list[ExportRequest]) -> None:
    pytest.importorskip("torch")
    done = export(str(tiny), "tensorrt-rtx", batch=3, device="cpu")
    assert [item.plan.name for item in done] == ["tensorrt-rtx-fp32-b3"]
    names = [entry.name for entry in Bundle.open(tiny).entries]
    assert names[-2:] == ["onnx-fp32-b3", "tensorrt-rtx-fp32-b3"]
    assert Bundle.open(tiny).entry("onnx", "fp32", 3).parity["status"] == "passed"


def test_the_command_for_another_opset_names_what_can_be_exported_again(tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed", exc_type=ImportError)
    taken = {("tensorrt-rtx", int(trt.__version__.partition(".")[0])): (7, 16)}
    monkeypatch.setattr("accel.exporters.tensorrt_network.OPSETS", taken)
    options = exporters.BuildOptions(compute_capabilities=("8.6",))
    with pytest.raises(UsageError, match="is of opset 17") as caught:
        export("engines/tiny.accel", "tensorrt-rtx", device="cpu", options=options)
    assert caught.value.remedy == "accel export engines/tiny.accel --to onnx --opset 17 --force"
    # A bundle that has no model has only its file, which is converted and not exported.
    onnx_samples.write(here / "mine.onnx")
    export("mine.onnx", "onnx", device="cpu")
    for model in ("mine.onnx", "engines/mine.accel"):
        with pytest.raises(UsageError, match="is of opset 17") as caught:
            export(model, "tensorrt-rtx", device="cpu", options=options)
        assert str(caught.value.remedy).startswith("onnx.version_converter.convert_version(model, 17)")


def test_an_edited_onnx_engine_is_exported_anew_before_it_is_built_from(tiny: Path, requests: list[ExportRequest]) -> None:
    pytest.importorskip("torch")
    (tiny / "onnx-fp32" / "model.onnx").write_bytes(b"edited")
    export(str(tiny), "tensorrt-rtx", device="cpu")
    Bundle.open(tiny).file(Bundle.open(tiny).entry("onnx", "fp32"))
    assert len((tiny / "tensorrt-rtx-fp32" / "model.plan").read_bytes()) > 100


def test_a_target_that_is_not_here_is_no_failure(tiny: Path, requests: list[ExportRequest], monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(source: Any, golden: Any) -> None:
        raise IncompatibleArtifact("made for 12.0; this GPU has 9.0")

    monkeypatch.setattr(export_job.parity, "run", elsewhere)
    (done,) = export(str(tiny), "tensorrt-rtx", device="cpu")
    assert done.to_row()["parity"] == "not run"
    assert "this GPU has 9.0" in done.to_row()["reason"]


def test_nothing_is_added_when_the_build_is_cancelled(tiny: Path, requests: list[ExportRequest], monkeypatch: pytest.MonkeyPatch) -> None:
    def cancelled(format: str, request: ExportRequest) -> EngineEntry:
        (request.folder / "model.plan").write_bytes(b"half")
        raise KeyboardInterrupt

    before = (tiny / "accel.json").read_bytes()
    monkeypatch.setattr(exporters, "export", cancelled)
    with pytest.raises(KeyboardInterrupt):
        export(str(tiny), "tensorrt-rtx", device="cpu")
    assert (tiny / "accel.json").read_bytes() == before
    assert not [path.name for path in tiny.parent.iterdir() if "tensorrt" in path.name]
    assert not [path.name for path in tiny.iterdir() if "tensorrt" in path.name]


def test_a_file_inside_a_bundle_is_the_bundle(tiny: Path, requests: list[ExportRequest]) -> None:
    (done,) = export("engines/tiny.accel/onnx-fp16/model.onnx", "tensorrt-rtx", precision="fp16", device="cpu")
    assert done.bundle.resolve() == tiny.resolve()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_any_onnx_file_becomes_a_bundle_of_its_own(here: Path, requests: list[ExportRequest], precision: str) -> None:
    pytest.importorskip("onnxruntime")
    file = onnx_samples.write(here / "mine.onnx", precision=precision)
    (done,) = export("mine.onnx", "tensorrt-rtx", precision=precision, device="cpu")
    bundle = Bundle.open(here / "engines" / "mine.accel")
    assert done.bundle.name == "mine.accel"
    assert not bundle.has_checkpoint
    assert [entry.name for entry in bundle.entries] == [f"onnx-{precision}", f"tensorrt-rtx-{precision}"]
    assert (bundle.path / f"onnx-{precision}" / "model.onnx").read_bytes() == file.read_bytes()
    assert (bundle.inputs[0].name, bundle.inputs[0].shape, bundle.inputs[0].dtype) == ("x", ("batch", 3, 8, 8), "float32")
    assert (bundle.outputs[0].name, bundle.outputs[0].shape) == ("y", ("batch", 4))
    onnx_entry = bundle.entry("onnx", precision)
    assert (onnx_entry.opset, onnx_entry.parity["status"]) == (17, "passed")
    golden = bundle.golden()
    assert golden.inputs["x"].shape == (8, 3, 8, 8)
    assert golden.outputs["y"].dtype == np.float32
    assert trust.is_trusted(bundle)
    (again,) = export("mine.onnx", "tensorrt-rtx", precision=precision, device="cpu")
    assert again.status == "kept"
    (onnx,) = export("mine.onnx", "onnx", precision=precision, device="cpu")
    assert (onnx.status, onnx.plan.name) == ("kept", f"onnx-{precision}")


def test_the_golden_outputs_are_what_the_file_computes(here: Path, requests: list[ExportRequest]) -> None:
    runtime = pytest.importorskip("onnxruntime")
    file = onnx_samples.write(here / "mine.onnx", batch=3)
    (done,) = export("mine.onnx", "tensorrt-rtx", device="cpu", name="other")
    assert (done.bundle.name, done.plan.name) == ("other.accel", "tensorrt-rtx-fp32-b3")
    golden = Bundle.open(done.bundle).golden()
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (expected,) = session.run(["y"], {"x": golden.inputs["x"][:3]})
    np.testing.assert_allclose(golden.outputs["y"][:3], expected, rtol=1e-5)


def test_without_onnxruntime_there_are_no_golden_outputs_and_parity_says_so(
    here: Path, requests: list[ExportRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    onnx_samples.write(here / "mine.onnx")
    (done,) = export("mine.onnx", "tensorrt-rtx", device="cpu")
    assert done.entry is not None
    assert done.entry.parity == {"status": "not run", "reason": "no onnxruntime here to make golden outputs"}
    assert Bundle.open(done.bundle).golden().outputs == {}


def test_weights_beside_the_file_come_along(here: Path, requests: list[ExportRequest]) -> None:
    onnx_samples.write(here / "in" / "mine.onnx", external=True)
    (done,) = export("in/mine.onnx", "tensorrt-rtx", device="cpu")
    assert list(Bundle.open(done.bundle).entry("onnx", "fp32").files) == ["onnx-fp32/model.onnx", "onnx-fp32/weights.bin"]
    (here / "in" / "weights.bin").unlink()
    with pytest.raises(CorruptArtifact, match=r"weights\.bin is missing"):
        export("in/mine.onnx", "tensorrt-rtx", device="cpu", name="other")


def test_an_fp32_file_is_the_source_of_an_fp16_plan_where_there_is_no_other(here: Path, requests: list[ExportRequest]) -> None:
    onnx_samples.write(here / "mine.onnx", batch="N")
    (done,) = export("mine.onnx", "tensorrt-rtx", precision="fp16", device="cpu")
    assert done.plan.name == "tensorrt-rtx-fp16"
    assert requests[0].onnx == done.bundle / "onnx-fp32-dynamic" / "model.onnx"


def test_another_file_of_the_same_name_is_another_model(here: Path, requests: list[ExportRequest]) -> None:
    onnx_samples.write(here / "mine.onnx")
    export("mine.onnx", "tensorrt-rtx", device="cpu")
    onnx_samples.write(here / "mine.onnx", seed=1)
    with pytest.raises(UsageError, match="holds another model"):
        export("mine.onnx", "tensorrt-rtx", device="cpu")
    export("mine.onnx", "tensorrt-rtx", device="cpu", force=True)
    assert [entry.name for entry in Bundle.open(here / "engines" / "mine.accel").entries] == ["onnx-fp32", "tensorrt-rtx-fp32"]


def test_what_an_onnx_file_cannot_become_is_refused(here: Path, requests: list[ExportRequest]) -> None:
    onnx_samples.write(here / "mine.onnx")
    for to, said in (("torchscript", "has no PyTorch model"), ("onnx", r"fp16 was asked for, and mine\.onnx has precision fp32")):
        with pytest.raises(UsageError, match=said):
            export("mine.onnx", to, precision="fp16", device="cpu")
    with pytest.raises(UsageError, match="has its own weights"):
        export("mine.onnx", "tensorrt-rtx", input="1x3x8x8")
    with pytest.raises(UsageError, match="nothing at absent"):
        export("absent.onnx", "tensorrt-rtx")
    (here / "text.onnx").write_text("not protobuf")
    with pytest.raises(CorruptArtifact, match=r"text\.onnx is no ONNX model"):
        export("text.onnx", "tensorrt-rtx")
    assert not (here / "engines").exists()


def test_inspect_says_what_parity_of_an_onnx_file_was_held_against(accel_cli: Callable[..., Any], here: Path) -> None:
    pytest.importorskip("onnxruntime")
    onnx_samples.write(here / "mine.onnx")
    export("mine.onnx", "onnx", device="cpu")
    assert "golden      8 samples, answered by the ONNX file itself\n" in accel_cli("inspect", "mine").out


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(
    ("given", "asked"), [({"opset": 13}, {}), ({"batch": "N"}, {}), ({"batch": 3}, {}), ({"batch": "N"}, {"batch": 4})]
)
def test_a_file_that_is_given_is_said_to_be_what_it_is(
    here: Path, requests: list[ExportRequest], given: dict[str, Any], asked: dict[str, Any], dry_run: bool
) -> None:
    onnx_samples.write(here / "mine.onnx", **given)
    (done,) = export("mine.onnx", "onnx", device="cpu", dry_run=dry_run, **asked)
    name = {"N": "onnx-fp32-dynamic", 3: "onnx-fp32-b3"}.get(given.get("batch", 1), "onnx-fp32")
    row = done.to_row()
    assert (row["engine"], row["opset"]) == (name, given.get("opset", 17))
    assert row["file"] == f"engines/mine.accel/{name}/model.onnx"
    assert Path(row["file"]).is_file() is not dry_run
    if not dry_run:
        (again,) = export("mine.onnx", "onnx", device="cpu", **asked)
        assert (again.status, again.to_row()["file"]) == ("kept", row["file"])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"opset": 11}, r"opset 11 was asked for, and mine\.onnx has opset 13.*\n.*--opset 13"),
        ({"batch": 4}, r"batch 4 was asked for, and mine\.onnx has batch 1.*\n.*--batch 1"),
        ({"batch": "dynamic"}, r"batch dynamic was asked for, and mine\.onnx has batch 1"),
    ],
)
def test_a_file_that_is_not_what_was_asked_for_is_refused(
    here: Path, requests: list[ExportRequest], asked: dict[str, Any], said: str
) -> None:
    onnx_samples.write(here / "mine.onnx", opset=13)
    with pytest.raises(UsageError, match=said):
        export("mine.onnx", "onnx", device="cpu", **asked)
    assert not (here / "engines").exists()


def test_a_bundle_without_a_model_has_the_batches_of_its_file(here: Path, requests: list[ExportRequest]) -> None:
    onnx_samples.write(here / "mine.onnx")
    export("mine.onnx", "tensorrt-rtx", device="cpu")
    with pytest.raises(BundleMissing, match="has no onnx engine for batch 4"):
        export("engines/mine.accel", "tensorrt-rtx", batch=4, device="cpu")


def test_a_dry_run_on_an_onnx_file_writes_nothing(here: Path, requests: list[ExportRequest]) -> None:
    file = onnx_samples.write(here / "mine.onnx")
    (done,) = export("mine.onnx", "tensorrt-rtx", dry_run=True, device="cpu")
    assert (done.status, done.plan.size_bytes) == ("planned", file.stat().st_size)
    assert [path.name for path in here.iterdir()] == ["mine.onnx"]


BARE = {"torch", "torchvision", "onnx", "onnxscript", "scipy", "pynvml", "PIL"}
"""What the base package does without."""

WITHOUT = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {%s}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None
sys.meta_path.insert(0, Blocker())
from accel.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run_without(names: set[str], *words: str, here: Path) -> subprocess.CompletedProcess[str]:
    """`accel` in a process of its own, in which none of the packages `names` can be imported."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", WITHOUT % ", ".join(map(repr, sorted(names))), *words]
    return subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": path})


def test_a_real_plan_is_built_by_a_python_without_torch_onnx_and_onnxruntime(here: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed", exc_type=ImportError)
    if "tensorrt-rtx" not in RUNTIMES:
        pytest.skip("this accel has no runtime for TensorRT-RTX")
    onnx_samples.write(here / "mine.onnx", precision="fp16")
    flags = ["--to", "trt", "--flavor", "rtx", "--compute-capability", "8.6,8.9", "--fp16", "--format", "json"]
    done = run_without(BARE | {"onnxruntime"}, "export", "mine.onnx", *flags, here=here)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["engine"], row["status"], row["precision_share"]) == ("tensorrt-rtx-fp16", "added", 1.0)
    assert (row["parity"], row["reason"]) == ("not run", "no onnxruntime here to make golden outputs")
    assert "accel: parity of tensorrt-rtx-fp16 was not run: no onnxruntime here to make golden outputs" in done.stderr


def test_such_a_bundle_is_verified_against_the_reference_that_is_there(
    accel_cli: Callable[..., Any], here: Path, requests: list[ExportRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, "torch", None)
    onnx_samples.write(here / "mine.onnx")
    (done,) = export("mine.onnx", "onnx", device="cpu")
    golden = Bundle.open(done.bundle).golden()
    labels = golden.outputs["y"].argmax(axis=1).astype(np.int64)
    np.savez(here / "data.npz", images=golden.inputs["x"], labels=labels)
    data = open_data(f"npz:{here / 'data.npz'}")
    # Two answers of the reference are swapped, which only a reader of the stored one can notice.
    logits = golden.outputs["y"].copy()
    logits[:2, :] = np.roll(logits[:2, :], 1, axis=1)
    write_reference(done.bundle, Reference(logits, "0" * 64, data.sha256))
    given = ["--variant", "onnxruntime:fp32", "--data", f"npz:{here / 'data.npz'}", "--device", "cpu", "--format", "json"]
    (row,) = json.loads(accel_cli("verify", "mine", *given, "--max-drop", "50").out)
    assert (row["verdict"], row["top1"], row["top1_reference"], row["n_flips"]) == ("OK", 100.0, 75.0, 2)


def test_such_a_bundle_is_verified_and_timed_by_a_python_without_torch_and_scipy(here: Path, requests: list[ExportRequest]) -> None:
    pytest.importorskip("onnxruntime")
    onnx_samples.write(here / "mine.onnx")
    (done,) = export("mine.onnx", "onnx", device="cpu")
    golden = Bundle.open(done.bundle).golden()
    np.savez(here / "data.npz", images=golden.inputs["x"], labels=golden.outputs["y"].argmax(axis=1).astype(np.int64))
    given = ["--variant", "onnxruntime:fp32", "--data", "npz:data.npz", "--device", "cpu", "--format", "json"]
    plan = ["--warmup", "1", "--iterations", "50", "--rounds", "2"]
    made = run_without(BARE, "bench", "mine", *given, *plan, "--no-baseline", "--min-top1", "0", here=here)
    assert made.returncode == 0, made.stderr
    (row,) = json.loads(made.stdout)["lines"]
    assert (row["verdict"], row["top1"], row["host_n"]) == ("OK", 100.0, 100)
    (recorded,) = here.glob("results/local/*/results.csv")
    with open(recorded, newline="", encoding="utf-8") as stream:
        assert all(float(run["p50_lo_us"]) <= float(run["p50_us"]) <= float(run["p50_hi_us"]) for run in csv.DictReader(stream))


@pytest.mark.parametrize("command", [["verify"], ["bench", "--rounds", "1", "--iterations", "3", "--warmup", "0"]])
def test_a_bundle_of_which_nothing_runs_here_is_no_success(accel_cli: Callable[..., Any], here: Path, command: list[str]) -> None:
    pytest.importorskip("onnxruntime")
    onnx_samples.write(here / "half.onnx", precision="fp16")
    export("half.onnx", "onnx", precision="fp16", device="cpu")
    ran = accel_cli(*command, "half", "--device", "cpu")
    assert (ran.code, "onnxruntime:fp16 is REFUSED: no FP16 kernels on this CPU" in ran.err) == (4, True)


def test_without_golden_outputs_and_data_a_bundle_is_unverified_and_says_what_is_lacking(
    accel_cli: Callable[..., Any], here: Path, requests: list[ExportRequest]
) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        onnx_samples.write(here / "mine.onnx")
        export("mine.onnx", "onnx", device="cpu")
    ran = accel_cli("verify", "mine", "--variant", "onnxruntime:fp32", "--device", "cpu")
    assert ran.code == 4, ran.err
    assert "UNVERIFIED: the bundle has no golden outputs" in ran.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--to", "onnx", "--workspace", "1GiB"], "--workspace does not apply to onnx"),
        (["--to", "trt", "--compute-capability", "8.6"], "--compute-capability does not apply to tensorrt"),
        (["--to", "trt", "--flavor", "rtx", "--builds", "3"], "--builds does not apply to tensorrt-rtx"),
        (["--to", "trt", "--flavor", "lean"], "tensorrt has no flavor 'lean'"),
        (["--to", "trt", "--max-batch", "8"], "--max-batch was given, but the batch is fixed at 1"),
        (["--to", "trt", "--workspace", "much"], "'much' is no size"),
        (["--to", "trt", "--optimization-level", "9"], "the optimization level 9 does not exist"),
        (["--to", "trt", "--flavor", "rtx", "--compute-capability", "sm_86"], "'sm_86' is no compute capability"),
        (["--to", "trt", "--tactic-sources", ","], "names nothing"),
        (["--to", "trt", "--opset", "17"], "tensorrt has no opset"),
        (["--to", "trt", "--batch", "dynamic", "--min-batch", "9", "--max-batch", "3"], "are not in order"),
    ],
)
def test_flags_that_do_not_fit_are_usage_errors(accel_cli: Callable[..., Any], here: Path, flags: list[str], said: str) -> None:
    onnx_samples.write(here / "mine.onnx")
    ran = accel_cli("export", "mine.onnx", "--device", "cpu", *flags)
    assert ran.code == 2, ran.err
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert not (here / "engines").exists()
