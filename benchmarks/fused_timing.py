"""Times of an open fused runtime: behind a gate, back to back, as a caller waits, what each kernel adds, and two ways in turn."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from accel import device
from accel.bench.clock import EventTimer, HostClock
from accel.device import kernels
from accel.runtimes.fused import Fused

WARM_S, LENGTH, ROUNDS = 0.3, 200, 15
REPEATS, PART_LENGTH, PART_ROUNDS = 20, 10, 9
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


def ways(runtime: Fused, stream: int | None, calls: Mapping[str, Sequence[Callable[[], None]]], samples: int) -> dict[str, Any]:
    """Medians in µs of the calls of each way, which go round; before each way the image's address is that of home again."""
    assert stream is not None
    timer, gate = EventTimer(stream), device.Gate(stream)
    device_us: dict[str, list[float]] = {way: [] for way in calls}
    host_us: dict[str, list[float]] = {way: [] for way in calls}
    try:
        for way in (way for _ in range(WAY_ROUNDS) for way in calls):
            runtime.enqueue(runtime.home)
            device.synchronize(stream)
            turns = itertools.cycle(calls[way])

            def call(turns: Iterator[Callable[[], None]] = turns) -> None:
                next(turns)()

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
    fast as they run. The graphs take turns: a difference is of neighbours in time."""
    graphs = [_prefix(runtime, stream, count) for count in range(1, len(runtime.launches) + 1)]
    try:
        turns = [[(_chained(graph, stream, timer, 1, PART_LENGTH) or 0.0) / REPEATS for graph in graphs] for _ in range(PART_ROUNDS)]
    finally:
        for graph in graphs:
            graph.close()
    added = [[own - before for own, before in zip(turn, [0.0, *turn[:-1]], strict=True)] for turn in turns]
    names = [launch.kernel.name for launch in runtime.launches]
    return {name: round(statistics.median(turn[index] for turn in added), 3) for index, name in enumerate(names)}


def _prefix(runtime: Fused, stream: int, count: int) -> device.Graph:
    def enqueue() -> None:
        for _ in range(REPEATS):
            for launch in runtime.launches[:count]:
                launch()

    return device.capture(runtime.source.device, stream, enqueue)
