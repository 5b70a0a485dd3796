"""The timed passes of one process: one latency and one clock a pass (protocol: measurement.md).

`host_us`    enqueue(binding[i % n]) and one synchronize, inputs on the device in the native dtype; the host's clock
`device_us`  GPU time alone: a gate holds the stream until start event, call and stop event are all enqueued; CUDA events
`span_us`    the same events without the gate, so launch gaps are inside; a diagnostic
`e2e_us`     host array → pinned → H2D into home → enqueue(home) → D2H → synchronize → owned array; the host's clock

On a CPU only host_us and e2e_us exist.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from accel.bench.clock import Clock, DeviceTimer
from accel.bench.plan import MeasurementPlan
from accel.types import Array
from accel.verify.opened import OpenEngine

ENQUEUE_BLOCKED = "ENQUEUE_BLOCKED"
"""The call waited for the GPU (or filled the launch queue, about 1,000 launches): the watchdog had to open the gate."""


class HoldingGate(Protocol):
    blocked: bool

    def hold(self) -> None: ...
    def open(self) -> None: ...


@dataclasses.dataclass
class Measurement:
    """What one process measured.

    Attributes:
        samples_ns: latency kind → int64 nanoseconds in the order taken; a kind that was not measured is absent.
        wall_s: latency kind → the wall time of its pass, discarded calls included.
        blocks: how many blocks a pass had.
        flags: from the closed list of flags.
    """

    samples_ns: dict[str, Array]
    wall_s: dict[str, float]
    blocks: int
    flags: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Instruments:
    """What measures: the host's clock, how to wait for the stream, and on a GPU the events and the gate."""

    clock: Clock
    synchronize: Callable[[int | None], None]
    timer: DeviceTimer | None = None
    gate: HoldingGate | None = None

    def close(self) -> None:
        if self.timer is not None:
            self.timer.close()


def first_call(engine: OpenEngine, inputs: Mapping[str, Array], clock: Clock, synchronize: Callable[[int | None], None]) -> int:
    """Nanoseconds of the very first call after open, apart from every other number."""
    binding = engine.runtime.prepare(engine.resident(inputs))
    begin = clock.now_ns()
    engine.runtime.enqueue(binding)
    synchronize(engine.stream)
    return clock.now_ns() - begin


def measure(engine: OpenEngine, inputs: Sequence[Mapping[str, Array]], plan: MeasurementPlan, instruments: Instruments) -> Measurement:
    """Run every pass of `plan` on an open engine; `inputs` are host batches by public name, rotated in order."""
    runtime, stream = engine.runtime, engine.stream
    native = [engine.native_inputs(item) for item in inputs]
    bindings = [runtime.prepare(engine.resident(item)) for item in inputs]
    clock, synchronize = instruments.clock, instruments.synchronize
    now = clock.now_ns
    enqueue, run_staged = runtime.enqueue, engine.staging.run
    count = len(bindings)

    def host(samples: Array, offset: int) -> None:
        for index in range(len(samples)):
            binding = bindings[(offset + index) % count]
            begin = now()
            enqueue(binding)
            synchronize(stream)
            samples[index] = now() - begin

    def e2e(samples: Array, offset: int) -> None:
        for index in range(len(samples)):
            arrays = native[(offset + index) % count]
            begin = now()
            run_staged(runtime, arrays)
            samples[index] = now() - begin

    host(np.empty(plan.warmup, dtype=np.int64), 0)
    result = Measurement({}, {}, blocks=-(-plan.iterations // plan.block))
    passes: dict[str, Callable[[Array, int], None]] = {"host_us": host}
    if instruments.timer is not None and instruments.gate is not None:
        passes |= _device_passes(instruments.timer, instruments.gate, engine, bindings, synchronize)
    passes["e2e_us"] = e2e
    try:
        for kind, take in passes.items():
            begin = now()
            try:
                result.samples_ns[kind] = _blocks(take, plan)
            except _Blocked:
                result.flags += (ENQUEUE_BLOCKED,)
                continue
            result.wall_s[kind] = (now() - begin) / 1e9
    finally:
        gc.unfreeze()
    return result


class _Blocked(Exception):
    """The gate was opened by its watchdog: what the events bracket is no longer the call alone."""


def _device_passes(
    timer: DeviceTimer,
    gate: HoldingGate,
    engine: OpenEngine,
    bindings: Sequence[object],
    synchronize: Callable[[int | None], None],
) -> dict[str, Callable[[Array, int], None]]:
    stream, count = engine.stream, len(bindings)
    enqueue: Callable[..., None] = engine.runtime.enqueue

    def gated(samples: Array, offset: int) -> None:
        for index in range(len(samples)):
            binding = bindings[(offset + index) % count]
            gate.hold()
            try:
                timer.start()
                enqueue(binding)
                timer.stop()
            finally:
                # Whatever went wrong, a stream left waiting would hang every later call.
                gate.open()
            synchronize(stream)
            if gate.blocked:
                raise _Blocked
            samples[index] = timer.elapsed_ns()

    def span(samples: Array, offset: int) -> None:
        for index in range(len(samples)):
            binding = bindings[(offset + index) % count]
            timer.start()
            enqueue(binding)
            timer.stop()
            synchronize(stream)
            samples[index] = timer.elapsed_ns()

    return {"device_us": gated, "span_us": span}


def _blocks(take: Callable[[Array, int], None], plan: MeasurementPlan) -> Array:
    """All samples of a pass, preallocated, in blocks of `plan.block`; the first `plan.discard` calls of a block are thrown away."""
    samples = np.zeros(plan.iterations, dtype=np.int64)
    discarded = np.empty(plan.discard, dtype=np.int64)
    for start in range(0, plan.iterations, plan.block):
        with _quiet_collector():
            take(discarded, start)
            take(samples[start : start + plan.block], start + plan.discard)
    return samples


@contextlib.contextmanager
def _quiet_collector() -> Iterator[None]:
    """No garbage collection inside: collect before, and freeze what survives, so that the next block's collection is short."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
