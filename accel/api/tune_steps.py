"""What `accel tune` tries, in which order, and how much time it may take."""

from __future__ import annotations

import dataclasses
import re
import statistics

from accel import runtimes
from accel.bench.clock import Clock, HostClock
from accel.errors import UsageError
from accel.types import Variant


@dataclasses.dataclass(frozen=True)
class Step:
    """One candidate.

    Attributes:
        what: it brings, as the table says it.
        variant: as it is spelled everywhere; where its precision fails the gate, the next wider one is tried in its place.
    """

    what: str
    variant: str


STEPS: dict[str, tuple[Step, ...]] = {
    "cuda": (
        Step("baseline", "eager:fp32"),
        Step("precision", "eager:fp16"),
        Step("graph", "eager:fp16+graph"),
        Step("layout", "eager:fp16+channels_last+fold+graph"),
        Step("compile", "compile:fp16"),
        Step("compile mode", "compile:fp16+reduce-overhead"),
        Step("compile mode", "compile:fp16+freezing+reduce-overhead"),
        Step("compile mode", "compile:fp16+max-autotune"),
        Step("runtime", "torchscript:fp16"),
        Step("runtime", "onnxruntime:fp16"),
        Step("graph", "onnxruntime:fp16+graph"),
        Step("layout", "onnxruntime:fp16+graph+nhwc"),
        Step("runtime", "aoti:fp16"),
        Step("graph", "aoti:fp16+graph"),
        Step("runtime", "fused:fp16"),
        Step("runtime", "tensorrt:fp16"),
        Step("runtime", "tensorrt-rtx:fp16"),
    ),
    "cpu": (
        Step("baseline", "eager:fp32"),
        Step("folding", "eager:fp32+fold"),
        Step("layout", "eager:fp32+channels_last+fold"),
        Step("compile", "compile:fp32"),
        Step("compile mode", "compile:fp32+freezing"),
        Step("runtime", "torchscript:fp32"),
        Step("runtime", "onnxruntime:fp32"),
        Step("runtime", "aoti:fp32"),
    ),
}
"""Kind of device → candidates in order: what needs no file, then what is compiled, then what is exported, the longest builds last.

Each is named whole and is not made from what was kept before: a precision that gains nothing where launches are the limit gains
much once a graph takes them away. The number of threads is no candidate, because all of a set have the same: `threads` sets it.
"""

WIDER = {"fp16": "tf32", "tf32": "fp32"}
"""Precision → what is tried where it fails the gate; a runtime that does not have it passes on to the next."""

_BUDGET = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_SECONDS = (3600, 60, 1)


def wider(variant: Variant) -> Variant | None:
    """The same in the next wider precision that its runtime has; None after the widest."""
    precision = WIDER.get(variant.precision)
    while precision is not None and precision not in runtimes.info(variant.runtime).precisions:
        precision = WIDER.get(precision)
    return None if precision is None else dataclasses.replace(variant, precision=precision)


def parse_budget(text: str) -> float:
    """`90s`, `10m`, `1h` or `1h30m` → seconds.

    Raises:
        UsageError: any other spelling, or no time at all.
    """
    found = _BUDGET.fullmatch(text.strip().lower())
    seconds = sum(float(part) * unit for part, unit in zip(found.groups(), _SECONDS, strict=True) if part) if found else 0.0
    if not seconds:
        raise UsageError(f"{text!r} is no budget", remedy="spell it 90s, 10m, 1h or 1h30m; leave --budget out for no limit")
    return seconds


class Budget:
    """How much time is left, and what the next candidate is likely to need.

    Args:
        seconds: from now on; None is no limit.
    """

    def __init__(self, seconds: float | None, clock: Clock | None = None) -> None:
        self.seconds, self.clock = seconds, clock or HostClock()
        self._began = self.clock.now_ns()
        self._spent: dict[str, list[float]] = {}

    def now_s(self) -> float:
        """Seconds since it began."""
        return (self.clock.now_ns() - self._began) / 1e9

    def spend(self, runtime: str, seconds: float) -> None:
        """A candidate of `runtime`, exported, verified and timed beside another variant, took so long."""
        self._spent.setdefault(runtime, []).append(seconds)

    def estimate(self, runtime: str) -> tuple[float, str] | None:
        """Seconds that a candidate of `runtime` is likely to take, and by what; None before anything ran."""
        if own := self._spent.get(runtime):
            return max(own), f"the longest of {runtime} so far"
        if others := [seconds for spent in self._spent.values() for seconds in spent]:
            return statistics.median(others), "the median of those so far"
        return None

    def refusal(self, runtime: str) -> str | None:
        """Why no candidate of `runtime` should begin any more; None if it may. One that has begun runs to its end."""
        if self.seconds is None:
            return None
        left = self.seconds - self.now_s()
        likely = self.estimate(runtime)
        if likely is None or likely[0] <= left:
            return None if left > 0 else f"the budget of {self.seconds:.0f} s is spent"
        seconds, by = likely
        return f"budget: {max(0.0, left):.0f} s of {self.seconds:.0f} s are left, and it is likely to take {seconds:.0f} s ({by})"
