"""From a model or an ONNX file to a fused engine in a bundle, without a GPU; the generator is `handmade`, the compiler is real."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("cuda.core", reason="cuda-core is not installed")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from exporters.fused import handmade

from accel import runtimes
from accel.api import export, export_job, load
from accel.engines import Bundle, fused_plan, trust
from accel.engines.embedding import with_pixels
from accel.errors import PrecisionError, UnknownName, UnsupportedOperator, UntrustedArtifact, UsageError
from accel.exporters import BuildOptions, ExportRequest
from accel.exporters.fused import exporting
from accel.exporters.fused.network import Shape, refused
from accel.exporters.fused.program import Program
from accel.preprocess import Preprocess
from accel.types import TensorSpec

INPUT = f"1x{handmade.CHANNELS}x{handmade.HEIGHT}x{handmade.WIDTH}"


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(exporting, "GENERATOR", "exporters.fused.handmade:generate")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(handmade.build().state_dict(), str(path))
    return path


@pytest.fixture
def fused(weights: Path) -> Callable[..., Any]:
    """fused(precision="fp16", batch=1, …) → what became of the export."""

    def run(to: str = "fused", precision: str = "fp16", **how: Any) -> Any:
        where = {"weights": weights, "input": INPUT, "name": "hand", "device": "cpu"}
        (done,) = export("exporters.fused.handmade:build", to, precision=precision, **where, **how)
        return done

    return run


@pytest.fixture(scope="module")
def looked_at(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One export, for tests that change nothing of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "GENERATOR", "exporters.fused.handmade:generate")
        where = {"weights": weights, "input": INPUT, "name": "hand", "device": "cpu", "out": tmp_path_factory.mktemp("engines")}
        (done,) = export("exporters.fused.handmade:build", "fused", precision="fp16", **where)
    return done


def test_the_folder_has_a_plan_weights_and_for_each_schedule_source_and_machine_code(looked_at: Any) -> None:
    done = looked_at
    folder = done.bundle / "fused-fp16"
    assert (done.status, done.entry.name) == ("added", "fused-fp16")
    names = {"plan.json", "weights.bin", "chain.cu", "grid.cu", "chain-sm90.cubin", "grid-sm90.cubin"}
    assert {path.name for path in folder.iterdir()} == names
    assert next(iter(done.entry.files)) == "fused-fp16/plan.json"
    assert set(done.entry.files) == {f"fused-fp16/{name}" for name in names}
    assert (folder / "chain.cu").read_text() == handmade.CHAIN
    assert all((folder / name).read_bytes().startswith(b"\x7fELF") for name in names if name.endswith(".cubin"))


def test_the_entry_says_what_it_is_and_what_it_is_tied_to(looked_at: Any) -> None:
    entry = looked_at.entry
    assert (entry.inputs[0].dtype, entry.inputs[0].shape, entry.inputs[0].layout) == ("float16", (1, 6, 4, 4), "NCHW")
    assert (entry.outputs[0].dtype, entry.outputs[0].shape) == ("float32", (1, 5))
    assert dict(entry.target) == {"device": "cuda", "least_compute_capability": "8.0"}
    assert entry.toolchain["schedules"] == "chain, grid"
    assert entry.toolchain["compiled_for"] == "9.0 (no GPU was named: the default)"
    assert entry.toolchain["chosen"] == "chain: chain 2.0 µs, grid 3.0 µs predicted, not measured"
    assert entry.toolchain["read_from"] == "the module"
    assert entry.precision_proof == {"weights": {"float16": 1}, "macs": {"float16": 30}, "accumulate": "float32", "share": 1.0}
    assert entry.parity["status"] == "not run"
    assert "runs on NVIDIA GPUs only" in entry.parity["reason"]


def test_the_plan_has_kernels_resources_and_why_a_schedule_is_absent(looked_at: Any) -> None:
    plan = fused_plan.read(looked_at.bundle / "fused-fp16" / "plan.json")
    assert (plan.chosen, list(plan.schedules), plan.sms) == ("chain", ["chain", "grid"], 132)
    assert [kernel.name for kernel in plan.schedules["chain"].kernels] == ["mean", "fc"]
    (whole,) = plan.schedules["grid"].kernels
    assert (whole.cooperative, whole.layers) == (True, ("mean", "fc"))
    used = plan.schedules["grid"].resources["9.0"]["whole"]
    assert 0 < used.registers <= 255
    assert used.spills == 0
    assert list(plan.left_out) == ["cluster"]
    assert "layer 'mean' (pool) cannot be exported to fused: a cluster of one CTA is none" in plan.left_out["cluster"]


def test_gpus_that_are_named_get_machine_code_each_and_the_plan_counts_on_the_smallest(fused: Callable[..., Any]) -> None:
    done = fused(options=BuildOptions(compute_capabilities=("8.0", "8.9")))
    folder = done.bundle / "fused-fp16"
    plan = fused_plan.read(folder / "plan.json")
    assert plan.schedules["chain"].cubins == {"8.0": "chain-sm80.cubin", "8.9": "chain-sm89.cubin"}
    assert set(plan.schedules["grid"].resources) == {"8.0", "8.9"}
    assert plan.sms == 108
    assert done.entry.toolchain["compiled_for"] == "8.0, 8.9 (asked for)"


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ({"precision": "fp32"}, UnknownName, "no fused export precision called 'fp32'"),
        ({"batch": 8}, UsageError, "fused has engines for a batch of 1; 8 was asked for"),
        ({"batch": "dynamic"}, UsageError, "a batch of 1; dynamic was asked for"),
        ({"options": BuildOptions(compute_capabilities=("7.5",))}, UsageError, "begin with compute capability 8.0; 7.5 was asked for"),
        ({"options": BuildOptions(builds=2)}, UsageError, "--builds does not apply to fused"),
        ({"opset": 17}, UsageError, "fused has no opset"),
    ],
)
def test_what_it_cannot_be_is_refused_before_anything_is_written(
    fused: Callable[..., Any], how: dict[str, Any], kind: type[UsageError], said: str
) -> None:
    with pytest.raises(kind) as refusal:
        fused(**how)
    assert said in str(refusal.value)
    assert refusal.value.exit_code == 2
    assert not Path("engines/hand.accel").exists()


def test_the_command_line_refuses_fp32_and_a_layer_by_name_with_exit_code_2(
    accel_cli: Callable[..., Any], tiny_weights: Path, weights: Path
) -> None:
    where = ("--weights", tiny_weights, "--input", "1x3x8x8", "--device", "cpu")
    ran = accel_cli("export", "nets:build", *where, "--to", "fused", "--fp16")
    assert ran.code == 2
    assert "layer '3' (aten.adaptive_avg_pool2d) cannot be exported to fused: it is not among the operators" in ran.err
    hand = ("--weights", weights, "--input", INPUT, "--device", "cpu")
    ran = accel_cli("export", "exporters.fused.handmade:build", *hand, "--to", "fused", "--precision", "fp32")
    assert (ran.code, "choose one of: fp16" in ran.err) == (2, True)


def test_the_command_line_tunes_on_a_gpu_only_and_a_budget_is_of_a_search(accel_cli: Callable[..., Any], weights: Path) -> None:
    hand = ("export", "exporters.fused.handmade:build", "--weights", weights, "--input", INPUT, "--device", "cpu", "--fp16")
    for more, said in (
        (("--to", "fused", "--tune"), "tiles are tuned by timing them, and there is no GPU here"),
        (("--to", "fused", "--tune", "--budget", "30s"), "there is no GPU here"),
        (("--to", "fused", "--budget", "30s"), "--budget is of a search, and none was asked for"),
        (("--to", "fused", "--tune", "--budget", "soon"), "'soon' is no budget"),
        (("--to", "onnx", "--tune"), "--tune does not apply to onnx"),
        (("--to", "best", "--tune"), "--to best chooses the engine itself, and --precision, --tune was given"),
    ):
        ran = accel_cli(*hand, *more)
        assert (ran.code, said in ran.err) == (2, True), (more, ran.err)
    assert not Path("engines/handmade.accel").exists()


def test_a_model_that_no_schedule_takes_is_refused_with_the_first_reason(
    fused: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(network: Any, schedule: str, **_: Any) -> Program:
        raise refused("fc", "linear", f"not in {schedule}")

    monkeypatch.setattr(exporting, "_generator", lambda: generate)
    with pytest.raises(UnsupportedOperator, match=r"layer 'fc' \(linear\) cannot be exported to fused: not in chain"):
        fused()
    assert not Path("engines/hand.accel").exists()


def changed(**fields: Any) -> Callable[..., Program]:
    return lambda network, schedule, **how: dataclasses.replace(handmade.generate(network, schedule, **how), **fields)


def test_a_layer_that_no_kernel_names_or_another_type_is_no_fp16(fused: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = handmade.generate(handmade.network(), "chain").kernels
    monkeypatch.setattr(exporting, "_generator", lambda: changed(kernels=kernels[:1]))
    with pytest.raises(PrecisionError, match="no kernel of the schedule chain says that it computes fc"):
        fused()
    monkeypatch.setattr(exporting, "_generator", lambda: changed(plan={"steps": [{"layers": ["fc"], "dtype": "float32"}]}))
    with pytest.raises(PrecisionError, match="fp16 was asked for; the plan of the schedule chain has float32"):
        fused()


def test_the_chain_is_chosen_whatever_is_predicted() -> None:
    made = {name: handmade.generate(handmade.network(), name) for name in ("grid", "chain")}
    made["grid"] = dataclasses.replace(made["grid"], plan={"predicted_us": 1.5})
    assert exporting.choose(made) == ("chain", "grid 1.5 µs, chain 2.0 µs predicted, not measured")
    assert exporting.choose({"grid": dataclasses.replace(made["grid"], plan={})}) == ("grid", "the first that takes the network")


def test_an_engine_that_is_there_is_kept_until_what_makes_it_changes(fused: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [fused().status for _ in range(2)] == ["added", "kept"]
    assert fused(options=BuildOptions(compute_capabilities=("9.0",))).status == "added"
    assert fused(options=BuildOptions(compute_capabilities=("9.0",))).status == "kept"
    monkeypatch.setattr(exporting, "_generator_sha256", lambda: "another")
    assert fused(options=BuildOptions(compute_capabilities=("9.0",))).status == "added"


def test_without_torch_it_is_made_from_the_onnx_engine(fused: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fused("onnx", precision="fp32")
    fused("onnx")
    monkeypatch.setattr(export_job, "installed", lambda name: False)
    monkeypatch.setattr(export_job.Origin, "module", property(lambda self: pytest.fail("torch was asked for")))
    (done,) = export("engines/hand.accel", "fused", precision="fp16", device="cpu")
    bundle = Bundle.open(done.bundle)
    assert done.entry is not None
    assert done.entry.toolchain["read_from"] == f"ONNX {bundle.entry('onnx', 'fp16').files['onnx-fp16/model.onnx']}"


def test_any_onnx_file_will_do(fused: Callable[..., Any]) -> None:
    made = fused("onnx", precision="fp32")
    shutil.copy(made.bundle / "onnx-fp32" / "model.onnx", "mine.onnx")
    (done,) = export("mine.onnx", "fused", precision="fp16", device="cpu")
    assert [entry.name for entry in Bundle.open(done.bundle).entries] == ["onnx-fp32", "fused-fp16"]
    assert json.loads((done.bundle / "fused-fp16" / "plan.json").read_text())["chosen"] == "chain"


def test_it_is_code_and_needs_trust(looked_at: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = Bundle.open(looked_at.bundle)
    trust.demand_engine(bundle, bundle.entry("fused", "fp16"))
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "another user"))
    with pytest.raises(UntrustedArtifact, match="fused-fp16 is code"):
        load(bundle.path, "fused:fp16", device="cpu")


def test_all_shows_the_schedules_that_the_engine_has(fused: Callable[..., Any], rewritten: Callable[..., None]) -> None:
    bundle = Bundle.open(fused().bundle)
    shown = ["fused:fp16", "fused:fp16+chain", "fused:fp16+grid"]
    assert [str(item) for item in runtimes.variants(bundle, ["all"], "cuda:0") if item.runtime == "fused"] == shown
    (entry,) = bundle.entries
    rewritten(bundle.path, engines=(dataclasses.replace(entry, toolchain={**entry.toolchain, "schedules": "chain"}),))
    assert [str(item) for item in runtimes.variants(Bundle.open(bundle.path), ["fused"], "cuda:0")] == shown[:2]


def test_inspect_shows_layers_ctas_registers_and_shared_memory(looked_at: Any, accel_cli: Callable[..., Any]) -> None:
    ran = accel_cli("inspect", looked_at.bundle)
    lines = ran.out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("fused-fp16: chain: chain 2.0 µs"))
    head, first, grid = lines[start + 2].split(), lines[start + 4].split(), lines[-1].split()
    assert head == ["schedule", "step", "layers", "tile", "ctas", "shared", "registers", "spills", "predicted_us"]
    assert first[:7] == ["chain", "(chosen)", "1", "mean", "–", "6", "128"]
    assert grid[:3] == ["grid", "2", "fc"]
    found = json.loads(accel_cli("inspect", looked_at.bundle, "--format", "json").out)
    assert [row["layers"] for row in found["engines"][0]["details"]] == ["mean", "fc"] * 2


def test_of_a_model_that_takes_pixels_the_network_is_read_behind_its_normalisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    ready = Preprocess((0.1,) * 3, (0.5,) * 3, 8, 8)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5)).eval()
    pixels, logits = TensorSpec("pixels", ("batch", 8, 8, 3), "uint8", "NHWC"), TensorSpec("logits", ("batch", 5), "float32", "NC")
    request = ExportRequest(with_pixels(module, ready), (pixels,), (logits,), "fp16", tmp_path)
    network, found = exporting.read(request)
    assert (network.input, [type(layer).__name__ for layer in network.layers]) == (Shape(3, 8, 8), ["Convolution", "Pool", "Linear"])
    assert found is not None
    np.testing.assert_array_equal(found[0], ready.scale.reshape(-1))
    np.testing.assert_array_equal(found[1], ready.offset.reshape(-1))
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(exporting, "_generator", lambda: lambda network, schedule, **how: asked.append(how))
    exporting.generate(network, 132, found)
    assert [(how["sms"], how["input_dtype"]) for how in asked] == [(132, "uint8")] * 3
    with pytest.raises(UnsupportedOperator, match="read from the PyTorch model only"):
        exporting.read(dataclasses.replace(request, module=None, onnx=tmp_path / "x.onnx"))
