"""The timed passes, one latency and one clock each: functions that fill int64 nanoseconds (protocol: measurement.md).

`host_us`    enqueue(binding[i % n]) and one synchronize, inputs on the device in the native dtype; the host's clock
`device_us`  GPU time alone: a gate holds the stream until start event, call and stop event are all enqueued; CUDA events
`e2e_us`     host array → pinned → H2D into home → enqueue(home) → D2H → synchronize → owned array; the host's clock
`paced_us`   host_us after the process slept: what a service sees that is called now and then

Diagnostics, never a headline: `span_us` is device_us without the gate, so launch gaps are inside; `enqueue_us` ends when the call
returns; `replay_us` is [T(2k) - T(k)] / k over k calls back to back, a throughput, compared with no latency.

On a CPU only host_us, e2e_us and paced_us exist.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from accel.bench.clock import Clock, DeviceTimer
from accel.types import Array, Binding
from accel.verify.opened import OpenEngine

Take = Callable[[Array, int], None]
"""Fill the samples, beginning with input number `offset`."""

CHAIN_NS = 20_000_000
"""About how long the calls of one chain of `replay_us` take together."""
SHORTEST, LONGEST = 10, 200
"""Calls of a chain."""
EMPTY_PAIRS = 1000


class Blocked(Exception):
    """The gate was opened by its watchdog: what the events bracket is no longer the call alone."""


class HoldingGate(Protocol):
    blocked: bool

    def hold(self) -> None: ...
    def open(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Instruments:
    """What measures: the host's clock, how to wait for the stream, and on a GPU the events and the gate.

    Attributes:
        synchronize_device: waits for every stream; with it a call that leaves work on another stream is found out.
        flush: puts other data into the GPU's L2 cache before a sample; None leaves it as the last call did.
    """

    clock: Clock
    synchronize: Callable[[int | None], None]
    timer: DeviceTimer | None = None
    gate: HoldingGate | None = None
    synchronize_device: Callable[[], None] | None = None
    flush: Callable[[], None] | None = None

    def close(self) -> None:
        if self.timer is not None:
            self.timer.close()


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is called: an open engine, with `bindings` on the device and `arrays` on the host, by native name, rotated in order."""

    engine: OpenEngine
    bindings: Sequence[Binding]
    arrays: Sequence[Mapping[str, Array]]


def host(subject: Subject, instruments: Instruments, *, idle_s: float = 0.0) -> Take:
    """`host_us`; after a sleep of `idle_s` it is `paced_us`."""
    now, pause, synchronize = instruments.clock.now_ns, instruments.clock.sleep, instruments.synchronize
    enqueue, stream, bindings = subject.engine.runtime.enqueue, subject.engine.stream, subject.bindings
    count, cool = len(bindings), _cooler(subject, instruments)

    def take(samples: Array, offset: int) -> None:
        for index in range(len(samples)):
            binding = bindings[(offset + index) % count]
            if idle_s:
                pause(idle_s)
            if cool is not None:
                cool()
            begin = now()
            enqueue(binding)
            synchronize(stream)
            samples[index] = now() - begin

    return take


def enqueue_only(subject: Subject, instruments: Instruments) -> Take:
    """`enqueue_us`: until the call returns; the GPU is waited for outside."""
    now, synchronize = instruments.clock.now_ns, instruments.synchronize
    enqueue, stream, bindings = subject.engine.runtime.enqueue, subject.engine.stream, subject.bindings
    count = len(bindings)

    def take(samples: Array, offset: int) -> None:
        for index in range(len(samples)):
            binding = bindings[(offset + index) % count]
            begin = now()
            enqueue(binding)
            samples[index] = now() - begin
            synchronize(stream)

    return take


def e2e(subject: Subject, instruments: Instruments) -> Take:
    now, runtime, run_staged = instruments.clock.now_ns, subject.engine.runtime, subject.engine.staging.run
    arrays, count, cool = subject.arrays, len(subject.arrays), _cooler(subject, instruments)

    def take(samples: Array, offset: int) -> None:
        for index in range(len(samples)):
            given = arrays[(offset + index) % count]
            if cool is not None:
                cool()
            begin = now()
            run_staged(runtime, given)
            samples[index] = now() - begin

    return take


def gated(subject: Subject, instruments: Instruments, timer: DeviceTimer, gate: HoldingGate) -> Take:
    """`device_us`; the pass raises Blocked when the watchdog had to open the gate."""
    enqueue, stream, bindings = subject.engine.runtime.enqueue, subject.engine.stream, subject.bindings
    count, cool, synchronize = len(bindings), _cooler(subject, instruments), instruments.synchronize

    def take(samples: Array, offset: int) -> None:
        for index in range(len(samples)):
            binding = bindings[(offset + index) % count]
            if cool is not None:
                cool()
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
                raise Blocked
            samples[index] = timer.elapsed_ns()

    return take


def span(subject: Subject, instruments: Instruments, timer: DeviceTimer) -> Take:
    enqueue, stream, bindings = subject.engine.runtime.enqueue, subject.engine.stream, subject.bindings
    count, cool, synchronize = len(bindings), _cooler(subject, instruments), instruments.synchronize

    def take(samples: Array, offset: int) -> None:
        for index in range(len(samples)):
            binding = bindings[(offset + index) % count]
            if cool is not None:
                cool()
            timer.start()
            enqueue(binding)
            timer.stop()
            synchronize(stream)
            samples[index] = timer.elapsed_ns()

    return take


def replay(subject: Subject, instruments: Instruments, timer: DeviceTimer, call_ns: float) -> Take:
    """`replay_us`; `call_ns` is about what a call takes, and settles how many make a chain."""
    enqueue, stream, bindings = subject.engine.runtime.enqueue, subject.engine.stream, subject.bindings
    count, synchronize = len(bindings), instruments.synchronize
    length = int(min(max(CHAIN_NS / max(call_ns, 1.0), SHORTEST), LONGEST))

    def chain(calls: int) -> int:
        timer.start()
        for index in range(calls):
            enqueue(bindings[index % count])
        timer.stop()
        synchronize(stream)
        return timer.elapsed_ns()

    def take(samples: Array, offset: int) -> None:
        for index in range(len(samples)):
            once = chain(length)
            samples[index] = max(chain(2 * length) - once, 0) // length

    return take


def event_floor(timer: DeviceTimer, gate: HoldingGate | None, synchronize: Callable[[], Any], pairs: int = EMPTY_PAIRS) -> int:
    """The median of what two events around nothing read, in nanoseconds, with the gate or (None) without it."""
    samples = np.empty(pairs, dtype=np.int64)
    for index in range(pairs):
        if gate is not None:
            gate.hold()
        try:
            timer.start()
            timer.stop()
        finally:
            if gate is not None:
                gate.open()
        synchronize()
        samples[index] = timer.elapsed_ns()
    return int(np.median(samples))


def work_after_ns(clock: Clock, synchronize: Callable[[], None], synchronize_device: Callable[[], None]) -> int:
    """How long the device goes on after the stream is done."""
    synchronize()
    begin = clock.now_ns()
    synchronize_device()
    return clock.now_ns() - begin


def is_elsewhere(missed_ns: float, call_ns: float, least_ns: float = 20_000) -> bool:
    """Whether what the stream's events bracket is not all of a call's work: more than a tenth of it, and than a wait costs, came after."""
    return missed_ns > max(least_ns, 0.1 * call_ns)


def _cooler(subject: Subject, instruments: Instruments) -> Callable[[], None] | None:
    """What empties the L2 cache of the engine's data and waits for that; None where the cache is to stay hot."""
    flush, synchronize, stream = instruments.flush, instruments.synchronize, subject.engine.stream
    if flush is None:
        return None

    def cool() -> None:
        flush()
        synchronize(stream)

    return cool
