"""An ONNX file through ONNX Runtime: a GPU's provider on the caller's stream, or the CPU provider; never a mixture in silence."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from typing import Any

from accel import device
from accel.device import driver
from accel.device.host import storage_dtype
from accel.errors import AccelError, RuntimeUnavailable, UsageError
from accel.optional import require
from accel.runtimes import ort_session
from accel.runtimes.inputs import check_inputs, static_inputs
from accel.runtimes.leases import Leases
from accel.runtimes.state import OpenState
from accel.types import Binding, DeviceArray, EngineSource, TensorSpec

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
_WARMUP = 3
_TOLD = ("enable_cuda_graph", "prefer_nhwc", "trt_fp16_enable")
"""Provider options that the facts repeat, as they were read back."""

_CAPTURE = threading.Lock()
"""ONNX Runtime's own rule: one session of a process records its graph at a time."""

_ON_CPU = Leases()
"""Sessions on the CPU by file, hash and threads: one may be run from several threads at once, and has the weights in memory once."""


class OnnxRuntime(OpenState):
    """The Runtime protocol by IO binding: inputs are bound by address where they changed, outputs once to buffers of our own.

    Options: `graph` (the CUDA provider records its kernels as one CUDA graph, which reads the home buffers: a call copies its inputs
    there, on the device, unless they are there already, and the binding never changes, since ONNX Runtime would not notice);
    `nhwc` (the CUDA provider's channels-last kernels); `trt-ep` and `rtx-ep` (the TensorRT and TensorRT-RTX providers).
    Whether a replay returns before the GPU is done depends on the version (from microsoft/onnxruntime#28686 on); a bench proves it.
    """

    def __init__(self, source: EngineSource) -> None:
        super().__init__(source)
        self._kind, self._index = ("cpu", 0) if source.device == "cpu" else ("cuda", driver.index_of(source.device))
        self._session: Any = None
        self._io: Any = None
        self._run_options: Any = None
        self._bound: Binding | None = None
        self._held = contextlib.ExitStack()
        self._results: dict[str, DeviceArray] = {}
        # With a CUDA graph: the home buffers that it reads, and the stream.
        self._static: tuple[Mapping[str, DeviceArray], int] | None = None

    @property
    def one_thread(self) -> bool:
        """Whether only the thread that opened it may run it: ONNX Runtime keeps a recorded graph for each thread."""
        return self._kind == "cuda" and "graph" in self.source.variant.options

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
        # A session reads the file, optimises the graph and, with TensorRT's provider, builds a plan, all in one step.
        self.source.loaded()
        cached = ort_session.plan_cached(self.source)
        self._session = self._shared(ort) if self._kind == "cpu" else ort_session.make_session(ort, self.source, stream)
        layouts = {spec.name: spec.layout for spec in (*self.source.inputs, *self.source.outputs)}
        self._inputs = tuple(_spec(node, batch, layouts) for node in self._session.get_inputs())
        self._outputs = tuple(_spec(node, batch, layouts) for node in self._session.get_outputs())
        self._facts = self._read_back(ort) | ({} if cached is None else {"build_cached": cached})
        if self._kind == "cuda":
            self._run_options = ort.RunOptions()
            self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
            # ONNX Runtime's own default, said aloud: 1.31 asks for it in every run, and an entry that is absent is an exception inside,
            # which took 40 µs of a call on a CPU. On a CPU there are no options at all, so nothing is asked.
            self._run_options.add_run_config_entry("gpu_graph_id", "0")
        self._io = self._session.io_binding()
        for spec in self._outputs:
            array = self._results[spec.name] = device.empty(spec.fixed(batch), spec.dtype, self.source.device)
            self._io.bind_output(spec.name, self._kind, self._index, storage_dtype(spec.dtype).type, array.shape, array.ptr)
        self._home = self.prepare(static_inputs(self._inputs, self.source.device, stream))
        if "graph" in self.source.variant.options and stream is not None:
            with _CAPTURE:
                self._capture(ort, stream, self._home)
        else:
            # The first run searches cuDNN's algorithms, the next ones settle the arena.
            self._warm_up(self._home)
        device.synchronize(stream)

    def _shared(self, ort: Any) -> Any:
        source = self.source
        known = next(iter(source.entry.files.values()), "") if source.entry is not None else ""
        key = (str(source.file), known, source.threads) if known else object()
        return self._held.enter_context(_ON_CPU.held(key, lambda: ort_session.make_session(ort, source, None)))

    def _warm_up(self, home: Binding) -> None:
        for _ in range(_WARMUP):
            self.enqueue(home)

    def _capture(self, ort: Any, stream: int, home: Binding) -> None:
        for call in home.native:
            self._io.bind_input(*call)
        self._static = (home.inputs, stream)
        self._home = self.prepare(home.inputs)
        try:
            # ONNX Runtime records in its second run and replays from then on.
            self._warm_up(self._home)
        except ort_session.failures(ort) as error:
            raise RuntimeUnavailable(
                f"onnxruntime {ort.__version__} cannot record {self.source.file} as a CUDA graph: {ort_session.first_line(error)}",
                remedy="load the variant without the option graph; where other libraries use the GPU meanwhile, load this one first",
            ) from error

    def _read_back(self, ort: Any) -> dict[str, Any]:
        facts: dict[str, Any] = {"runtime_version": ort.__version__, "provider": self._session.get_providers()[0]}
        narrow = self.source.entry.precision if self.source.entry is not None else ""
        if narrow in ("", "fp32"):
            narrow = "fp16" if any(spec.dtype == "float16" for spec in self._inputs) else "fp32"
        facts["precision"] = narrow
        if self._kind == "cuda":
            providers = self._session.get_provider_options()
            # TensorRT's providers have no such option: they build FP32 with TF32.
            tf32 = providers.get(ort_session.CUDA, {}).get("use_tf32") == "1" or facts["provider"] != ort_session.CUDA
            facts |= {"tf32_matmul": tf32, "tf32_conv": tf32} | ort_session.placement(ort, self.source, self._session)
            facts["provider_options"] = {name: value for name, value in providers.get(facts["provider"], {}).items() if name in _TOLD}
            if narrow == "fp32" and tf32:
                facts["precision"] = "tf32"
        return facts

    def prepare(self, inputs: Mapping[str, DeviceArray]) -> Binding:
        check_inputs(self._inputs, inputs, self.source.device)
        if self._static is not None:
            return Binding(inputs, device.copies(self._static[0], inputs, self._static[1]))
        calls = tuple(
            (spec.name, self._kind, self._index, storage_dtype(spec.dtype).type, inputs[spec.name].shape, inputs[spec.name].ptr)
            for spec in self._inputs
        )
        return Binding(inputs, calls)

    def enqueue(self, binding: Binding) -> None:
        if self._static is not None:
            device.replay(binding)
        elif binding is not self._bound:
            bind = self._io.bind_input
            for call in binding.native:
                bind(*call)
            self._bound = binding
        self._session.run_with_iobinding(self._io, self._run_options)

    def output(self, binding: Binding) -> Mapping[str, DeviceArray]:
        return self._results

    def close(self) -> None:
        self._io = self._run_options = self._session = self._home = self._static = self._bound = None
        self._results = {}
        self._held.close()


def _spec(node: Any, batch: int, layouts: Mapping[str, str]) -> TensorSpec:
    if node.type not in _DTYPES:
        raise UsageError(f"tensor {node.name!r} is a {node.type}", remedy=f"export it as one of: {', '.join(_DTYPES)}")
    # A dynamic dimension is a name, or None where the file does not name it.
    shape = tuple(size if isinstance(size, int) else batch for size in node.shape)
    return TensorSpec(node.name, shape, _DTYPES[node.type], layouts.get(node.name, ""))
