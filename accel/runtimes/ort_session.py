"""ONNX Runtime's session on the provider that a variant asks for, alone or with the CUDA provider behind it; and what became of it."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from accel.device import driver
from accel.errors import CorruptArtifact, RuntimeUnavailable
from accel.files import cache_dir, sha256_file
from accel.optional import installed, require
from accel.types import EngineSource

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
TENSORRT, RTX = "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"
OF_OPTION = {"trt-ep": TENSORRT, "rtx-ep": RTX}
"""Option of a variant → the provider that it asks for in place of CUDA's."""

_RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
"""NVIDIA's wheel with the TensorRT-RTX provider, which ONNX Runtime loads as a plugin."""

_REMEDIES = {
    CUDA: "pip uninstall onnxruntime onnxruntime-gpu; pip install 'accel-engines[ort]', and see `accel doctor`; "
    "or ask for --device cpu by name",
    CPU: "accel export MODEL --to onnx --opset 17, or another runtime",
    TENSORRT: "pip install 'tensorrt-cu13>=10,<11' and name its folder tensorrt_libs in LD_LIBRARY_PATH (this provider links "
    "libnvinfer.so.10, whichever other TensorRT is installed); or run the same model with the runtime tensorrt",
    RTX: "pip install onnxruntime-ep-nv-tensorrt-rtx, on a GeForce or RTX card (Ampere or later); "
    "or run the same model with the runtime tensorrt-rtx",
}


def wanted(source: EngineSource) -> str:
    """The provider that `source` is to run on."""
    if source.device == "cpu":
        return CPU
    return next((OF_OPTION[option] for option in source.variant.options if option in OF_OPTION), CUDA)


def make_session(ort: Any, source: EngineSource, stream: int | None) -> Any:
    """An InferenceSession of `source.file` whose first provider is the one asked for, on the caller's stream.

    Raises:
        RuntimeUnavailable: the provider is not here, cannot run the model, or took no part in it; a fallback is never accepted.
        CorruptArtifact: the file is no ONNX model.
    """
    provider = wanted(source)
    options = _session_options(ort, source)
    if provider == CPU:
        return _load(ort, source, options, provider, [CPU])
    if hasattr(ort, "preload_dlls"):  # from 1.21 on
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it cannot find, and stdout is for data
            ort.preload_dlls()
    # No way back to the CPU: a node that the providers lack is an error, not a silent trip.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if provider == RTX and RTX not in ort.get_available_providers():
        options.add_provider_for_devices([_rtx_device(ort, source)], _rtx_options(source, stream))
        session = _load(ort, source, options, provider, None)
    else:
        if provider not in ort.get_available_providers():
            raise _unavailable(ort, source, provider, f"has only {', '.join(ort.get_available_providers())}")
        session = _load(ort, source, options, provider, _providers(source, provider, stream))
    if session.get_providers()[0] != provider:
        raise _unavailable(ort, source, provider, f"took {session.get_providers()[0]}")
    _demand_settings(ort, source, session)
    return session


def placement(ort: Any, source: EngineSource, session: Any) -> dict[str, Any]:
    """How many nodes run where, from ONNX Runtime's own record, which versions before 1.24 do not keep.

    Raises:
        RuntimeUnavailable: the provider that was asked for got none of them.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return {}
    counts: Counter[str] = Counter()
    for subgraph in session.get_provider_graph_assignment_info():
        counts[subgraph.ep_name] += len(subgraph.get_nodes())
    provider = wanted(source)
    if provider != CUDA and not counts[provider]:
        raise _unavailable(ort, source, provider, f"gave it no node of the model: {dict(counts)}")
    found: dict[str, Any] = {"gpu_nodes": counts.total() - counts[CPU], "cpu_nodes": counts[CPU]}
    # One provider needs no breakdown.
    return found if provider == CUDA else {**found, "placement": dict(counts)}


def plan_cached(source: EngineSource) -> bool | None:
    """Whether TensorRT's provider will find a plan that an earlier session built; None for a provider that keeps none."""
    return any(_plan_folder(source).glob("*.engine")) if wanted(source) == TENSORRT else None


def failures(ort: Any) -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for what it cannot do; its exceptions have no class in common."""
    state = ort.capi.onnxruntime_pybind11_state
    return (state.EPFail, state.Fail, state.NotImplemented, state.RuntimeException, state.InvalidArgument, RuntimeError, ValueError)


def first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _session_options(ort: Any, source: EngineSource) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if source.threads is not None:
        options.intra_op_num_threads = source.threads
        options.inter_op_num_threads = 1
    return options


def _providers(source: EngineSource, provider: str, stream: int | None) -> list[tuple[str, dict[str, str]]]:
    cuda = {
        "device_id": str(driver.index_of(source.device)),
        "user_compute_stream": str(stream),
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "use_tf32": "1" if source.variant.precision == "tf32" else "0",
        **_asked(source),
    }
    if provider == CUDA:
        return [(CUDA, cuda)]
    if provider == TENSORRT:
        # What TensorRT does not take goes to CUDA, and is counted.
        return [(TENSORRT, _tensorrt_options(source, stream)), (CUDA, cuda)]
    return [(provider, _rtx_options(source, stream))]


def _asked(source: EngineSource) -> dict[str, str]:
    """The CUDA provider's options that the variant's own options stand for."""
    names = {"graph": "enable_cuda_graph", "nhwc": "prefer_nhwc"}
    return {names[option]: "1" for option in source.variant.options if option in names}


def _demand_settings(ort: Any, source: EngineSource, session: Any) -> None:
    found = session.get_provider_options().get(CUDA, {})
    for name, value in _asked(source).items():
        if found.get(name) != value:
            raise _unavailable(ort, source, CUDA, f"read {name}={value} and has {name}={found.get(name)}")


def _plan_folder(source: EngineSource) -> Path:
    # ONNX Runtime names a cached engine by the graph without its weights, so every file gets a folder of its own.
    return cache_dir() / "onnxruntime-tensorrt" / sha256_file(Path(str(source.file)))[:16]


def _tensorrt_options(source: EngineSource, stream: int | None) -> dict[str, str]:
    folder = _plan_folder(source)
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "device_id": str(driver.index_of(source.device)),
        "has_user_compute_stream": "1",
        "user_compute_stream": str(stream),
        "trt_fp16_enable": "1" if source.variant.precision == "fp16" else "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }


def _rtx_options(source: EngineSource, stream: int | None) -> dict[str, str]:
    index = str(driver.index_of(source.device))
    return {"device_id": index, "has_user_compute_stream": "1", "user_compute_stream": str(stream)}


def _rtx_device(ort: Any, source: EngineSource) -> Any:
    """ONNX Runtime's handle of the GPU on the plugin, which is registered on the first call."""
    if not hasattr(ort, "get_ep_devices"):  # before 1.23
        raise _unavailable(ort, source, RTX, "cannot load providers as plugins")
    devices = [device for device in ort.get_ep_devices() if device.ep_name == RTX]
    if not devices:
        if not installed(_RTX_PLUGIN):
            raise _unavailable(ort, source, RTX, f"has only {', '.join(ort.get_available_providers())}, and no plugin is installed")
        plugin = require(_RTX_PLUGIN, "ort")
        try:
            ort.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
        except failures(ort) as error:
            raise _unavailable(ort, source, RTX, f"cannot load the plugin: {first_line(error)}") from error
        devices = [device for device in ort.get_ep_devices() if device.ep_name == RTX]
    index = driver.index_of(source.device)
    if index >= len(devices):
        raise _unavailable(ort, source, RTX, f"sees {len(devices)} GPU(s) that the plugin supports")
    return devices[index]


def _load(ort: Any, source: EngineSource, options: Any, provider: str, providers: list[Any] | None) -> Any:
    state = ort.capi.onnxruntime_pybind11_state
    unreadable = (state.InvalidProtobuf, state.InvalidGraph, state.NoSuchFile, state.NoModel)
    try:
        return ort.InferenceSession(str(source.file), options, providers=providers, enable_fallback=0)
    except unreadable as error:
        raise CorruptArtifact(
            f"onnxruntime {ort.__version__} cannot read {source.file}: {first_line(error)}", remedy="accel export MODEL --to onnx"
        ) from error
    except failures(ort) as error:
        raise RuntimeUnavailable(
            f"onnxruntime {ort.__version__} cannot run {source.file} on {source.device}: {first_line(error)}", remedy=_REMEDIES[provider]
        ) from error


def _unavailable(ort: Any, source: EngineSource, provider: str, found: str) -> RuntimeUnavailable:
    return RuntimeUnavailable(
        f"{source.variant} was asked for on {source.device}, so on {provider}; this onnxruntime {ort.__version__} {found}",
        remedy=_REMEDIES[provider],
    )
