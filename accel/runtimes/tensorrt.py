"""A plan through TensorRT or TensorRT-RTX, without torch: one code path for 8.6, 10, 11 and RTX, a CUDA graph unless told otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from accel import device, trt
from accel.device import driver
from accel.errors import AccelError, DeviceUnavailable, RuntimeUnavailable, UsageError
from accel.runtimes.inputs import check_inputs, static_inputs
from accel.runtimes.state import OpenState, not_open
from accel.runtimes.tensorrt_engines import leased, plan_of, said
from accel.runtimes.tensorrt_tensors import fix
from accel.types import Binding, DeviceArray, EngineEntry, EngineSource

Enqueue = Callable[[Binding], None]


class TensorRT(OpenState):
    """The Runtime protocol. Option: `-graph`, which enqueues through TensorRT in every call instead of replaying a graph.

    With the graph, inputs are copied to their place in `home` inside the call, unless they are there already; without it their
    addresses are set. Shapes are fixed at open, with dynamic dimensions at the source's batch: another batch is another runtime, and
    so another capture. Runtimes of one plan share its engine; the execution context, with its stream, is each one's own.

    Attributes:
        graph: what enqueue replays; None before open and without a graph.
    """

    def __init__(self, source: EngineSource) -> None:
        super().__init__(source)
        self.enqueue: Enqueue = _closed
        self._held = contextlib.ExitStack()
        self._context: Any = None
        self.graph: device.Graph | None = None
        self._results: dict[str, DeviceArray] = {}

    def open(self, stream: int | None) -> None:
        """Also captures the graph; see Runtime.

        Raises:
            MissingExtra: TensorRT is not installed. RuntimeUnavailable: there is no GPU, or its work cannot be captured.
            IncompatibleArtifact, CorruptArtifact: the plan is for another version or machine, or none.
            UsageError: the batch is outside the plan's profile.
        """
        if self._context is not None:
            raise UsageError(f"{self.source.variant} is open already", remedy="close it first, or make another runtime")
        plan_of(self.source)
        if stream is None:
            raise RuntimeUnavailable(
                f"{self.source.variant} was asked for on {self.source.device}: a plan runs on NVIDIA GPUs only", remedy="use --device cuda"
            )
        library = trt.load(self.source.variant.runtime)
        driver.activate(self.source.device)
        try:
            self._open(library, stream)
        except BaseException:
            self.close()
            raise

    def _open(self, library: trt.Library, stream: int) -> None:
        source = self.source
        engine = self._held.enter_context(leased(library, source))
        source.loaded()
        with library.listening() as heard:
            self._context = engine.create_execution_context()
        if self._context is None:
            raise DeviceUnavailable(
                f"{library.title} cannot make an execution context on {source.device}{said(heard)}",
                remedy="free memory on the GPU (see `nvidia-smi`) and run it again",
            )
        layouts = {spec.name: spec.layout for spec in (*source.inputs, *source.outputs)}
        self._inputs, self._outputs = fix(library, engine, self._context, source.batch, layouts)
        inputs = static_inputs(self._inputs, source.device, stream)
        self._results = {spec.name: device.empty(spec.fixed(1), spec.dtype, source.device) for spec in self._outputs}
        for name, array in (*inputs.items(), *self._results.items()):
            if not self._context.set_tensor_address(name, array.ptr):
                raise _failed(library, f"refused the address of {name!r}")
        eager = _eager(library, self._context, stream)
        # What the first call loads, allocates and chooses could not be captured.
        eager(Binding(inputs, ()))
        device.synchronize(stream)
        if "-graph" in source.variant.options:
            self.enqueue = eager
        else:
            self.graph = self._capture(lambda: eager(Binding(inputs, ())), stream)
            self.enqueue = device.replay
        self._home = Binding(inputs, self._native(inputs, inputs))
        self._facts = self._read_back(library)

    def _capture(self, launch: Callable[[], None], stream: int) -> device.Graph:
        source = self.source
        try:
            return device.capture(source.device, stream, launch)
        except AccelError as error:
            raise RuntimeUnavailable(
                f"{source.variant} cannot be captured in a CUDA graph: {error.message}",
                remedy=f"run it without one: {source.variant.runtime}:{source.variant.precision}-graph",
            ) from error

    def _read_back(self, library: trt.Library) -> dict[str, Any]:
        source = self.source
        facts: dict[str, Any] = {
            "runtime_version": ".".join(map(str, library.version)),
            "provider": source.device,
            "options": list(source.variant.options),
        }
        if self.graph is not None:
            facts["graph_nodes"] = self.graph.nodes
        if source.entry is not None:
            facts |= _recorded(source.entry, {spec.name: spec.dtype for spec in (*self._inputs, *self._outputs)})
        return facts

    def prepare(self, inputs: Mapping[str, DeviceArray]) -> Binding:
        if self._home is None:
            raise not_open()
        check_inputs(self._inputs, inputs, self.source.device)
        return Binding(inputs, self._native(self._home.inputs, inputs))

    def _native(self, home: Mapping[str, DeviceArray], inputs: Mapping[str, DeviceArray]) -> tuple[Any, ...]:
        """What `enqueue` does with the inputs: the copies into home and the launch, or the addresses to set."""
        if self.graph is not None:
            return self.graph.calls(home, inputs)
        return tuple((name, array.ptr) for name, array in inputs.items())

    def output(self, binding: Binding) -> Mapping[str, DeviceArray]:
        return self._results

    def close(self) -> None:
        self.enqueue, self._home, self._results = _closed, None, {}
        if self.graph is not None:
            self.graph.close()
            self.graph = None
        # Before its engine, which goes with the last lease.
        self._context = None
        self._held.close()


def _eager(library: trt.Library, context: Any, stream: int) -> Enqueue:
    """A function for `Runtime.enqueue`: set the addresses of `binding.native`, then enqueue through TensorRT."""
    set_address, execute = context.set_tensor_address, context.execute_async_v3

    def enqueue(binding: Binding) -> None:
        for name, address in binding.native:
            if not set_address(name, address):
                raise _failed(library, f"refused the address of {name!r}")
        if not execute(stream):
            raise _failed(library, "did not enqueue its work")

    return enqueue


def _failed(library: trt.Library, what: str) -> AccelError:
    # The log's memory rather than a listener: one would cost the timed call something.
    return AccelError(f"{library.title} {what}{said(list(library.log.recent))}", remedy="see the log above, and `accel doctor`")


def _recorded(entry: EngineEntry, dtypes: Mapping[str, str]) -> dict[str, Any]:
    """What the builder proved of the plan: its precision is claimed only with a proof, and if the tensors are those of the entry."""
    facts: dict[str, Any] = {}
    if entry.precision_proof and dtypes == {spec.name: spec.dtype for spec in (*entry.inputs, *entry.outputs)}:
        # A plan that was kept with --allow-mixed says so itself; what it computes is measured, and is not what its name says.
        if entry.precision_proof.get("proven", True):
            facts["precision"] = entry.precision
        else:
            share = entry.precision_proof.get("share")
            part = "nothing that multiplies is" if share is None else f"{100 * share:.1f} % of the multiply-accumulates are"
            facts["fallback"] = f"{part} proven to be in {entry.precision}: the plan was exported with --allow-mixed"
            facts["fallback_remedy"] = "export it without, from a model or an ONNX file that is in that precision throughout"
    if "flags" in entry.toolchain:
        facts["tf32_matmul"] = facts["tf32_conv"] = "TF32" in entry.toolchain["flags"].split(",")
    if "tactic_sources" in entry.toolchain:
        facts["tactic_sources"] = entry.toolchain["tactic_sources"]
    return facts


def _closed(_: Binding) -> None:
    raise not_open()
