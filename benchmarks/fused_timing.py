"""Times of an open fused runtime: behind a gate, back to back, as a caller waits, what each kernel adds, and two ways in turn."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from accel import device
from accel.bench.clock import EventTimer, HostClock
from accel.device import kernels
from accel.runtimes.fused import Fused
from accel.types import Binding

WARM_S, LENGTH, ROUNDS = 0.3, 200, 15
REPEATS, PART_LENGTH, PART_ROUNDS = 20, 10, 5
WAYS = {"largest": True, "driver": False}
WAY_ROUNDS = 5
"""Turns of each way of two that are compared: their medians are told, and every turn's."""


def times(runtime: Fused, stream: int | None, samples: int) -> dict[str, Any]:
    """Medians in µs: `device_us`, `chain_us`, `host_us`, `floor_us` of two events around nothing; for several kernels `kernels_us`."""
    assert stream is not None
    now, timer, gate = HostClock().now_ns, EventTimer(stream), device.Gate(stream)
    try:
        begin = now()
        while now() - begin < WARM_S * 1e9:
            runtime.enqueue(runtime.home)
            device.synchronize(stream)
        found: dict[str, Any] = {
            "ok": True,
            "floor_us": _gated(lambda: None, stream, timer, gate, samples),
            "device_us": _gated(lambda: runtime.enqueue(runtime.home), stream, timer, gate, samples),
            "chain_us": _chained(runtime.graph, stream, timer, ROUNDS, LENGTH),
            "host_us": _host(runtime, stream, samples),
            "gate_blocked": gate.blocked,
        }
        if len(runtime.launches) > 1:
            found["kernels_us"] = _kernels(runtime, stream, timer)
    finally:
        timer.close()
    runtime.check()
    return found


def carveouts(runtime: Fused, stream: int | None, samples: int) -> dict[str, Any]:
    """Medians in µs of the graph, captured anew, with the largest carve-out of shared memory for every kernel, as the runtime has it, and
    with what the driver chooses: in turn, so that what drifts is in both."""
    assert stream is not None
    timer, gate = EventTimer(stream), device.Gate(stream)
    device_us: dict[str, list[float]] = {way: [] for way in WAYS}
    chain_us: dict[str, list[float]] = {way: [] for way in WAYS}
    try:
        for way in (way for _ in range(WAY_ROUNDS) for way in WAYS):
            for launch in runtime.launches:
                kernels.prefer_shared(launch.function, launch.kernel, largest=WAYS[way])
            graph = device.capture(runtime.source.device, stream, lambda: _launch(runtime))
            try:
                _replayed(graph, stream)
                device_us[way].append(_gated(graph.launch, stream, timer, gate, samples))
                chain_us[way].append(_chained(graph, stream, timer, ROUNDS, LENGTH) or 0.0)
            finally:
                graph.close()
    finally:
        for launch in runtime.launches:
            kernels.prefer_shared(launch.function, launch.kernel)
        timer.close()
    runtime.check()
    return {"ok": True, **_compared("device_us", device_us), **_compared("chain_us", chain_us)}


def images(runtime: Fused, stream: int | None, given: Sequence[Binding], copied: Sequence[Binding], samples: int) -> dict[str, Any]:
    """Medians in µs of a call whose image is at home, of calls of `given` in turn (each sets another address), and of `copied` in turn
    (each copies its image to home in front of the graph): the ways take turns too."""
    assert stream is not None
    timer, gate = EventTimer(stream), device.Gate(stream)

    ways: dict[str, tuple[Callable[[Binding], None], Sequence[Binding]]] = {
        "home": (runtime.enqueue, [runtime.home]),
        "set": (runtime.enqueue, given),
        "copied": (device.replay, copied),
    }
    device_us: dict[str, list[float]] = {way: [] for way in ways}
    host_us: dict[str, list[float]] = {way: [] for way in ways}
    try:
        for way, (enqueue, bindings) in (item for _ in range(WAY_ROUNDS) for item in ways.items()):
            # What `copied` replays reads home.
            runtime.enqueue(runtime.home)
            device.synchronize(stream)
            turns = itertools.cycle(bindings)

            def call(enqueue: Any = enqueue, turns: Any = turns) -> None:
                enqueue(next(turns))

            device_us[way].append(_gated(call, stream, timer, gate, samples))
            host_us[way].append(_called(call, stream, samples))
    finally:
        timer.close()
    runtime.check()
    return {**_compared("device_us", device_us), **_compared("host_us", host_us)}


def _launch(runtime: Fused) -> None:
    for launch in runtime.launches:
        launch()


def _replayed(graph: device.Graph, stream: int) -> None:
    for _ in range(LENGTH):
        graph.launch()
    device.synchronize(stream)


def _compared(what: str, found: dict[str, list[float]]) -> dict[str, Any]:
    """Of ways that took turns: the median of each, and all turns, so that a difference can be held against their spread."""
    medians = {f"{what}_{way}": round(statistics.median(taken), 3) for way, taken in found.items()}
    return {**medians, f"{what}_turns": {way: [round(one, 3) for one in taken] for way, taken in found.items()}}


def _gated(call: Any, stream: int, timer: EventTimer, gate: device.Gate, samples: int) -> float:
    taken = []
    for _ in range(samples):
        with gate:
            timer.start()
            call()
            timer.stop()
        device.synchronize(stream)
        taken.append(timer.elapsed_ns())
    return round(statistics.median(taken) / 1000, 2)


def _host(runtime: Fused, stream: int, samples: int) -> float:
    return _called(lambda: runtime.enqueue(runtime.home), stream, samples)


def _called(call: Callable[[], None], stream: int, samples: int) -> float:
    now, taken = HostClock().now_ns, []
    for _ in range(samples):
        begin = now()
        call()
        device.synchronize(stream)
        taken.append(now() - begin)
    return round(statistics.median(taken) / 1000, 2)


def _chained(graph: device.Graph | None, stream: int, timer: EventTimer, rounds: int, length: int) -> float | None:
    """Per call, of `length` and 2 · `length` calls between two events: the difference, so that the pair's own cost is out of it."""
    if graph is None:
        return None

    def run(calls: int) -> int:
        timer.start()
        for _ in range(calls):
            graph.launch()
        timer.stop()
        device.synchronize(stream)
        return timer.elapsed_ns()

    return round(statistics.median([(run(2 * length) - run(length)) / length for _ in range(rounds)]) / 1000, 3)


def _kernels(runtime: Fused, stream: int, timer: EventTimer) -> dict[str, float]:
    """What each kernel adds to those before it, in graphs that have them REPEATS times: else the host could not launch the short ones as
    fast as they run."""
    found: dict[str, float] = {}
    before = 0.0
    for count, launch in enumerate(runtime.launches, start=1):
        part = runtime.launches[:count]

        def enqueue(part: Any = part) -> None:
            for _ in range(REPEATS):
                for item in part:
                    item()

        graph = device.capture(runtime.source.device, stream, enqueue)
        try:
            whole = (_chained(graph, stream, timer, PART_ROUNDS, PART_LENGTH) or 0.0) / REPEATS
        finally:
            graph.close()
        found[launch.kernel.name] = round(whole - before, 3)
        before = whole
    return found
