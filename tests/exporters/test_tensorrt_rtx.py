"""Real plans of TensorRT-RTX from both shipped models, built on the CPU for GPUs that are not here."""

from __future__ import annotations

import json
import logging
import signal
import threading
import types
from pathlib import Path
from typing import Any

import onnx_samples
import pytest
from trt.ctrl_c import pressed

from accel import exporters, trt
from accel.errors import CorruptArtifact, PrecisionError, RuntimeUnavailable, UnsupportedOperator, UsageError
from accel.exporters import BuildOptions, ExportRequest, tensorrt, tensorrt_config
from accel.trt import read_header
from accel.types import TensorSpec

REASON = "TensorRT-RTX is not installed (pip install 'accel-engines[rtx]')"
pytest.importorskip("tensorrt_rtx_bindings", reason=REASON, exc_type=ImportError)
pytest.importorskip("onnx")

INPUT = TensorSpec("x", ("batch", 3, 8, 8), "float32", "NCHW")
OUTPUT = TensorSpec("y", ("batch", 4), "float32", "NC")
ALL = ("8.6", "8.9", "12.0")
LEAST_MACS = {"resnet18": 5e8, "mobilenetv3_small": 1e6}


def request_of(folder: Path, onnx: Path, precision: str, **fields: Any) -> ExportRequest:
    folder.mkdir(parents=True, exist_ok=True)
    values = {"inputs": (INPUT,), "outputs": (OUTPUT,), "options": BuildOptions(compute_capabilities=ALL), **fields}
    return ExportRequest(None, precision=precision, folder=folder, onnx=onnx, **values)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(model, precision) → its ONNX file, exported once."""
    pytest.importorskip("torch")
    from accel import trainers
    from accel.checkpoint import read_checkpoint
    from accel.engines.module import build_module

    made: dict[tuple[str, str], tuple[Path, Any]] = {}

    def export(model: str, precision: str) -> tuple[Path, Any]:
        if (model, precision) not in made:
            checkpoint = read_checkpoint(trainers.shipped(model))
            folder = tmp_path_factory.mktemp(f"{model}-{precision}")
            specs = (checkpoint.input,), (checkpoint.output,)
            exporters.export("onnx", ExportRequest(build_module(checkpoint), *specs, precision, folder))
            made[model, precision] = folder / "model.onnx", specs
        return made[model, precision]

    return export


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("model", ["resnet18", "mobilenetv3_small"])
def test_the_shipped_models_are_built_for_several_gpus_in_the_precision_asked_for(
    shipped: Any, tmp_path: Path, model: str, precision: str
) -> None:
    onnx, (inputs, outputs) = shipped(model, precision)
    told: list[float] = []
    request = request_of(
        tmp_path / "out", onnx, precision, inputs=inputs, outputs=outputs, progress=lambda step, done, total=None: told.append(done)
    )
    entry = exporters.export("tensorrt-rtx", request)
    header = read_header(request.folder / "model.plan")
    assert header is not None
    assert header.flavor == "tensorrt-rtx"
    assert entry.target == {
        "tensorrt-rtx": ".".join(map(str, header.version)),
        "compute_capabilities": list(ALL),
        "device": "cuda",
    }
    assert entry.precision_proof["share"] == 1.0
    assert entry.precision_proof["macs"] > LEAST_MACS[model]
    assert set(entry.precision_proof["types"]) == {{"fp32": "float", "fp16": "half"}[precision]}
    assert (entry.inputs[0].name, entry.inputs[0].dtype) == (inputs[0].name, {"fp32": "float32", "fp16": "float16"}[precision])
    assert ("TF32" in entry.toolchain["flags"]) == (precision == "fp16")
    assert json.loads((request.folder / "layers.json").read_text())["network"]
    assert (told, told[-1]) == (sorted(told), 100)
    assert exporters.is_current(entry, request)


def test_each_gpu_more_is_in_the_plan(tmp_path: Path) -> None:
    onnx = onnx_samples.write(tmp_path / "model.onnx", precision="fp16")
    entries = [
        exporters.export(
            "tensorrt-rtx", request_of(tmp_path / str(count), onnx, "fp16", options=BuildOptions(compute_capabilities=ALL[:count]))
        )
        for count in (1, 2)
    ]
    assert [entry.target["compute_capabilities"] for entry in entries] == [["8.6"], ["8.6", "8.9"]]
    assert len({entry.files["tensorrt-rtx-fp16/model.plan"] for entry in entries}) == 2


def test_a_dynamic_batch_is_one_plan(tmp_path: Path) -> None:
    onnx = onnx_samples.write(tmp_path / "model.onnx", batch="N")
    options = BuildOptions(compute_capabilities=("8.9",), max_batch=8)
    entry = exporters.export("tensorrt-rtx", request_of(tmp_path / "out", onnx, "fp32", batch="dynamic", options=options))
    assert (entry.name, entry.inputs[0].shape, entry.outputs[0].shape) == ("tensorrt-rtx-fp32-dynamic", ("batch", 3, 8, 8), ("batch", 4))
    assert json.loads(entry.toolchain["profile"]) == {"x": [[1, 3, 8, 8], [1, 3, 8, 8], [8, 3, 8, 8]]}


def test_fp16_asked_of_an_fp32_file_is_refused(tmp_path: Path) -> None:
    onnx = onnx_samples.write(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="computes in the types of the ONNX file"):
        exporters.export("tensorrt-rtx", request_of(tmp_path / "out", onnx, "fp16"))


def test_a_file_that_only_stores_fp16_does_not_pass_for_fp16(tmp_path: Path) -> None:
    import onnx
    from onnx import helper, numpy_helper

    path = onnx_samples.write(tmp_path / "model.onnx")
    model = onnx.load(str(path))
    # As a careless converter does: the weights are stored in half, and widened again before they are used.
    for tensor in list(model.graph.initializer):
        half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float16"), tensor.name + ".half")
        model.graph.initializer.remove(tensor)
        model.graph.initializer.append(half)
        model.graph.node.insert(0, helper.make_node("Cast", [half.name], [tensor.name], to=onnx.TensorProto.FLOAT))
    onnx.save_model(model, str(path))
    with pytest.raises(PrecisionError, match=r"fp16 was asked for, and 0\.0 %"):
        exporters.export("tensorrt-rtx", request_of(tmp_path / "out", path, "fp16"))
    options = BuildOptions(compute_capabilities=("8.9",), allow_mixed=True)
    mixed = exporters.export("tensorrt-rtx", request_of(tmp_path / "mixed", path, "fp16", options=options))
    assert (mixed.precision_proof["share"], mixed.precision_proof["types"]) == (0.0, {"float": 2})
    assert mixed.precision_proof["unproven"] == ["/conv/Conv (float)", "/fc/Gemm (float)"]


def test_a_gpu_that_it_does_not_know_is_refused_with_those_it_does(tmp_path: Path) -> None:
    onnx = onnx_samples.write(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=r"builds for no GPU of compute capability 9\.0") as caught:
        exporters.export("tensorrt-rtx", request_of(tmp_path / "out", onnx, "fp32", options=BuildOptions(compute_capabilities=("9.0",))))
    assert "8.6, 8.9" in str(caught.value)
    with pytest.raises(RuntimeUnavailable, match="no GPU here"):
        exporters.export("tensorrt-rtx", request_of(tmp_path / "out", onnx, "fp32", options=BuildOptions()))


def test_options_reach_the_builder_and_are_read_back(tmp_path: Path) -> None:
    onnx = onnx_samples.write(tmp_path / "model.onnx")
    options = BuildOptions(compute_capabilities=("8.9",), workspace=2**26, optimization_level=1)
    entry = exporters.export("tensorrt-rtx", request_of(tmp_path / "out", onnx, "fp32", options=options))
    assert (entry.toolchain["workspace"], entry.toolchain["optimization_level"]) == (str(2**26), "1")


def test_gpus_that_the_builder_refuses_are_named() -> None:
    config = types.SimpleNamespace(set_compute_capability=lambda capability, index: index < 2)
    with pytest.raises(UnsupportedOperator, match=r"refuses to build for 8\.6, 8\.9, 12\.0"):
        tensorrt_config.aim(trt.load("tensorrt-rtx"), config, ALL)


def test_a_plan_without_its_header_is_not_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "read_header", lambda path: None)
    with pytest.raises(CorruptArtifact, match="header is not its own"):
        exporters.export("tensorrt-rtx", request_of(tmp_path / "out", onnx_samples.write(tmp_path / "model.onnx"), "fp32"))


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    onnx = onnx_samples.write(tmp_path / "model.onnx", operator="NoSuchOperator")
    title = trt.load("tensorrt-rtx").title
    with pytest.raises(UnsupportedOperator, match=rf"{title} cannot parse model\.onnx: node /relu/Relu \(NoSuchOperator\): ."):
        exporters.export("tensorrt-rtx", request_of(tmp_path / "out", onnx, "fp32"))


def test_ctrl_c_while_the_library_logs_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Python handles a signal in the next line that the main thread runs: here the logger's, and TensorRT drops what that raises."""
    sent: list[str] = []

    def emit(record: logging.LogRecord) -> None:
        if threading.current_thread() is threading.main_thread():
            sent.append(record.getMessage())
            signal.raise_signal(signal.SIGINT)

    handler, log = logging.Handler(logging.DEBUG), logging.getLogger("accel.trt.library")
    monkeypatch.setattr(handler, "emit", emit)
    caplog.set_level(logging.DEBUG, logger=log.name)
    monkeypatch.setattr(log, "handlers", [handler])
    monkeypatch.setattr(tensorrt, "build", lambda *arguments: pytest.fail("the interrupt was lost"))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            exporters.export("tensorrt-rtx", request_of(tmp_path / "out", onnx_samples.write(tmp_path / "model.onnx"), "fp32"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert sent


def test_ctrl_c_ends_a_real_build_and_nothing_is_written(tmp_path: Path) -> None:
    onnx = onnx_samples.write(tmp_path / "model.onnx")
    with pressed() as press:
        request = request_of(tmp_path / "out", onnx, "fp32", progress=press.hold)
        with pytest.raises(KeyboardInterrupt):
            exporters.export("tensorrt-rtx", request)
        assert list(request.folder.iterdir()) == []
        assert not [thread for thread in threading.enumerate() if thread.name == "TensorRT build"]
