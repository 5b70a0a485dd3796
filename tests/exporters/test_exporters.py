"""Real exports of tiny modules: what is written, in which dtypes, and what is refused."""

import dataclasses
import errno
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel import exporters
from accel.errors import DiskFull, PrecisionError, UnknownName, UnsupportedOperator, UsageError
from accel.exporters import ExportRequest
from accel.files import sha256_file
from accel.types import EngineEntry, TensorSpec

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

INPUT = TensorSpec("input", ("batch", 3, 8, 8), "float32", "NCHW")
OUTPUT = TensorSpec("logits", ("batch", 4), "float32", "NC")


def net() -> Any:
    nn = torch.nn
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6, eps=1e-3), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    module = nn.Sequential(*layers, nn.Linear(6, 4)).eval()
    module[1].running_var.uniform_(0.5, 2)
    return module


def request_of(folder: Path, module: Any = None, **fields: Any) -> ExportRequest:
    folder.mkdir(exist_ok=True)
    return ExportRequest(
        **{"module": module or net(), "inputs": (INPUT,), "outputs": (OUTPUT,), "precision": "fp32", "folder": folder, **fields}
    )


def run_onnx(file: Path, array: Any) -> Any:
    session = pytest.importorskip("onnxruntime").InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input": array})[0]


def run_torchscript(file: Path, array: Any) -> Any:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(str(file))(torch.from_numpy(array)).numpy()


RUNNERS = {"onnx": run_onnx, "torchscript": run_torchscript}
LIMITS = {"fp32": 1e-4, "fp16": 2e-2}


def assert_parity(entry: EngineEntry, request: ExportRequest, batch: int = 1, limits: Mapping[str, float] = LIMITS) -> None:
    file = request.folder / next(iter(entry.files)).partition("/")[2]
    assert entry.files == {f"{entry.name}/{file.name}": sha256_file(file)}
    array = torch.randn(batch, *entry.inputs[0].shape[1:])
    with torch.no_grad():
        expected = request.module(array).numpy()
    found = RUNNERS[entry.format](file, array.numpy().astype(entry.inputs[0].dtype))
    assert found.dtype == entry.outputs[0].dtype
    assert np.abs(found.astype(np.float32) - expected).max() <= limits[entry.precision] * np.abs(expected).max()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("format", ["onnx", "torchscript"])
@pytest.mark.filterwarnings("error::DeprecationWarning", "error::FutureWarning")
def test_an_engine_has_the_dtypes_that_were_asked_for(tmp_path: Path, format: str, precision: str) -> None:
    request = request_of(tmp_path / "out", precision=precision)
    entry = exporters.export(format, request)
    dtype = {"fp32": "float32", "fp16": "float16"}[precision]
    assert entry.name == f"{format}-{precision}"
    assert (entry.inputs[0].shape, entry.inputs[0].dtype) == ((1, 3, 8, 8), dtype)
    assert (entry.outputs[0].shape, entry.outputs[0].dtype) == ((1, 4), dtype)
    assert dtype in json.dumps(dict(entry.precision_proof))
    assert entry.toolchain["torch"] == torch.__version__
    assert entry.built_s > 0
    assert entry.parity == {}
    assert_parity(entry, request)
    assert any(isinstance(layer, torch.nn.BatchNorm2d) for layer in request.module)
    assert {tensor.dtype for tensor in request.module.parameters()} == {torch.float32}


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_a_dynamic_engine_takes_every_batch(tmp_path: Path, format: str) -> None:
    request = request_of(tmp_path / "out", batch="dynamic")
    entry = exporters.export(format, request)
    assert entry.name == f"{format}-fp32-dynamic"
    assert entry.inputs[0].shape == ("batch", 3, 8, 8)
    for batch in (1, 2, 5):
        assert_parity(entry, request, batch)


def test_onnx_is_opset_17_with_no_batchnorm_and_no_trace_of_this_machine(tmp_path: Path) -> None:
    request = request_of(tmp_path / "out", batch=2)
    entry = exporters.export("onnx", request)
    assert (entry.name, entry.opset) == ("onnx-fp32-b2", 17)
    assert entry.toolchain["exporter"] == "torch.onnx, TorchScript-based"
    assert "onnx" in entry.toolchain
    assert entry.target == {}
    model = onnx.load(str(request.folder / "model.onnx"))
    assert model.ir_version <= 9
    assert model.opset_import[0].version == 17
    assert [node.op_type for node in model.graph.node] == ["Conv", "HardSwish", "GlobalAveragePool", "Flatten", "Gemm"]
    assert entry.precision_proof["compute"] == {"float32": 2}
    assert str(Path(__file__).parent).encode() not in (request.folder / "model.onnx").read_bytes()
    again = exporters.export("onnx", request_of(tmp_path / "again", batch=2))
    assert again.files == entry.files


def test_a_newer_opset_goes_through_the_newer_exporter(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    request = request_of(tmp_path / "out", precision="fp16", batch="dynamic", opset=20)
    entry = exporters.export("onnx", request)
    assert entry.opset == 20
    assert entry.toolchain["exporter"] == "torch.onnx, dynamo"
    assert "onnxscript" in entry.toolchain
    model = onnx.load(str(request.folder / "model.onnx"))
    assert (model.opset_import[0].version, model.ir_version) == (20, 10)
    assert [path.name for path in request.folder.iterdir()] == ["model.onnx"]
    assert str(Path(__file__).parent).encode() not in (request.folder / "model.onnx").read_bytes()
    for batch in (1, 3):
        assert_parity(entry, request, batch)


def test_a_trace_leaves_tf32_and_cudnns_search_to_whoever_runs_it(tmp_path: Path) -> None:
    nn = torch.nn
    layers = [nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 6, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)]
    request = request_of(tmp_path / "out", nn.Sequential(*layers).eval())
    assert_parity(exporters.export("torchscript", request), request)
    operators = {node.kind() for node in torch.jit.load(str(request.folder / "model.ts")).inlined_graph.nodes()}
    # aten::_convolution carries allow_tf32 as a constant of the tracing process; the plain forms ask the running one.
    assert {"aten::conv2d", "aten::convolution"} <= operators
    assert "aten::_convolution" not in operators


def test_torchscript_is_tied_to_its_torch(tmp_path: Path) -> None:
    assert exporters.export("torchscript", request_of(tmp_path / "out")).target == {"torch": torch.__version__}


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small"])
def test_the_shipped_architectures_are_exported(tmp_path: Path, name: str) -> None:
    import importlib

    pytest.importorskip("torchvision")
    module = importlib.import_module(f"accel.trainers.models.{name}").build(num_classes=4).eval()
    spec = dataclasses.replace(INPUT, shape=("batch", 3, 32, 32))
    for format in RUNNERS:
        request = request_of(tmp_path / format, module, inputs=(spec,))
        entry = exporters.export(format, request)
        assert_parity(entry, request)
    fp16 = exporters.export("onnx", request_of(tmp_path / "half", module, inputs=(spec,), precision="fp16"))
    assert set(fp16.precision_proof["compute"]) == {"float16"}
    assert (tmp_path / "half/model.onnx").stat().st_size < 0.55 * (tmp_path / "onnx/model.onnx").stat().st_size


def settled(module: Any) -> Any:
    """`module` with the BatchNorm statistics of noise: with fresh ones the logits of a deep network are too small for FP16."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        module.train()(torch.randn(8, 3, 32, 32))
    return module.eval()


# Random weights carry FP16's rounding through fifty layers and let it grow; an engine that is wrong is off by about 1.
RANDOM_LIMITS = {**LIMITS, "fp16": 1e-1}
NEW = ["shufflenetv2_x1", "mobilenetv2", "efficientnet_b0", "alexnet", "naivenet", "airbench94", "student_a", "student_b", "student_c"]


@pytest.mark.parametrize("name", NEW)
def test_every_model_becomes_an_onnx_engine_of_opset_17_with_its_logits(tmp_path: Path, name: str) -> None:
    import importlib

    file = importlib.import_module(f"accel.trainers.models.{name}")
    torch.manual_seed(0)
    module = settled(file.build(num_classes=4))
    module = file.deployed(module) if hasattr(file, "deployed") else module
    spec = dataclasses.replace(INPUT, shape=("batch", 3, 32, 32))
    for precision, batch in (("fp32", 1), ("fp16", 1), ("fp32", "dynamic")):
        request = request_of(tmp_path / f"{precision}-{batch}", module, inputs=(spec,), precision=precision, batch=batch)
        entry = exporters.export("onnx", request)
        assert entry.opset == 17
        assert set(entry.precision_proof["compute"]) == {{"fp32": "float32", "fp16": "float16"}[precision]}
        assert "BatchNormalization" not in {node.op_type for node in onnx.load(str(request.folder / "model.onnx")).graph.node}
        assert_parity(entry, request, batch=3 if batch == "dynamic" else 1, limits=RANDOM_LIMITS)
    request = request_of(tmp_path / "torchscript", module, inputs=(spec,))
    assert_parity(exporters.export("torchscript", request), request)


def test_a_plan_says_what_would_be_written_and_writes_nothing(tmp_path: Path) -> None:
    request = request_of(tmp_path / "out", precision="fp16", batch=8)
    plan = exporters.plan("onnx", request)
    assert plan.to_dict() == {
        "name": "onnx-fp16-b8",
        "format": "onnx",
        "precision": "fp16",
        "batch": 8,
        "opset": 17,
        "files": ["onnx-fp16-b8/model.onnx"],
        "size_bytes": 2 * sum(weight.numel() for weight in request.module.parameters()),
    }
    assert list(request.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("format", "fields", "error", "said"),
    [
        ("gguf", {}, UnknownName, r"no export format called 'gguf'\n.*fused, onnx, tensorrt, tensorrt-rtx, torchscript"),
        ("onnx", {"precision": "bf16"}, UnknownName, r"no onnx export precision called 'bf16'\n.*fp16, fp32"),
        ("onnx", {"opset": 9}, UsageError, r"in the opsets 11 to 23; 9 was asked for\n.*--opset 17"),
        ("torchscript", {"opset": 17}, UsageError, "torchscript has no opset"),
        ("onnx", {"batch": 0}, UsageError, "the batch 0 is neither"),
        ("onnx", {"batch": "many"}, UsageError, "the batch 'many' is neither"),
        (
            "onnx",
            {"inputs": (dataclasses.replace(INPUT, shape=("batch", 1, 8, 8)),)},
            UsageError,
            r"does not take input float32 \(1, 1, 8, 8\)",
        ),
        (
            "onnx",
            {"outputs": (dataclasses.replace(OUTPUT, shape=("batch", 9)),)},
            UsageError,
            r"shapes \[\(1, 4\)\]; \[\(1, 9\)\] was declared",
        ),
    ],
)
def test_a_request_that_cannot_be_met_says_why(
    tmp_path: Path, format: str, fields: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        exporters.export(format, request_of(tmp_path / "out", **fields))
    assert list((tmp_path / "out").iterdir()) == []


class Unsupported(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.special.bessel_j0(x).mean((2, 3))


def test_an_unsupported_operator_is_named_and_the_cause_chained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = (dataclasses.replace(OUTPUT, shape=("batch", 3)),)
    request = request_of(tmp_path / "out", Unsupported().eval(), outputs=outputs)
    with pytest.raises(
        UnsupportedOperator, match=r"the operator special_bessel_j0 cannot be exported to onnx: .*opset version 17"
    ) as caught:
        exporters.export("onnx", request)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert caught.value.exit_code == 2
    assert capsys.readouterr().out == ""


class Interrupted(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.body = net()

    def forward(self, x: Any) -> Any:
        self.calls += 1
        if self.calls > 1:
            raise KeyboardInterrupt
        return self.body(x)


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_ctrl_c_ends_an_export_and_leaves_no_file(tmp_path: Path, format: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        exporters.export(format, request_of(tmp_path / "out", Interrupted().eval()))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(("format", "call"), [("onnx", "onnx.save_model"), ("torchscript", "pathlib.Path.write_bytes")])
def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, call: str) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    request = request_of(tmp_path / "out")
    monkeypatch.setattr(call, fail)
    with pytest.raises(DiskFull):
        exporters.export(format, request)


class Widening(torch.nn.Module):
    """Multiplies in FP32 whatever it is cast to."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(192, 4)

    def forward(self, x: Any) -> Any:
        return torch.nn.functional.linear(x.flatten(1).float(), self.linear.weight.float()).to(x.dtype)


def test_fp32_arithmetic_in_an_fp16_file_is_refused(tmp_path: Path) -> None:
    module = Widening().eval()
    with pytest.raises(PrecisionError, match=r"fp16 was asked for; (Gemm|MatMul) .* in float32"):
        exporters.export("onnx", request_of(tmp_path / "out", module, precision="fp16"))


class Stubborn(torch.nn.Module):
    """Keeps a float32 buffer through a cast."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(192, 4)
        self.register_buffer("table", torch.ones(4))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.linear._apply(fn, recurse)
        return self

    def forward(self, x: Any) -> Any:
        return self.linear(x.flatten(1)) * self.table.to(x.dtype)


def test_fp32_weights_in_an_fp16_torchscript_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PrecisionError, match="1 weights of the TorchScript file are not, the first is table"):
        exporters.export("torchscript", request_of(tmp_path / "out", Stubborn().eval(), precision="fp16"))
