"""A fused engine: the whole network in one launch of kernels generated for it, without torch; a CUDA graph unless told otherwise."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accel import device
from accel.device import driver, kernels
from accel.device.memory import PinnedArray
from accel.engines import fused_plan
from accel.engines.fused_plan import FusedPlan, Schedule
from accel.errors import AccelError, RuntimeUnavailable, UsageError
from accel.runtimes.fused_engine import Engine, demand_named, fallbacks, file_of, instead_of, leased
from accel.runtimes.fused_image import EagerCall, GraphCall
from accel.runtimes.inputs import check_inputs, static_inputs
from accel.runtimes.state import OpenState, not_open
from accel.types import Binding, DeviceArray, EngineSource, Kernel, TensorSpec

logger = logging.getLogger(__name__)

Enqueue = Callable[[Binding], None]

WORD = 4
"""Bytes of the error word at the head of State, which is read with every answer."""


class Fused(OpenState):
    """The Runtime protocol. Options: `chain`, `grid`, `cluster` force a schedule; `-graph` launches the kernels one by one in every call.

    Machine code and weights are shared by all contexts of an engine; the input's place, the activations, State (barrier counters) and the
    logits are each context's own, so that two of them on two threads never meet.

    A binding's image is read where it is (`fused_image.py`): it must stay as it is until the call has ended. The runtime holds the memory
    of the last binding as long as the graph has its address.

    A wait between CTAs that runs out leaves an error word in State. `output` enqueues the copy of that word to pinned memory behind the
    call, and `check`, after the stream was waited for, reads it there: neither adds anything to `enqueue`. The word stays until it was
    read, however many calls come between.

    Attributes:
        graph: what enqueue replays; None before open and without a graph.
        buffers: this context's `arena` (activations) and `state`. launches: its kernels, in order.
        engine: what it shares with other contexts; None before open.
    """

    def __init__(self, source: EngineSource) -> None:
        super().__init__(source)
        self.enqueue: Enqueue = _closed
        self.graph: device.Graph | None = None
        self._held = contextlib.ExitStack()
        self.engine: Engine | None = None
        self.launches: tuple[kernels.Launch, ...] = ()
        self._call: GraphCall | EagerCall | None = None
        self._results: dict[str, DeviceArray] = {}
        self.buffers: dict[str, DeviceArray] = {}
        self._said: PinnedArray | None = None
        self._tell: Callable[[], tuple[Any, ...]] | None = None
        self._stream = 0

    def open(self, stream: int | None) -> None:
        """Also runs once, and captures the graph; see Runtime.

        Raises:
            RuntimeUnavailable: there is no GPU, the schedule was not built, or this GPU cannot launch it: the message says what to use.
            IncompatibleArtifact, CorruptArtifact: the engine is for newer GPUs, or damaged. UsageError: a batch other than 1.
            MissingExtra: it has to be compiled for this GPU, and NVRTC is not installed.
        """
        if self.engine is not None:
            raise UsageError(f"{self.source.variant} is open already", remedy="close it first, or make another runtime")
        plan = fused_plan.read(file_of(self.source))
        demand_named(self.source, plan)
        if stream is None:
            raise RuntimeUnavailable(
                f"{self.source.variant} was asked for on {self.source.device}: a fused engine runs on NVIDIA GPUs only",
                remedy="use --device cuda",
            )
        if self.source.batch != 1:
            raise UsageError(f"a fused engine answers one image a call; a batch of {self.source.batch} was asked for", remedy="--batch 1")
        driver.activate(self.source.device)
        first, *others = fallbacks(self.source, plan)
        try:
            self._open_or_close(plan, first, stream)
        except RuntimeUnavailable as error:
            if not others:
                raise
            # Chosen on a GPU with more room; what runs instead answers the same, and says that it does.
            logger.warning("%s runs its schedule %s, not %s: %s", self.source.variant, others[0], first, error.message)
            self._open_or_close(plan, others[0], stream)
            self._facts["settings"] |= {"instead_of": first, "because": error.message}

    def _open_or_close(self, plan: FusedPlan, schedule: Schedule, stream: int) -> None:
        try:
            self._open(plan, schedule, stream)
        except BaseException:
            self.close()
            raise

    def _open(self, plan: FusedPlan, schedule: Schedule, stream: int) -> None:
        source, self._stream = self.source, stream
        self.engine = engine = self._held.enter_context(leased(source, plan, schedule, stream))
        source.loaded()
        self._inputs = (TensorSpec(source.inputs[0].name, plan.input.shape, plan.input.dtype, plan.input.layout),)
        self._outputs = (TensorSpec(source.outputs[0].name, plan.output.shape, plan.output.dtype, plan.output.layout),)
        home = static_inputs(self._inputs, source.device, stream)
        self._results = {spec.name: device.empty(spec.fixed(1), spec.dtype, source.device) for spec in self._outputs}
        sizes = {"arena": engine.scheduled.arena_bytes, "state": max(engine.scheduled.state_bytes, WORD)}
        self.buffers = {name: device.empty((max(size, 1),), "uint8", source.device) for name, size in sizes.items()}
        for name in self.buffers:
            self._clear(name)
        instead = instead_of(plan, schedule)
        self.launches = tuple(
            kernels.Launch(engine.module, kernel, self._arguments(engine, home), stream, instead) for kernel in engine.scheduled.kernels
        )
        if engine.scheduled.waits:
            self._watch(stream)
        # What the first call loads could not be captured; and whether it works at all is known before anything is claimed.
        self._launch()
        self._settle(stream)
        if "-graph" in source.variant.options:
            self._call = EagerCall(self.launches, home, stream)
        else:
            self.graph = self._capture(engine.scheduled.kernels, stream)
            self._call = GraphCall(self.graph, self.launches, home)
        self.enqueue = self._call.enqueue
        self._home = Binding(home, self._call.prepare(home))
        self._facts = self._read_back(engine, schedule, self._call.refused)

    def _clear(self, name: str) -> None:
        buffer = self.buffers[name]
        driver.check(driver.bindings().cuMemsetD8Async(buffer.ptr, 0, buffer.nbytes, self._stream), f"clearing the {name}")

    def _arguments(self, engine: Engine, home: Mapping[str, DeviceArray]) -> list[int]:
        """Addresses in the order of fused_plan.PARAMETERS."""
        (image,), (logits,) = home.values(), self._results.values()
        places = {"image": image.ptr, "weights": engine.weights.ptr, "logits": logits.ptr}
        places |= {name: buffer.ptr for name, buffer in self.buffers.items()}
        return [places[name] for name in fused_plan.PARAMETERS]

    def _watch(self, stream: int) -> None:
        cuda = driver.bindings()
        said = PinnedArray((1,), "int32", self.source.device)
        said.array[:] = 0
        state = self.buffers["state"].ptr
        self._said = said
        self._tell = functools.partial(cuda.cuMemcpyDtoHAsync, said.ptr, cuda.CUdeviceptr(state), said.nbytes, cuda.CUstream(stream))

    def _launch(self) -> None:
        for launch in self.launches:
            launch()

    def _settle(self, stream: int) -> None:
        self._ask()
        device.synchronize(stream)
        self.check()

    def _capture(self, launched: Sequence[Kernel], stream: int) -> device.Graph:
        source = self.source
        try:
            return device.capture(source.device, stream, self._launch, lambda nodes: kernels.demand_cooperative(nodes, launched), keep=True)
        except AccelError as error:
            raise RuntimeUnavailable(
                f"{source.variant} cannot be captured in a CUDA graph: {error.message}",
                remedy=f"run it without one: {source.variant}-graph",
            ) from error

    def _read_back(self, engine: Engine, schedule: Schedule, refused: str) -> dict[str, Any]:
        source = self.source
        image = f"copied: {refused}" if refused else "read where it is"
        facts: dict[str, Any] = {
            "provider": source.device,
            "options": list(source.variant.options),
            "settings": {"schedule": schedule, "kernels": len(self.launches), "machine_code": engine.origin, "image": image},
        }
        if self.graph is not None:
            facts["graph_nodes"] = self.graph.nodes
        if source.entry is not None and source.entry.precision_proof:
            facts["precision"] = source.entry.precision
        return facts

    def prepare(self, inputs: Mapping[str, DeviceArray]) -> Binding:
        if self._call is None:
            raise not_open()
        check_inputs(self._inputs, inputs, self.source.device)
        return Binding(inputs, self._call.prepare(inputs))

    def output(self, binding: Binding) -> Mapping[str, DeviceArray]:
        self._ask()
        return self._results

    def _ask(self) -> None:
        if self._tell is not None and (result := self._tell())[0]:
            driver.check(result, "reading the error word")

    def check(self) -> None:
        """Hold what `output` gave against State's error word; call it when the stream was waited for.

        Raises:
            AccelError: a wait between CTAs ran out: what was answered since the last check is void. The barriers are set back, so that
                the next call begins anew.
        """
        if self._said is None or not self._said.array[0]:
            return
        word = int(self._said.array[0])
        # Nothing of this context runs any more, so that its counters can be set back.
        self._said.array[:] = 0
        self._clear("state")
        what = "ran out" if word & fused_plan.ERROR_MASK == fused_plan.TIMED_OUT else f"failed with the error word {word}"
        where = self.engine.scheduled.waited_for(word) if self.engine else ""
        raise AccelError(
            f"{self.source.variant} on {self.source.device}: a wait between CTAs {what}{where}; the answer is void",
            remedy="call it again; where other programs share the GPU run fused:fp16+chain, in which no CTA waits for another",
        )

    def close(self) -> None:
        self.enqueue, self._home, self._results, self.launches = _closed, None, {}, ()
        self._tell, self._said, self._call = None, None, None
        if self.graph is not None:
            self.graph.close()
            self.graph = None
        self.buffers, self.engine = {}, None
        self._held.close()


def _closed(_: Binding) -> None:
    raise not_open()
