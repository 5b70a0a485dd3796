"""TensorRT and TensorRT-RTX: a plan from an ONNX file, the same path for 8.6, 10 and 11, its precision proven after the build."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

from accel.device.select import describe as describe_gpu
from accel.device.version import driver_version
from accel.engines import onnx_file
from accel.errors import CorruptArtifact, DeviceUnavailable, UsageError
from accel.exporters import tensorrt_cache as timing
from accel.exporters import tensorrt_precision as precision
from accel.exporters.describing import describe
from accel.exporters.formats import FORMATS
from accel.exporters.request import ExportRequest, plan
from accel.exporters.tensorrt_build import build
from accel.exporters.tensorrt_config import HARDWARE_LEVEL, Config, aim, capabilities, configure
from accel.exporters.tensorrt_macs import Work, measure
from accel.exporters.tensorrt_network import Network, check_source, parse
from accel.files import disk_errors, sha256_file, write_text
from accel.trt import Library, load, read_header
from accel.types import EngineEntry, TensorSpec

LAYERS = "layers.json"


def export(request: ExportRequest) -> EngineEntry:
    """Build `model.plan` for the GPU of this machine; raises as `exporters.export` does, and PrecisionError."""
    return _export("tensorrt", request)


def export_rtx(request: ExportRequest) -> EngineEntry:
    """Build `model.plan` for GeForce and RTX cards, which need not be here; raises as `export`."""
    return _export("tensorrt-rtx", request)


def is_current(entry: EngineEntry, request: ExportRequest) -> bool:
    """Whether `export` would build what `entry` is: from the same ONNX file, with the same options, for the same version and GPU."""
    return _is_current("tensorrt", entry, request)


def is_current_rtx(entry: EngineEntry, request: ExportRequest) -> bool:
    """As `is_current`, of `export_rtx`."""
    return _is_current("tensorrt-rtx", entry, request)


def _export(format: str, request: ExportRequest) -> EngineEntry:
    library = load(format)
    started = time.monotonic()
    planned = plan(format, request)
    if request.onnx is None:
        raise UsageError(f"{format} is built from an ONNX file, and none was given", remedy="export the model to onnx first")
    source = onnx_file.read(request.onnx)
    check_source(library, source, request.precision, request.batch, request.model)
    target = _target(library, request)
    parsed = parse(library, source)
    with library.listening():
        configured = configure(parsed, request)
    blob = _build(parsed, configured, request, f"build {planned.name}")
    path = request.folder / FORMATS[format].file
    with disk_errors(path):
        path.write_bytes(blob)
    proof = _prove(parsed, configured, blob, request)
    header = read_header(path)
    if header is None and library.flavor.ahead_of_time:
        raise CorruptArtifact(f"{library.title} wrote a plan whose header is not its own", remedy="run `accel doctor`")
    version = ".".join(map(str, library.version if header is None else header.version))
    toolchain = {
        "exporter": library.flavor.title,
        library.flavor.name: version,
        "onnx_sha256": sha256_file(request.onnx),
        "options": _options(request),
        **configured.facts,
        **({} if library.flavor.ahead_of_time else {"driver": driver_version() or "unknown"}),
    }
    entry = describe(
        format,
        request,
        started,
        toolchain=toolchain,
        precision_proof=proof,
        target={**target, library.flavor.name: version},
    )
    inputs, outputs = _tensors(parsed, request)
    return dataclasses.replace(entry, inputs=inputs, outputs=outputs)


def _is_current(format: str, entry: EngineEntry, request: ExportRequest) -> bool:
    library = load(format)
    if request.onnx is None:
        return False
    wanted = {"onnx_sha256": sha256_file(request.onnx), "options": _options(request)}
    target = {key: value for key, value in entry.target.items() if key != library.flavor.name}
    version = str(entry.target.get(library.flavor.name, "")).split(".")
    known = [str(number) for number in library.version]
    return (
        all(entry.toolchain.get(key) == value for key, value in wanted.items())
        and version[: len(known)] == known[: len(version)]
        and target == {key: value for key, value in _target(library, request).items() if key != library.flavor.name}
    )


def _options(request: ExportRequest) -> str:
    """What was asked for, in one spelling; where timings are kept changes no plan that anybody could tell apart."""
    return json.dumps({key: value for key, value in request.options.given().items() if key != "timing_cache"}, sort_keys=True)


def _target(library: Library, request: ExportRequest) -> dict[str, Any]:
    """What the plan will be tied to; raises DeviceUnavailable where there is no GPU to build on."""
    if library.flavor.ahead_of_time:
        return {"compute_capabilities": list(capabilities(library, request)), "device": "cuda"}
    if request.device == "cpu":
        raise DeviceUnavailable(
            f"{library.title} builds on the GPU that the plan is for, and the device is cpu",
            remedy="run it with a GPU (--device cuda), or build for RTX cards: --flavor rtx --compute-capability 8.6,8.9,12.0",
        )
    gpu = describe_gpu(request.device)
    return {
        "gpu": gpu.name,
        "compute_capability": gpu.compute_capability,
        "device": "cuda",
        **({"version_compatible": True} if request.options.version_compatible else {}),
        **({"hardware_compatible": HARDWARE_LEVEL} if request.options.hardware_compatible else {}),
    }


def _build(parsed: Network, configured: Config, request: ExportRequest, step: str) -> bytes:
    """Build, with a timing cache where kernels are timed at all."""
    library, config = parsed.library, configured.config
    if library.flavor.ahead_of_time:
        aim(library, config, capabilities(library, request))
        return build(parsed, config, request.progress, step)
    path = timing.path_of(library, request)
    with library.listening():
        kept = None if path is None else timing.attach(config, path)
    blob = build(parsed, config, request.progress, step, request.device)
    if path is not None:
        timing.store(kept, path)
    return blob


def _prove(parsed: Network, configured: Config, blob: bytes, request: ExportRequest) -> Mapping[str, Any]:
    """Prove the precision, leave the list of layers beside the plan, and return the proof for the entry."""
    library, options = parsed.library, request.options
    works = measure(library, parsed.network, options.batches[1] if isinstance(request.batch, str) else request.batch)
    layers: list[Any] = []
    if library.flavor.ahead_of_time:
        proof = precision.read_network(works, request.precision)
    else:
        layers = precision.layers_of(library, blob, configured.profile)
        proof = precision.inspect(works, layers, request.precision)
    precision.demand(proof, request.precision, allow_mixed=options.allow_mixed)
    write_text(request.folder / LAYERS, _layer_list(works, layers))
    return {**proof.to_dict(), "proven": precision.is_proven(proof, request.precision), "typing": configured.facts["typing"]}


def _layer_list(works: list[Work], layers: list[Any]) -> str:
    network = [{"name": work.name, "kind": work.kind, "macs": work.macs, "types": list(work.dtypes)} for work in works]
    return json.dumps({"network": network, "engine": layers}, indent=1) + "\n"


def _tensors(parsed: Network, request: ExportRequest) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs as the plan has them, in the order of the network."""
    network = parsed.network
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return (
        tuple(_spec(parsed.library, tensor, request, request.inputs, index) for index, tensor in enumerate(inputs)),
        tuple(_spec(parsed.library, tensor, request, request.outputs, index) for index, tensor in enumerate(outputs)),
    )


def _spec(library: Library, tensor: Any, request: ExportRequest, public: tuple[TensorSpec, ...], index: int) -> TensorSpec:
    batch: int | str = "batch" if isinstance(request.batch, str) else request.batch
    shape = tuple(batch if int(size) == -1 else int(size) for size in tensor.shape)
    layout = public[index].layout if index < len(public) and len(public[index].shape) == len(shape) else ""
    return TensorSpec(str(tensor.name), shape, library.dtype_name(tensor.dtype), layout)
