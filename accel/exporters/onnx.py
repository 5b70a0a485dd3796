"""ONNX: up to opset 17 through torch's TorchScript-based exporter, from 18 through the one that is built on torch.export."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from accel.errors import CorruptArtifact, UsageError
from accel.exporters.describing import describe
from accel.exporters.formats import FORMATS
from accel.exporters.onnx_precision import prove
from accel.exporters.preparing import prepare, tracing
from accel.exporters.request import ExportRequest, plan
from accel.files import disk_errors
from accel.optional import require, version_of
from accel.types import EngineEntry, TensorSpec

FORMAT = "onnx"
LAST_LEGACY_OPSET = 17
MAX_IR = {True: 9, False: 11}
"""Is the opset a legacy one → the highest IR version written: TensorRT 8.6 reads up to 9, onnxruntime 1.23 up to 11."""

_PROTOBUF_LIMIT = 2**31


def export(request: ExportRequest) -> EngineEntry:
    """Write `model.onnx`, one file with its weights inside; raises as `exporters.export` does."""
    torch, onnx = require("torch", extra="train"), require("onnx", extra="onnx")
    started = time.monotonic()
    planned = plan(FORMAT, request)
    opset = planned.opset or LAST_LEGACY_OPSET
    if planned.size_bytes >= _PROTOBUF_LIMIT:
        raise UsageError(f"the weights take {planned.size_bytes / 2**30:.1f} GiB; one ONNX file holds less than 2", remedy="--fp16")
    module, example = prepare(request)
    path = request.folder / FORMATS[FORMAT].file
    legacy = opset <= LAST_LEGACY_OPSET
    with tracing(FORMAT), disk_errors(path):
        model = (_export_legacy if legacy else _export_dynamo)(module, example, request, opset, path)
    _clean(model, MAX_IR[legacy])
    _check(model, opset, path)
    with disk_errors(path):
        onnx.save_model(model, str(path))
    toolchain = {"exporter": "torch.onnx, TorchScript-based" if legacy else "torch.onnx, dynamo", "torch": torch.__version__}
    packages = ("onnx",) if legacy else ("onnx", "onnxscript")
    versions = {name: found for name in packages if (found := version_of(name)) is not None}
    proof = prove(onnx.load(str(path)), request.precision)
    return describe(FORMAT, request, started, toolchain={**toolchain, **versions}, precision_proof=proof)


def _export_legacy(module: Any, example: tuple[Any, ...], request: ExportRequest, opset: int, path: Path) -> Any:
    torch, onnx = require("torch", extra="train"), require("onnx", extra="onnx")
    axes = {spec.name: _dynamic(spec) for spec in (*request.native(request.inputs), *request.native(request.outputs))}
    torch.onnx.export(
        module,
        example,
        str(path),
        dynamo=False,
        opset_version=opset,
        input_names=[spec.name for spec in request.inputs],
        output_names=[spec.name for spec in request.outputs],
        dynamic_axes={name: sizes for name, sizes in axes.items() if sizes} or None,
    )
    return onnx.load(str(path))


def _export_dynamo(module: Any, example: tuple[Any, ...], request: ExportRequest, opset: int, path: Path) -> Any:
    torch = require("torch", extra="train")
    require("onnxscript", extra="onnx")
    # One Dim object a name: the same name on two inputs means the same size.
    names = {size for spec in request.native(request.inputs) for size in _dynamic(spec).values()}
    dims = {name: torch.export.Dim(name) for name in names}
    shapes = tuple({axis: dims[name] for axis, name in _dynamic(spec).items()} for spec in request.native(request.inputs))
    program = torch.onnx.export(
        module,
        example,
        dynamo=True,
        external_data=False,
        opset_version=opset,
        input_names=[spec.name for spec in request.inputs],
        output_names=[spec.name for spec in request.outputs],
        dynamic_shapes=shapes if names else None,
        verbose=False,
    )
    return program.model_proto


def _dynamic(spec: TensorSpec) -> dict[int, str]:
    return {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)}


def _clean(model: Any, max_ir: int) -> None:
    """Drop stack traces, which name files of the machine that exported, and lower the IR version where it is only a label."""
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    model.ir_version = min(model.ir_version, max_ir)


def _check(model: Any, opset: int, path: Path) -> None:
    onnx = require("onnx", extra="onnx")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CorruptArtifact(f"torch wrote an ONNX model that is not valid: {error}", remedy="try another --opset") from error
    found = {item.version for item in model.opset_import if item.domain in ("", "ai.onnx")}
    if found != {opset}:
        raise UsageError(
            f"opset {opset} was asked for; torch {version_of('torch')} wrote {found} into {path.name}", remedy="another --opset"
        )
