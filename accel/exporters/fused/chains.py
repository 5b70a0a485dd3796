"""Chains on the GPU here whose kernels are compiled one by one, so that one layer's can be another while all others stay: for timing."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from accel import device
from accel.device import driver, kernels
from accel.engines.fused_plan import PARAMETERS
from accel.errors import AccelError
from accel.exporters.fused.pack import placed
from accel.exporters.fused.plan import Plan
from accel.types import Array, DeviceArray, Kernel

LENGTH = 100
"""Replays of a graph between two events; the time is of the difference to twice as many."""
TURNS = 9
WARM_S = 0.1
"""Of the first chain of a comparison, so that the clocks are up before anything is timed."""
WRONG = 0.02
"""Of the largest logit: what another order of sums and roundings does to it stays far below."""

STATE_BYTES = 256


@dataclasses.dataclass(frozen=True)
class Part:
    """One step's kernel: machine code, its launch, and its weights, which lie from `offset` on in the file of their plan."""

    kernel: Kernel
    cubin: bytes
    offset: int
    weights: bytes


def part_of(plan: Plan, index: int, kernel: Kernel, cubin: bytes, pixels: tuple[Array, Array] | None) -> Part:
    parts = dict(placed(plan, plan.steps[index], pixels))
    offset = min(parts, default=0)
    blob = bytearray(max((start + len(data) for start, data in parts.items()), default=offset) - offset)
    for start, data in parts.items():
        blob[start - offset : start - offset + len(data)] = data
    return Part(kernel, cubin, offset, bytes(blob))


class Chains:
    """Kernels of several plans of one network, over one arena: where activations lie does not depend on tiles.

    Args:
        image: 1 × …, in the dtype that the plans take. classes: of the answer.
    """

    def __init__(self, on: str, stream: int, image: Array, arena_bytes: int, classes: int) -> None:
        self._on, self._stream = on, stream
        draw = np.random.default_rng(0)
        self._image = device.to_device(image, str(image.dtype), on, stream)
        arena = draw.standard_normal(arena_bytes // 2).astype(np.float16)
        self._arena = device.to_device(arena, "float16", on, stream)
        self._logits = device.empty((classes,), "float32", on)
        self._state = device.to_device(np.zeros(STATE_BYTES, np.uint8), "uint8", on, stream)
        self._launches: dict[Any, kernels.Launch] = {}
        self._weights: list[DeviceArray] = []

    def add(self, key: Any, part: Part) -> None:
        """Load a kernel; `compare` names it by `key`."""
        module = kernels.Module(part.cubin, self._on, f"a candidate for {part.kernel.name}")
        weights = device.to_device(np.frombuffer(part.weights or b"\0", np.uint8), "uint8", self._on, self._stream)
        self._weights.append(weights)
        # The kernel adds its offset in the plan's file, of which only its own part is here.
        places = {"image": self._image.ptr, "weights": weights.ptr - part.offset, "arena": self._arena.ptr}
        places |= {"logits": self._logits.ptr, "state": self._state.ptr}
        arguments = [places[name] for name in PARAMETERS]
        launch = self._launches[key] = kernels.Launch(module, part.kernel, arguments, self._stream, "leave --tune out")
        # What a first launch loads could not be captured.
        launch()
        device.synchronize(self._stream)

    def compare(self, chains: Sequence[Sequence[Any]]) -> list[list[float]]:
        """µs a replay of each chain (keys of its kernels, in order), a list a turn; infinite where it answers otherwise than the first."""
        timer = _Timer(self._stream)
        graphs: list[device.Graph] = []
        try:
            graphs = [self._captured(keys) for keys in chains]
            self._warm(graphs[0])
            answers = [self._answer(graph) for graph in graphs]
            if not np.isfinite(answers[0]).all():
                raise AccelError("the chain answers with infinities, so that its tiles cannot be tuned", remedy="leave --tune out")
            limit = WRONG * float(np.abs(answers[0]).max())
            right = [bool(np.abs(answer - answers[0]).max() <= limit) for answer in answers]
            turns = []
            for turn in range(TURNS):
                # Forwards and backwards, so that what drifts is in all of them.
                order = range(len(graphs)) if turn % 2 == 0 else range(len(graphs) - 1, -1, -1)
                found = {index: self._us(graphs[index], timer) for index in order}
                turns.append([found[index] if right[index] else float("inf") for index in range(len(graphs))])
            return turns
        finally:
            timer.close()
            for graph in graphs:
                graph.close()

    def _captured(self, keys: Sequence[Any]) -> device.Graph:
        launches = [self._launches[key] for key in keys]

        def enqueue() -> None:
            for launch in launches:
                launch()

        return device.capture(self._on, self._stream, enqueue)

    def _warm(self, graph: device.Graph) -> None:
        until = time.monotonic() + WARM_S
        while time.monotonic() < until:
            graph.launch()
            device.synchronize(self._stream)

    def _answer(self, graph: device.Graph) -> Array:
        cuda = driver.bindings()
        driver.check(cuda.cuMemsetD8Async(self._logits.ptr, 0xFF, self._logits.nbytes, self._stream), "filling the logits with NaN")
        graph.launch()
        return device.to_numpy(self._logits, self._stream)

    def _us(self, graph: device.Graph, timer: _Timer) -> float:
        short, long = (timer.us(graph.launch, count) for count in (LENGTH, 2 * LENGTH))
        return (long - short) / LENGTH


class _Timer:
    """Two CUDA events around calls."""

    def __init__(self, stream: int) -> None:
        self._cuda, self._stream = driver.bindings(), stream
        self._events = [driver.check(self._cuda.cuEventCreate(0), "creating an event") for _ in range(2)]

    def us(self, call: Callable[[], None], count: int) -> float:
        begin, end = self._events
        driver.check(self._cuda.cuEventRecord(begin, self._stream), "recording an event")
        for _ in range(count):
            call()
        driver.check(self._cuda.cuEventRecord(end, self._stream), "recording an event")
        device.synchronize(self._stream)
        return float(driver.check(self._cuda.cuEventElapsedTime(begin, end), "reading two events")) * 1000

    def close(self) -> None:
        for event in self._events:
            driver.check(self._cuda.cuEventDestroy(event), "freeing an event")


def median(turns: Sequence[Sequence[float]], index: int) -> float:
    return statistics.median(turn[index] for turn in turns)
