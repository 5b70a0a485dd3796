"""The self-check on the simulated rig: it passes there, and each of the seven fails on a rig with its fault."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from accel.bench import selfcheck
from accel.bench.rigs import SimulatedRig


def compare(a: Sequence[float], b: Sequence[float]) -> tuple[str, float, float]:
    """By the means alone: what is checked here is the harness, not the statistics."""
    ratio = float(np.exp(np.mean(np.log(np.array(b) / np.array(a)))))
    return ("SLOWER" if ratio > 1.01 else "SAME"), ratio, ratio


def failed(rig: SimulatedRig, compared=compare) -> list[str]:
    return [check.name for check in selfcheck.judge(selfcheck.measure(rig), compared).checks if not check.passed]


def test_the_simulated_rig_passes_and_its_floors_are_what_it_was_made_with() -> None:
    measured = selfcheck.measure(SimulatedRig())
    found = selfcheck.judge(selfcheck.Measured.from_dict(json.loads(json.dumps(measured.to_dict()))), compare)
    assert (found.passed, found.failures) == (True, "")
    assert [check.name for check in found.checks] == ["linear", "offset", "sync", "tail", "floors", "stream", "compare"]
    # The graph: 2 µs of the host, 1.5 of the GPU, 1 of waiting.
    assert found.floors_us["launch_host"] == pytest.approx(4.5)
    assert found.floors_us["launch_device"] == pytest.approx(SimulatedRig.NODE_US)
    assert found.to_dict()["checks"][0]["name"] == "linear"
    # The start event 0.5 µs before the first mark, 1 µs of waiting: the same for every length.
    assert set(found.checks[1].figures.values()) == {1.5, 25}  # µs, and as many visits
    assert len(found.checks[1].figures) == len(selfcheck.LENGTHS_US) + 1


class Bent(SimulatedRig):
    """Long work takes longer than it should."""

    def spin(self, us: float) -> None:
        super().spin(us * (1.05 if us > 4000 else 1.0))


class SlowWait(SimulatedRig):
    """The host notices the end late, and the later the longer it waited: a wait that sleeps."""

    def _wait_until(self, moment_ns: int) -> None:
        waited = max(moment_ns - self.clock.now_ns(), 0)
        super()._wait_until(moment_ns + waited // 100)


class Blocking(SimulatedRig):
    """The call returns when the work is done."""

    def spin(self, us: float) -> None:
        super().spin(us)
        if not self._held:
            self.synchronize()


class Throttling(SimulatedRig):
    """Every call is a little slower than the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.drift = 4e-5


class OneStream(SimulatedRig):
    """What was meant for another stream is between the events after all."""

    def spin_elsewhere(self, us: float) -> None:
        self.spin(us)


class NoFloor(SimulatedRig):
    """Launching costs less than waiting for nothing: one of the two was not measured."""

    LAUNCH_US, NODE_US = -3.0, 0.0


@pytest.mark.parametrize(
    ("rig", "check"),
    [(Bent, "linear"), (SlowWait, "offset"), (Blocking, "sync"), (Throttling, "tail"), (OneStream, "stream"), (NoFloor, "floors")],
)
def test_a_fault_fails_its_check(rig: type[SimulatedRig], check: str) -> None:
    found = failed(rig())
    assert check in found
    # A drift shows wherever many calls are made; every other fault shows in one place alone.
    assert len(found) == 1 or rig is Throttling


@pytest.mark.parametrize("verdict", ["SAME", "AMBIGUOUS", "SLOWER"])
def test_a_comparison_that_always_says_the_same_fails(verdict: str) -> None:
    assert failed(SimulatedRig(), lambda a, b: (verdict, 1.02, 1.04)) == ["compare"]


def test_an_interval_that_misses_the_truth_fails() -> None:
    def wrong(a: Sequence[float], b: Sequence[float]) -> tuple[str, float, float]:
        verdict, ratio, _ = compare(a, b)
        return verdict, ratio + 0.01, ratio + 0.02

    assert failed(SimulatedRig(), wrong) == ["compare"]


class Interrupted(SimulatedRig):
    """A virtual machine: now and then a long wait ends late."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0

    def _wait_until(self, moment_ns: int) -> None:
        self.waits += moment_ns - self.clock.now_ns() > 1_000_000
        super()._wait_until(moment_ns + (30_000 if self.waits % 3 else 0))


def test_an_interruption_of_some_long_waits_is_no_fault_of_the_harness() -> None:
    assert "offset" not in failed(Interrupted())


class Busy(SimulatedRig):
    """A host that is busy with something else for a while: every long wait ends late until then."""

    def __init__(self, until_s: float) -> None:
        super().__init__()
        self.until_ns = self.clock.now_ns() + int(until_s * 1e9)

    def _wait_until(self, moment_ns: int) -> None:
        late = moment_ns - self.clock.now_ns() > 1_000_000 and moment_ns < self.until_ns
        super()._wait_until(moment_ns + (60_000 if late else 0))


def test_a_busy_second_is_waited_out_and_a_busy_host_is_not() -> None:
    passing = selfcheck.constant_offset(Busy(until_s=1.2), seed=0)
    assert passing.passed
    assert 25 < passing.figures["visits"] <= 100  # not by the first block alone

    staying = selfcheck.constant_offset(Busy(until_s=1e6), seed=0)
    assert not staying.passed
    assert staying.figures["visits"] == 100


@pytest.mark.parametrize(("length", "allowed"), [(50.0, 5.0), (1000.0, 5.0), (10_000.0, 50.0)])
def test_half_a_percent_of_a_long_wait_is_allowed(length: float, allowed: float) -> None:
    assert selfcheck.allowed_offset_us(length) == pytest.approx(allowed)
