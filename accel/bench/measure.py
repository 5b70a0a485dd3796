"""What one process measures: every pass of the plan on one open engine (the passes themselves: `accel.bench.passes`)."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from accel.bench import passes, processors
from accel.bench.clock import Clock
from accel.bench.passes import Blocked, Instruments, Subject, Take
from accel.bench.plan import MeasurementPlan
from accel.bench.warming import NOT_WARM, preheat, warm_up
from accel.types import Array
from accel.verify.opened import OpenEngine

ENQUEUE_BLOCKED = "ENQUEUE_BLOCKED"
"""The call waited for the GPU (or filled the launch queue, about 1,000 launches): the watchdog had to open the gate."""
INPUT_DEPENDENT = "INPUT_DEPENDENT"
"""The same input again and again takes another time than inputs in turn."""
FOREIGN_STREAM = "FOREIGN_STREAM"
"""The call leaves work on a stream that neither the events nor the wait knew of: its latencies are those of a part."""

DIAGNOSTIC = 200
"""The most samples of a diagnostic latency."""
DISCARDED = 20
"""Calls of the preprocessing before its first sample."""
CHAINS = 5
"""Samples of replay_us, each of two chains of calls."""
ASK_AGAIN_S = 0.1
"""How long after a suspicion of work that is left it is asked again."""
SAME_LIMIT = 0.02
"""How far the medians of one input and of inputs in turn may be apart."""


@dataclasses.dataclass
class Measurement:
    """What one process measured.

    Attributes:
        samples_ns: latency kind → int64 nanoseconds in the order taken; a kind that was not measured is absent.
        wall_s: latency kind → the wall time of its pass, discarded calls included.
        blocks: how many blocks a pass of `plan.iterations` had.
        warmup_n: calls thrown away before the first sample.
        event_floor_ns: latency kind → what its pair of events reads around nothing.
        timed_ns: the clock when the first timed pass began and when the last ended.
        host: columns of who else used the processors between the two.
        flags: from the closed lists of flags and refusals.
    """

    samples_ns: dict[str, Array]
    wall_s: dict[str, float]
    blocks: int
    warmup_n: int = 0
    event_floor_ns: dict[str, int] = dataclasses.field(default_factory=dict)
    timed_ns: tuple[int, int] = (0, 0)
    host: dict[str, float | None] = dataclasses.field(default_factory=dict)
    flags: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Pass:
    """A latency kind, what fills its samples, how many, and how many calls one sample makes at least."""

    kind: str
    take: Take
    samples: int
    calls: int = 1


def first_call(engine: OpenEngine, inputs: Mapping[str, Array], clock: Clock, synchronize: Callable[[int | None], None]) -> int:
    """Nanoseconds of the very first call after open, apart from every other number."""
    binding = engine.runtime.prepare(engine.resident(inputs))
    begin = clock.now_ns()
    engine.runtime.enqueue(binding)
    synchronize(engine.stream)
    return clock.now_ns() - begin


def preprocessing_ns(preprocess: Callable[[Array], Array], images: Array, batch: int, clock: Clock) -> int:
    """Nanoseconds that a batch of uint8 images takes to become the engine's input on the host: a median, and a part of no latency."""
    samples = np.empty(DIAGNOSTIC, dtype=np.int64)
    with quiet_collector():
        for index in range(-DISCARDED, DIAGNOSTIC):
            given = images.take(range(index * batch, (index + 1) * batch), axis=0, mode="wrap")
            begin = clock.now_ns()
            preprocess(given)
            taken = clock.now_ns() - begin
            if index >= 0:
                samples[index] = taken
    gc.unfreeze()
    return int(np.median(samples))


def measure(engine: OpenEngine, inputs: Sequence[Mapping[str, Array]], plan: MeasurementPlan, instruments: Instruments) -> Measurement:
    """Run every pass of `plan` on an open engine; `inputs` are host batches by public name, rotated in order."""
    bindings = [engine.runtime.prepare(engine.resident(item)) for item in inputs]
    subject = Subject(engine, bindings, [engine.native_inputs(item) for item in inputs])
    now = instruments.clock.now_ns
    result = Measurement({}, {}, blocks=-(-plan.iterations // plan.block))
    host = passes.host(subject, instruments)
    if instruments.timer is not None:
        preheat(_busy(subject, instruments), now)
    result.warmup_n, warm = warm_up(host, plan.warmup)
    result.flags += () if warm else (NOT_WARM,)
    if instruments.synchronize_device is not None and _leaves_work(subject, instruments, instruments.synchronize_device):
        result.flags += (FOREIGN_STREAM,)
    before, first = instruments.clock.used(), now()
    try:
        for item in _passes(subject, instruments, plan, result):
            begin = now()
            try:
                result.samples_ns[item.kind] = _blocks(item, plan)
            except Blocked:
                result.flags += (ENQUEUE_BLOCKED,)
                continue
            result.wall_s[item.kind] = (now() - begin) / 1e9
        result.timed_ns = (first, now())
        result.host = processors.columns(before, instruments.clock.used(), (result.timed_ns[1] - first) / 1e9)
        if _depends_on_input(subject, instruments, plan, result.samples_ns):
            result.flags += (INPUT_DEPENDENT,)
    finally:
        gc.unfreeze()
    return result


def _passes(subject: Subject, instruments: Instruments, plan: MeasurementPlan, result: Measurement) -> Iterator[Pass]:
    """In the order in which they run; one that needs an earlier one's samples finds them in `result`."""
    timer, gate, few = instruments.timer, instruments.gate, min(plan.iterations, DIAGNOSTIC)
    yield Pass("host_us", passes.host(subject, instruments), plan.iterations)
    if timer is not None and gate is not None:
        stream, synchronize = subject.engine.stream, instruments.synchronize
        for kind, holding in (("device_us", gate), ("span_us", None)):
            result.event_floor_ns[kind] = passes.event_floor(timer, holding, lambda: synchronize(stream))
        yield Pass("device_us", passes.gated(subject, instruments, timer, gate), plan.iterations)
        yield Pass("span_us", passes.span(subject, instruments, timer), few)
        # Calls that follow each other at once find each other's data in the cache: neither has a cold variant.
        if instruments.flush is None:
            yield Pass("enqueue_us", passes.enqueue_only(subject, instruments), few)
            call_ns = float(np.median(result.samples_ns["host_us"]))
            yield Pass("replay_us", passes.replay(subject, instruments, timer, call_ns), CHAINS, 3 * passes.SHORTEST)
    yield Pass("e2e_us", passes.e2e(subject, instruments), plan.e2e_iterations or plan.iterations)
    if plan.idle_ms:
        yield Pass("paced_us", passes.host(subject, instruments, idle_s=plan.idle_ms / 1e3), few)


def _busy(subject: Subject, instruments: Instruments) -> Callable[[int], None]:
    enqueue, stream, bindings = subject.engine.runtime.enqueue, subject.engine.stream, subject.bindings

    def calls(count: int) -> None:
        for index in range(count):
            enqueue(bindings[index % len(bindings)])
        instruments.synchronize(stream)

    return calls


def _leaves_work(subject: Subject, instruments: Instruments, synchronize_device: Callable[[], None], times: int = 3) -> bool:
    """Whether the device still works when the stream is done.

    A call that leaves work leaves it always; the processor of a virtual machine that stumbles does so for a moment, which is what seems
    to have had a third run refused on an H200 that took as long as the two before. So a suspicion is asked again, some time later.
    """
    for attempt in range(times):
        if attempt:
            instruments.clock.sleep(ASK_AGAIN_S)
        if not _most_leave_work(subject, instruments, synchronize_device):
            return False
    return True


def _most_leave_work(subject: Subject, instruments: Instruments, synchronize_device: Callable[[], None], calls: int = 5) -> bool:
    engine, now = subject.engine, instruments.clock.now_ns
    found = []

    def after_the_stream() -> int:
        return passes.work_after_ns(instruments.clock, lambda: instruments.synchronize(engine.stream), synchronize_device)

    for index in range(calls):
        synchronize_device()
        # What such a wait costs where nothing is left to do is no work of the call.
        idle = after_the_stream()
        begin = now()
        engine.runtime.enqueue(subject.bindings[index % len(subject.bindings)])
        instruments.synchronize(engine.stream)
        taken = now() - begin
        found.append(passes.is_elsewhere(after_the_stream() - idle, taken))
    return sum(found) > calls // 2


def _depends_on_input(subject: Subject, instruments: Instruments, plan: MeasurementPlan, taken: Mapping[str, Array]) -> bool:
    """Whether one input alone takes the GPU another time than inputs in turn; the caches are the same, only the data differ.

    Asked of the GPU's own time: on an H200's virtual machine the host's share of a graph replay wandered by 5 % where device_us held
    still within 0.2 %.
    """
    timer, gate = instruments.timer, instruments.gate
    alone = dataclasses.replace(subject, bindings=subject.bindings[:1])
    if timer is not None and gate is not None and "device_us" in taken:
        kind, take = "device_us", passes.gated(alone, instruments, timer, gate)
    elif timer is not None and "span_us" in taken:
        kind, take = "span_us", passes.span(alone, instruments, timer)
    else:
        return False
    try:
        same = _blocks(Pass(kind, take, min(plan.iterations, DIAGNOSTIC)), plan)
    except Blocked:
        return False
    ratio = float(np.median(same)) / max(float(np.median(taken[kind])), 1.0)
    return abs(ratio - 1) > SAME_LIMIT


def _blocks(item: Pass, plan: MeasurementPlan) -> Array:
    """All samples of a pass, preallocated, in blocks of `plan.block`; those of a block's first `plan.discard` calls are thrown away."""
    samples = np.zeros(item.samples, dtype=np.int64)
    discarded = np.empty(min(-(-plan.discard // item.calls), item.samples), dtype=np.int64)
    for start in range(0, item.samples, plan.block):
        with quiet_collector():
            item.take(discarded, start)
            item.take(samples[start : start + plan.block], start + len(discarded))
    return samples


@contextlib.contextmanager
def quiet_collector() -> Iterator[None]:
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
