"""What eager, compile, TorchScript and AOTInductor share: the protocol around a callable from tensors to tensors."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from accel import device
from accel.device import driver
from accel.errors import AccelError, RuntimeUnavailable, UsageError
from accel.optional import require
from accel.runtimes import torch_process
from accel.runtimes.inputs import check_inputs, native_inputs, static_inputs
from accel.runtimes.state import OpenState, not_open
from accel.runtimes.torch_arrays import as_device_array, as_tensor, dtype_name
from accel.runtimes.torch_graph import CapturedCall, demand_main_thread
from accel.runtimes.torch_module import under_autocast
from accel.runtimes.torch_thread import ThreadScope
from accel.types import Binding, DeviceArray, EngineSource, TensorSpec

_PRECISION_OF = {"float16": "fp16", "bfloat16": "bf16"}


class TorchRuntime(OpenState, abc.ABC):
    """The Runtime protocol; a subclass loads the module in `_load`.

    With the option `graph` the calls of the warm-up are recorded once and replayed from then on: a call copies its inputs into the
    home buffers, on the device, unless they are there already, and launches the graph.

    The stream and inference mode are made current on the thread that opens it, and stay so until close or `suspend`; a suspended one may
    be `entered` on any thread, one at a time, unless it is `one_thread`.
    """

    warmup_calls = 3
    """Enough for cuDNN's search and the first graph; a class that compiles in stages says more."""

    graphless = "without the option graph"
    """How to ask for the same without CUDA graphs, for an error's remedy."""

    def __init__(self, source: EngineSource) -> None:
        super().__init__(source)
        self._inputs = native_inputs(source)
        self._scope: ThreadScope | None = None
        self._leases = contextlib.ExitStack()
        self._torch: Any = None
        self._call: Callable[..., Any] = _closed
        self._captured: CapturedCall | None = None
        self._result: Any = None

    @property
    def captures(self) -> bool:
        """Whether torch records a CUDA graph in open."""
        return "graph" in self.source.variant.options

    @property
    def one_thread(self) -> bool:
        """Whether only the thread that opened it may run it: torch keeps its CUDA graphs' trees for each thread."""
        return self.captures and self.source.device != "cpu"

    def open(self, stream: int | None) -> None:
        if self._home is not None:
            raise UsageError(f"{self.source.variant} is open already", remedy="close it first, or make another runtime")
        on_gpu = self.source.device != "cpu"
        if on_gpu and self.captures:
            demand_main_thread(self.source.variant, self.graphless)
        if on_gpu:
            # Before torch makes the context: the waits of all that follows spin.
            driver.activate(self.source.device)
        torch = self._torch = require("torch", "train")
        if on_gpu and not torch.cuda.is_available():
            raise RuntimeUnavailable(
                f"{self.source.variant} was asked for on {self.source.device}, but torch {torch.__version__} cannot use CUDA",
                remedy="pip install a CUDA build of torch that this driver supports (see `accel doctor`), or use --device cpu",
            )
        try:
            self._open(torch, stream, on_gpu)
        except BaseException:
            self.close()
            raise

    def _open(self, torch: Any, stream: int | None, on_gpu: bool) -> None:
        source = self.source
        if on_gpu:
            self._leases.enter_context(torch_process.cuda_settings(torch, source.variant.precision))
        elif source.threads is not None:
            torch.set_num_threads(source.threads)
        self._scope = ThreadScope(torch, source.device, stream)
        self._scope.enter()
        self._home = self.prepare(static_inputs(self._inputs, source.device, stream))
        with torch.inference_mode(False), torch.no_grad():
            # Weights made in inference mode could not be converted or folded any more.
            module = self._load(torch)
        source.loaded()
        self._call = self._callable(torch, module, self._home.native)
        # One call tells the outputs; the rest is for speed, which nobody asks of a comparison (FP16 on a CPU takes a second a call).
        for _ in range(1 if source.parity_only else self.warmup_calls):
            self.enqueue(self._home)
        if "graph" in source.variant.options and stream is not None:
            self._capture(torch, stream, self._home)
        device.synchronize(stream)
        results = self.output(self._home)
        layouts = {spec.name: spec.layout for spec in source.outputs}
        self._outputs = tuple(TensorSpec(name, array.shape, array.dtype, layouts[name]) for name, array in results.items())
        self._facts |= self._read_back(torch, module, on_gpu)

    def _capture(self, torch: Any, stream: int, home: Binding) -> None:
        device.synchronize(stream)
        try:
            self._captured = self._call = CapturedCall(torch, self.source.device, self._call, home, stream)
        except (RuntimeError, NotImplementedError) as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise RuntimeUnavailable(
                f"{self.source.variant} cannot be recorded as a CUDA graph by torch {torch.__version__}: {reason}",
                remedy=f"load the variant {self.graphless}; a model that reads its values on the host cannot be recorded",
            ) from error
        self._facts["graph_nodes"] = self._captured.nodes
        # Home's own binding has nothing to copy.
        self._home = self.prepare(home.inputs)
        self.enqueue(self._home)

    @abc.abstractmethod
    def _load(self, torch: Any) -> Any:
        """The module on its device, in its dtype."""

    def _callable(self, torch: Any, module: Any, examples: tuple[Any, ...]) -> Callable[..., Any]:
        """What `enqueue` calls with the input tensors in order; `examples` are such tensors."""
        return under_autocast(torch, self.source, module)

    def _read_back(self, torch: Any, module: Any, on_gpu: bool) -> dict[str, Any]:
        variant = self.source.variant
        facts: dict[str, Any] = {"runtime_version": torch.__version__, "provider": self.source.device, "options": list(variant.options)}
        matmul, conv = torch_process.arithmetic(torch)
        # A frozen TorchScript has no parameters left; what comes out tells then.
        dtypes = {dtype_name(p.dtype) for p in module.parameters()} or {spec.dtype for spec in self._outputs}
        narrow = next((name for dtype, name in _PRECISION_OF.items() if dtype in dtypes), None)
        if narrow is not None:
            facts["precision"] = narrow
        elif variant.precision == "fp16-autocast":
            facts["precision"] = variant.precision
        else:
            # TF32 multipliers exist from compute capability 8.0 on; elsewhere the setting is accepted and means nothing.
            capable = on_gpu and torch.cuda.get_device_capability(self.source.device)[0] >= 8
            facts["precision"] = "tf32" if capable and matmul == conv == "tf32" else "fp32"
        return facts | ({"tf32_matmul": matmul, "tf32_conv": conv} if on_gpu else {})

    def prepare(self, inputs: Mapping[str, DeviceArray]) -> Binding:
        check_inputs(self._inputs, inputs, self.source.device)
        if self._torch is None:
            raise not_open()
        if self._captured is not None:
            return Binding(inputs, self._captured.copies(inputs))
        return Binding(inputs, tuple(as_tensor(self._torch, inputs[spec.name]) for spec in self._inputs))

    def enqueue(self, binding: Binding) -> None:
        self._result = self._call(*binding.native)

    def output(self, binding: Binding) -> Mapping[str, DeviceArray]:
        names = [spec.name for spec in self.source.outputs]
        result = self._result
        if isinstance(result, Mapping):
            tensors = [result[name] for name in names]
        else:
            tensors = list(result) if isinstance(result, list | tuple) else [result]
        if len(tensors) != len(names):
            raise AccelError(
                f"the model returns {len(tensors)} tensors, the bundle names {len(names)}: {', '.join(names)}",
                remedy="export the model again with its outputs named",
            )
        return {name: as_device_array(self._torch, tensor) for name, tensor in zip(names, tensors, strict=True)}

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Our stream and inference mode on this thread for the duration, for a service that suspended them after open."""
        if self._scope is None:
            raise not_open()
        threads = self.source.threads
        # OpenMP counts threads for each thread that calls it, and this may be another one than that of open.
        if threads is not None and self.source.device == "cpu" and self._torch.get_num_threads() != threads:
            self._torch.set_num_threads(threads)
        self._scope.enter()
        try:
            yield
        finally:
            self._scope.leave()

    def suspend(self) -> None:
        """Give the thread its own stream and mode back, until `entered`; a bench never does."""
        if self._scope is not None:
            self._scope.leave()

    def close(self) -> None:
        self._call, self._captured, self._result, self._home = _closed, None, None, None
        if self._scope is not None:
            self._scope.leave()
            self._scope = None
        self._leases.close()
        if self._torch is not None and self.source.device != "cpu":
            self._torch.cuda.empty_cache()
        self._torch = None


def _closed(*_: Any) -> Any:
    raise not_open()
