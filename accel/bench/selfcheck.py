"""The harness measures what is known beforehand: seven checks on a rig whose sleeps last as long as they are asked to.

The same checks run on a GPU, whose sleeps are counted in clock cycles of its multiprocessors, and on a simulated one, whose time is
a fake clock's: that one proves the arithmetic, where there is no GPU to prove more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from accel.bench.clock import Clock, DeviceTimer
from accel.bench.passes import HoldingGate, event_floor, is_elsewhere, work_after_ns
from accel.bench.stats import percentile

LENGTHS_US = tuple(float(value) for value in np.geomspace(50, 10_000, 12))
R_SQUARED, OFFSET_US, OFFSET_SHARE, UNSYNCED, TAIL = 0.9999, 5.0, 0.005, 0.10, 0.02
SHORT_US, MANY, FEW, LONGER = 100.0, 970, 30, 3.0
PAIR_US, SLOWER_BY, RUN, ROUNDS = 1000.0, 1.03, 60, 3
FLOOR_CALLS = 1000
OFFSET_TURNS, OFFSET_BLOCKS = 25, 4


class Rig(Protocol):
    """What the checks are made on: a stream, its clocks, and work of a known length."""

    @property
    def clock(self) -> Clock: ...
    @property
    def timer(self) -> DeviceTimer: ...
    @property
    def gate(self) -> HoldingGate: ...

    def spin(self, us: float) -> None:
        """Enqueue work of `us` microseconds on the stream."""

    def spin_elsewhere(self, us: float) -> None:
        """The same on another stream."""

    def one_node(self) -> None:
        """Launch a CUDA graph of one empty kernel."""

    def synchronize(self) -> None:
        """Wait for the stream."""

    def synchronize_device(self) -> None:
        """Wait for every stream."""


Compare = Callable[[Sequence[float], Sequence[float]], tuple[str, float, float]]
"""p50 of A and of B in each round → verdict, and the interval of B/A: `accel.bench.comparison` in the shape that is needed here."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One of the seven.

    Attributes:
        said: what was found and what is allowed, for a person.
        figures: what it was judged by, where that is more than `said` tells; name with unit → value.
    """

    name: str
    passed: bool
    said: str
    figures: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a worker measured on its rig: all but the comparison is judged already.

    Attributes:
        floors_us: medians in microseconds; `launch` is a graph of one empty kernel.
        runs_us: `A`, `B` and `A again` → the p50 of each round.
    """

    checks: tuple[Check, ...]
    floors_us: dict[str, float]
    runs_us: dict[str, list[float]]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Measured:
        return cls(tuple(Check(**check) for check in data["checks"]), data["floors_us"], data["runs_us"])


@dataclasses.dataclass(frozen=True)
class SelfCheck:
    """All seven checks, and the floors of this machine."""

    checks: tuple[Check, ...]
    floors_us: dict[str, float]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> str:
        """What failed, in a sentence for an error."""
        return "; ".join(check.said for check in self.checks if not check.passed)

    def to_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, **dataclasses.asdict(self)}


def measure(rig: Rig, seed: int = 0) -> Measured:
    """Make every check on `rig`; a failure is reported, not raised."""
    rig.spin(LENGTHS_US[-1])  # loads what the first call loads
    rig.synchronize()
    floors = measure_floors(rig)
    checks = (linear(rig), constant_offset(rig, seed), needs_sync(rig), tail(rig, seed), ordered_floors(floors), bracketed(rig))
    return Measured(checks, floors, paired_runs(rig))


def judge(found: Measured, compare: Compare) -> SelfCheck:
    """Add the check of the comparison, which needs what a worker has not."""
    return SelfCheck((*found.checks, told_apart(found.runs_us, compare)), found.floors_us)


def linear(rig: Rig) -> Check:
    """Events read lengths that lie on a straight line."""
    read = np.array([device_ns(rig, length) for length in LENGTHS_US]) / 1e3
    asked = np.array(LENGTHS_US)
    slope, start = np.polyfit(asked, read, 1)
    rest = float(np.sum((read - (slope * asked + start)) ** 2))
    r_squared = 1 - rest / float(np.sum((read - read.mean()) ** 2))
    said = f"events are linear from {LENGTHS_US[0] / 1e3:g} to {LENGTHS_US[-1] / 1e3:g} ms: R² {r_squared:.7f}, at least {R_SQUARED}"
    return Check("linear", r_squared > R_SQUARED, said)


def constant_offset(rig: Rig, seed: int) -> Check:
    """The host's clock and the events differ by a constant, whatever the length.

    Every length is visited once a turn, in a new order each, so that what changes slowly meets all of them alike. The least disturbed
    tenth of the visits is judged: who waits 10 ms on a virtual machine is interrupted more often than who waits 50 µs, and that adds to
    some calls; a wait that sleeps, or events that bracket something else, add to every one. OFFSET_SHARE of the length is allowed where
    that is more than OFFSET_US: half of the smallest difference that any verdict is given for.

    Where that is exceeded, OFFSET_TURNS further turns join those before, up to OFFSET_BLOCKS times in all: a second in which the host was
    busy passes, and what is wrong with the harness is in every visit.
    """
    chance = np.random.default_rng(seed)
    differences: dict[float, list[int]] = {length: [] for length in LENGTHS_US}
    for _ in range(OFFSET_BLOCKS):
        for _ in range(OFFSET_TURNS):
            for length in chance.permutation(LENGTHS_US):
                host, span = host_and_span_ns(rig, float(length))
                differences[float(length)].append(host - span)
        if (found := judged_offset(differences)).passed:
            break
    return found


def judged_offset(differences: Mapping[float, Sequence[int]]) -> Check:
    """Host less events in nanoseconds, by length in microseconds: the check of its least disturbed tenth."""
    offsets = {length: float(np.percentile(found, 10)) / 1e3 for length, found in differences.items()}
    least = min(offsets.values())
    worst = max(offsets, key=lambda length: (offsets[length] - least) / allowed_offset_us(length))
    said = (
        f"host less events is {least:.2f} µs and varies by {offsets[worst] - least:.2f} at {worst / 1e3:.3g} ms, "
        f"at most {allowed_offset_us(worst):g}"
    )
    passed = offsets[worst] - least <= allowed_offset_us(worst)
    figures = {f"{length:.0f} us": round(value, 3) for length, value in offsets.items()}
    return Check("offset", passed, said, figures | {"visits": float(len(next(iter(differences.values()))))})


def allowed_offset_us(length: float) -> float:
    return max(OFFSET_US, OFFSET_SHARE * length)


def needs_sync(rig: Rig) -> Check:
    """A call that is not waited for reads next to nothing: the harness can tell the two apart."""
    length = 5000.0
    begin = rig.clock.now_ns()
    rig.spin(length)
    taken = (rig.clock.now_ns() - begin) / 1e3
    rig.synchronize()
    said = f"{length / 1e3:g} ms of work without a wait read as {taken:.1f} µs, less than {UNSYNCED:.0%} of it"
    return Check("sync", taken < UNSYNCED * length, said)


def tail(rig: Rig, seed: int) -> Check:
    """3 % of calls that take three times as long are the p99, and neither the p50 nor the p95."""
    lengths = np.array([SHORT_US] * MANY + [LONGER * SHORT_US] * FEW)
    np.random.default_rng(seed).shuffle(lengths)
    short = float(np.median([device_ns(rig, SHORT_US) for _ in range(21)]))
    long = float(np.median([device_ns(rig, LONGER * SHORT_US) for _ in range(21)]))
    ordered = np.sort(np.array([device_ns(rig, float(length)) for length in lengths], dtype=np.int64))
    ratios = {p: percentile(ordered, p) / expected for p, expected in ((50, short), (95, short), (99, long))}
    said = ", ".join(f"p{p} {ratio:.4f}" for p, ratio in ratios.items())
    return Check("tail", all(abs(ratio - 1) <= TAIL for ratio in ratios.values()), f"{said} of what they must be, within {TAIL:.0%}")


def paired_runs(rig: Rig) -> dict[str, list[float]]:
    """The p50 of some rounds, in microseconds: A, what takes SLOWER_BY times as long, and A again."""
    runs: dict[str, list[float]] = {"A": [], "B": [], "A again": []}
    for number in range(ROUNDS):
        for name in sorted(runs, reverse=bool(number % 2)):
            length = PAIR_US * (SLOWER_BY if name == "B" else 1.0)
            runs[name].append(float(np.median([device_ns(rig, length) for _ in range(RUN)])) / 1e3)
    return runs


def told_apart(runs: dict[str, list[float]], compare: Compare) -> Check:
    """3 % slower is found slower, and the same is not."""
    verdict, low, high = compare(runs["A"], runs["B"])
    same, *_ = compare(runs["A"], runs["A again"])
    # The sleep itself is exact to some cycles, so its own ratio may lie a hair outside a very narrow interval.
    found = verdict == "SLOWER" and low - 0.001 <= SLOWER_BY <= high + 0.001 and same not in ("SLOWER", "FASTER")
    return Check("compare", found, f"{SLOWER_BY:.2f} times as long is {verdict} ({low:.4f} to {high:.4f}), the same is {same}")


def ordered_floors(floors: dict[str, float]) -> Check:
    """The floors are there, and in the order that they must have."""
    right = all(value >= 0 for value in floors.values()) and floors["sync_host"] <= floors["launch_host"]
    return Check("floors", right, ", ".join(f"{name} {value:.2f} µs" for name, value in floors.items()))


def bracketed(rig: Rig) -> Check:
    """Work on another stream does not lie between the events, and that is noticed."""
    length = 2000.0
    rig.timer.start()
    rig.spin_elsewhere(length)
    rig.timer.stop()
    missed = work_after_ns(rig.clock, rig.synchronize, rig.synchronize_device)
    noticed = is_elsewhere(missed, rig.timer.elapsed_ns())
    return Check("stream", noticed, f"{missed / 1e3:.0f} µs of {length:g} were still to do when the stream was done")


def measure_floors(rig: Rig) -> dict[str, float]:
    """Medians in microseconds: a pair of events around nothing, an empty kernel, a graph of one, and a wait for nothing."""

    def host(work: Callable[[], None]) -> float:
        samples = np.empty(FLOOR_CALLS, dtype=np.int64)
        for index in range(FLOOR_CALLS):
            begin = rig.clock.now_ns()
            work()
            rig.synchronize()
            samples[index] = rig.clock.now_ns() - begin
        return float(np.median(samples)) / 1e3

    def gpu(work: Callable[[], None]) -> float:
        return float(np.median([gated_ns(rig, work) for _ in range(FLOOR_CALLS)])) / 1e3

    return {
        "event_pair": event_floor(rig.timer, None, rig.synchronize) / 1e3,
        "event_pair_gated": event_floor(rig.timer, rig.gate, rig.synchronize) / 1e3,
        "sync_host": host(lambda: None),
        "kernel_host": host(lambda: rig.spin(0.0)),
        "kernel_device": gpu(lambda: rig.spin(0.0)),
        "launch_host": host(rig.one_node),
        "launch_device": gpu(rig.one_node),
    }


def device_ns(rig: Rig, us: float) -> int:
    """What the gated events read of `us` microseconds of work."""
    return gated_ns(rig, lambda: rig.spin(us))


def gated_ns(rig: Rig, work: Callable[[], None]) -> int:
    rig.gate.hold()
    try:
        rig.timer.start()
        work()
        rig.timer.stop()
    finally:
        rig.gate.open()
    rig.synchronize()
    return rig.timer.elapsed_ns()


def host_and_span_ns(rig: Rig, us: float) -> tuple[int, int]:
    """What the host's clock and the events (without the gate) read of the same call."""
    begin = rig.clock.now_ns()
    rig.timer.start()
    rig.spin(us)
    rig.timer.stop()
    rig.synchronize()
    return rig.clock.now_ns() - begin, rig.timer.elapsed_ns()
