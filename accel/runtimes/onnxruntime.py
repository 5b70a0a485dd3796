"""An ONNX file through ONNX Runtime: the CUDA provider on the caller's stream, or the CPU provider; never a mixture in silence."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

from accel import device
from accel.device import driver
from accel.device.host import storage_dtype
from accel.errors import AccelError, CorruptArtifact, RuntimeUnavailable, UsageError
from accel.optional import require
from accel.runtimes.inputs import check_inputs, static_inputs
from accel.types import Binding, DeviceArray, EngineSource, TensorSpec

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
_REMEDY = (
    "pip uninstall onnxruntime onnxruntime-gpu; pip install 'accel-engines[ort]', and see `accel doctor`; or ask for --device cpu by name"
)


class OnnxRuntime:
    """The Runtime protocol by IO binding: inputs are bound by address in each call, outputs once to buffers of our own."""

    def __init__(self, source: EngineSource) -> None:
        self.source = source
        self._kind, self._index = ("cpu", 0) if source.device == "cpu" else ("cuda", driver.index_of(source.device))
        self._inputs: tuple[TensorSpec, ...] = ()
        self._outputs: tuple[TensorSpec, ...] = ()
        self._facts: dict[str, Any] = {}
        self._session: Any = None
        self._io: Any = None
        self._run_options: Any = None
        self._home: Binding | None = None
        self._results: dict[str, DeviceArray] = {}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def home(self) -> Binding:
        if self._home is None:
            raise UsageError("the runtime is not open", remedy="call open(stream) first")
        return self._home

    @property
    def facts(self) -> Mapping[str, Any]:
        return self._facts

    def open(self, stream: int | None) -> None:
        if self._session is not None:
            raise UsageError(f"{self.source.variant} is open already", remedy="close it first, or make another runtime")
        if self.source.file is None:
            raise AccelError(f"{self.source.variant} was given no file to run", remedy="resolve it with runtimes.engine_source")
        if self._kind == "cuda":
            driver.activate(self.source.device)
        ort = require("onnxruntime", "ort")
        # Its log prints every algorithm that cuDNN tries and drops as an error; what fails comes as an exception all the same.
        ort.set_default_logger_severity(4)
        try:
            self._open(ort, stream)
        except BaseException:
            self.close()
            raise

    def _open(self, ort: Any, stream: int | None) -> None:
        batch = self.source.batch
        self._session = (
            self._cuda_session(ort, stream) if self._kind == "cuda" else self._load(ort, _session_options(ort, self.source), [CPU])
        )
        layouts = {spec.name: spec.layout for spec in (*self.source.inputs, *self.source.outputs)}
        self._inputs = tuple(_spec(node, batch, layouts) for node in self._session.get_inputs())
        self._outputs = tuple(_spec(node, batch, layouts) for node in self._session.get_outputs())
        self._facts = self._read_back(ort)
        self._run_options = ort.RunOptions()
        if self._kind == "cuda":
            self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._io = self._session.io_binding()
        for spec in self._outputs:
            array = self._results[spec.name] = device.empty(spec.fixed(batch), spec.dtype, self.source.device)
            self._io.bind_output(spec.name, self._kind, self._index, storage_dtype(spec.dtype).type, array.shape, array.ptr)
        self._home = self.prepare(static_inputs(self._inputs, self.source.device, stream))
        # The first run searches cuDNN's algorithms, the next ones settle the arena.
        for _ in range(3):
            self.enqueue(self._home)
        device.synchronize(stream)

    def _cuda_session(self, ort: Any, stream: int | None) -> Any:
        if CUDA not in ort.get_available_providers():
            raise RuntimeUnavailable(
                f"{self.source.variant} was asked for on {self.source.device}; this onnxruntime {ort.__version__} has only "
                f"{', '.join(ort.get_available_providers())}",
                remedy=_REMEDY,
            )
        if hasattr(ort, "preload_dlls"):  # from 1.21 on
            with contextlib.redirect_stdout(sys.stderr):  # it prints what it cannot find, and stdout is for data
                ort.preload_dlls()
        options = _session_options(ort, self.source)
        # The CUDA provider alone and no way back: a node that it lacks is an error, not a silent trip to the CPU.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        provider = {
            "device_id": str(self._index),
            "user_compute_stream": str(stream),
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "use_tf32": "1" if self.source.variant.precision == "tf32" else "0",
        }
        session = self._load(ort, options, [(CUDA, provider)])
        if session.get_providers()[0] != CUDA:
            raise RuntimeUnavailable(
                f"{self.source.variant} was asked for on {self.source.device} and ONNX Runtime took {session.get_providers()[0]}",
                remedy=_REMEDY,
            )
        return session

    def _load(self, ort: Any, options: Any, providers: list[Any]) -> Any:
        state = ort.capi.onnxruntime_pybind11_state
        unreadable = (state.InvalidProtobuf, state.InvalidGraph, state.NoSuchFile, state.NoModel)
        refused = (state.EPFail, state.Fail, state.NotImplemented, state.RuntimeException, state.InvalidArgument, RuntimeError, ValueError)
        try:
            return ort.InferenceSession(str(self.source.file), options, providers=providers, enable_fallback=0)
        except unreadable as error:
            raise CorruptArtifact(
                f"onnxruntime {ort.__version__} cannot read {self.source.file}: {_first_line(error)}", remedy="accel export MODEL --to onnx"
            ) from error
        except refused as error:
            raise RuntimeUnavailable(
                f"onnxruntime {ort.__version__} cannot run {self.source.file} on {self.source.device}: {_first_line(error)}",
                remedy=_REMEDY if self._kind == "cuda" else "accel export MODEL --to onnx --opset 17, or another runtime",
            ) from error

    def _read_back(self, ort: Any) -> dict[str, Any]:
        facts: dict[str, Any] = {"runtime_version": ort.__version__, "provider": self._session.get_providers()[0]}
        narrow = self.source.entry.precision if self.source.entry is not None else ""
        if narrow in ("", "fp32"):
            narrow = "fp16" if any(spec.dtype == "float16" for spec in self._inputs) else "fp32"
        facts["precision"] = narrow
        if self._kind == "cuda":
            tf32 = self._session.get_provider_options()[CUDA].get("use_tf32") == "1"
            facts |= {"tf32_matmul": tf32, "tf32_conv": tf32} | _placement(self._session)
            if narrow == "fp32" and tf32:
                facts["precision"] = "tf32"
        return facts

    def prepare(self, inputs: Mapping[str, DeviceArray]) -> Binding:
        check_inputs(self._inputs, inputs, self.source.device)
        calls = tuple(
            (spec.name, self._kind, self._index, storage_dtype(spec.dtype).type, inputs[spec.name].shape, inputs[spec.name].ptr)
            for spec in self._inputs
        )
        return Binding(inputs, calls)

    def enqueue(self, binding: Binding) -> None:
        bind = self._io.bind_input
        for call in binding.native:
            bind(*call)
        self._session.run_with_iobinding(self._io, self._run_options)

    def output(self, binding: Binding) -> Mapping[str, DeviceArray]:
        return self._results

    def close(self) -> None:
        self._io = self._run_options = self._session = self._home = None
        self._results = {}


def _session_options(ort: Any, source: EngineSource) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if source.threads is not None:
        options.intra_op_num_threads = source.threads
        options.inter_op_num_threads = 1
    return options


def _placement(session: Any) -> dict[str, int]:
    """How many nodes run where, from ONNX Runtime's own record, which versions before 1.24 do not keep."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return {}
    counts = {"gpu_nodes": 0, "cpu_nodes": 0}
    for subgraph in session.get_provider_graph_assignment_info():
        counts["gpu_nodes" if subgraph.ep_name == CUDA else "cpu_nodes"] += len(subgraph.get_nodes())
    return counts


def _spec(node: Any, batch: int, layouts: Mapping[str, str]) -> TensorSpec:
    if node.type not in _DTYPES:
        raise UsageError(f"tensor {node.name!r} is a {node.type}", remedy=f"export it as one of: {', '.join(_DTYPES)}")
    # A dynamic dimension is a name, or None where the file does not name it.
    shape = tuple(size if isinstance(size, int) else batch for size in node.shape)
    return TensorSpec(node.name, shape, _DTYPES[node.type], layouts.get(node.name, ""))


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
