"""Kernels of one network on the GPU here, timed: chains of kernels that were compiled one by one, whole grids, all schedules of an engine.

Times are taken behind a gate (device.Gate), opened when all is enqueued: what the host does meanwhile has no part in them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from accel import device
from accel.device import driver, kernels
from accel.engines.fused_plan import PARAMETERS
from accel.errors import AccelError
from accel.exporters.fused.network import Network
from accel.exporters.fused.pack import placed
from accel.exporters.fused.plan import Plan
from accel.types import Array, DeviceArray, Kernel

LENGTH, SHORTEST, RUN_US = 100, 20, 2000.0
"""Replays of a graph between two events, fewer where they take longer than RUN_US; the time is of the difference to twice as many."""
SAMPLES = 40
"""Single replays of a turn, each between two events of its own."""
TURNS = 9
WARM_S = 0.1
"""Of the first chain of a comparison, so that the clocks are up before anything is timed."""
WRONG = 0.02
"""Of the largest logit: what another order of sums and roundings does to it stays far below."""

STATE_BYTES = 256


@dataclasses.dataclass(frozen=True)
class Part:
    """Kernels of one machine code, in order: their launches, their weights, which lie from `offset` on in the file of their plan, and how
    many bytes of State are theirs alone."""

    kernels: tuple[Kernel, ...]
    cubin: bytes
    offset: int
    weights: bytes
    state_bytes: int = STATE_BYTES


def part_of(plan: Plan, index: int, kernel: Kernel, cubin: bytes, pixels: tuple[Array, Array] | None) -> Part:
    """Of one step of a chain."""
    parts = dict(placed(plan, plan.steps[index], pixels))
    offset = min(parts, default=0)
    blob = bytearray(max((start + len(data) for start, data in parts.items()), default=offset) - offset)
    for start, data in parts.items():
        blob[start - offset : start - offset + len(data)] = data
    return Part((kernel,), cubin, offset, bytes(blob))


@dataclasses.dataclass(frozen=True)
class Room:
    """What the kernels of a network share: the shape and dtype of its image, the arena's bytes, and how many logits it has."""

    image: tuple[int, ...]
    input_dtype: str
    arena_bytes: int
    classes: int

    @classmethod
    def of(cls, network: Network, input_dtype: str, arena_bytes: int) -> Room:
        shape = network.input
        sizes = (shape.channels, shape.height, shape.width) if input_dtype == "float16" else (shape.height, shape.width, shape.channels)
        return cls((1, *sizes), input_dtype, arena_bytes, network.layers[-1].output.channels)


@contextlib.contextmanager
def opened(network: Network, on: str, input_dtype: str, arena_bytes: int) -> Iterator[Chains]:
    """`Chains` of `network` on a stream of their own, with some image, in this process: a candidate that kills the context ends it
    (apart.py has them in another)."""
    with opened_in(Room.of(network, input_dtype, arena_bytes), on) as found:
        yield found


@contextlib.contextmanager
def opened_in(room: Room, on: str) -> Iterator[Chains]:
    driver.activate(on)
    stream = device.open_stream(on)
    assert stream is not None
    try:
        image = np.random.default_rng(1).integers(0, 2, room.image).astype(room.input_dtype)
        yield Chains(on, stream, image, room.arena_bytes, room.classes)
    finally:
        device.close_stream(stream)


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
        self._launches: dict[Any, list[kernels.Launch]] = {}
        self._held: list[DeviceArray] = []

    def __contains__(self, key: Any) -> bool:
        return key in self._launches

    def add(self, key: Any, part: Part) -> None:
        """Load kernels; `compare` names them by `key`.

        Raises:
            RuntimeUnavailable: this GPU cannot launch one of them.
        """
        kernels_of = ", ".join(kernel.name for kernel in part.kernels)
        module = kernels.Module(part.cubin, self._on, f"a candidate for {kernels_of}")
        weights, state = (
            device.to_device(np.frombuffer(data, np.uint8), "uint8", self._on, self._stream)
            for data in (part.weights or b"\0", bytes(max(part.state_bytes, STATE_BYTES)))
        )
        self._held += [weights, state]
        # A kernel adds its offset in the plan's file, of which only its own part may be here.
        places = {"image": self._image.ptr, "weights": weights.ptr - part.offset, "arena": self._arena.ptr}
        places |= {"logits": self._logits.ptr, "state": state.ptr}
        arguments = [places[name] for name in PARAMETERS]
        launches = [kernels.Launch(module, kernel, arguments, self._stream, "leave --tune out") for kernel in part.kernels]
        # What a first launch loads could not be captured.
        for launch in launches:
            launch()
        device.synchronize(self._stream)
        self._launches[key] = launches

    def lives(self) -> bool:
        """Whether the context can still be used: what went wrong on the GPU itself (an address outside its memory) ends it for good."""
        try:
            device.synchronize(self._stream)
        except AccelError:
            return False
        return True

    def compare(
        self, chains: Sequence[Sequence[Any]], single: bool = False, begins: Callable[[int], None] = lambda index: None
    ) -> list[list[float]]:
        """µs a replay of each chain (keys of its kernels, in order), a list a turn; infinite where it answers otherwise than the first.

        Args:
            single: a replay alone between two events, as `accel bench` takes `device`, not back to back.
            begins: told whose replays come next.
        """

        def at(index: int) -> device.Graph:
            begins(index)
            return graphs[index]

        timer = _Timer(self._stream)
        graphs: list[device.Graph] = []
        try:
            graphs = [self._captured(keys) for keys in chains]
            self._warm(at(0))
            first = self._answer(graphs[0])
            if not np.isfinite(first).all():
                raise AccelError("the first of them answers with infinities, so that nothing can be compared", remedy="leave --tune out")
            lengths = [timer.length(at(index).launch) for index in range(len(graphs))]
            turns = []
            for turn in range(TURNS):
                # Forwards and backwards, so that what drifts is in all of them.
                order = range(len(graphs)) if turn % 2 == 0 else range(len(graphs) - 1, -1, -1)
                found = {
                    index: timer.single(at(index).launch) if single else timer.chained(at(index).launch, lengths[index]) for index in order
                }
                turns.append([found[index] for index in range(len(graphs))])
            # Asked last: a wait that ran out ends the later launches at once, which would pass as fast.
            limit = WRONG * float(np.abs(first).max())
            right = [bool(np.abs(self._answer(at(index)) - first).max() <= limit) for index in range(len(graphs))]
            return [[us if well else float("inf") for us, well in zip(turn, right, strict=True)] for turn in turns]
        finally:
            timer.close()
            for graph in graphs:
                graph.close()

    def _captured(self, keys: Sequence[Any]) -> device.Graph:
        launches = [launch for key in keys for launch in self._launches[key]]

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


class _Timer:
    """Two CUDA events around calls, behind a gate."""

    def __init__(self, stream: int) -> None:
        self._cuda, self._stream, self._gate = driver.bindings(), stream, device.Gate(stream)
        self._events = [driver.check(self._cuda.cuEventCreate(0), "creating an event") for _ in range(2)]

    def us(self, call: Callable[[], None], count: int) -> float:
        begin, end = self._events
        with self._gate:
            driver.check(self._cuda.cuEventRecord(begin, self._stream), "recording an event")
            for _ in range(count):
                call()
            driver.check(self._cuda.cuEventRecord(end, self._stream), "recording an event")
        device.synchronize(self._stream)
        return float(driver.check(self._cuda.cuEventElapsedTime(begin, end), "reading two events")) * 1000

    def length(self, call: Callable[[], None]) -> int:
        """How many calls a run has; they are made once, which warms too."""
        return max(SHORTEST, min(LENGTH, int(RUN_US * SHORTEST / max(self.us(call, SHORTEST), 1e-3))))

    def chained(self, call: Callable[[], None], length: int) -> float:
        """µs a call, back to back."""
        short, long = (self.us(call, count) for count in (length, 2 * length))
        return (long - short) / length

    def single(self, call: Callable[[], None]) -> float:
        """µs of a call alone, the events' own with it: the median of SAMPLES."""
        return statistics.median(self.us(call, 1) for _ in range(SAMPLES))

    def close(self) -> None:
        for event in self._events:
            driver.check(self._cuda.cuEventDestroy(event), "freeing an event")


def median(turns: Sequence[Sequence[float]], index: int) -> float:
    return statistics.median(turn[index] for turn in turns)
