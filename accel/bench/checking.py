"""Run the self-check, on a GPU in a worker, and judge it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from accel.bench import comparison, selfcheck
from accel.bench.launch import Launcher, interpreter
from accel.bench.rigs import SimulatedRig
from accel.progress import Progress, silent

RUNTIME = "eager"
"""Under whose interpreter it runs on a GPU: the sleep of a known length is torch's."""


def check(device: str, python: Mapping[str, str], folder: Path, launch: Launcher, progress: Progress = silent) -> selfcheck.SelfCheck:
    """All seven checks on `device`; on a CPU on the simulated rig, which proves the arithmetic alone.

    Args:
        python: runtime → interpreter, as `[bench.python]` has it.

    Raises:
        MissingExtra: torch is not installed. DeviceUnavailable: there is no GPU.
    """
    if device == "cpu":
        return simulated()
    request = {"schema_version": 1, "mode": "selfcheck", "variant": RUNTIME, "device": device}
    answer = launch(request, interpreter(RUNTIME, python), folder, progress)
    return selfcheck.judge(selfcheck.Measured.from_dict(answer), compared)


@functools.cache
def simulated() -> selfcheck.SelfCheck:
    return selfcheck.judge(selfcheck.measure(SimulatedRig()), compared)


def compared(a_us: Sequence[float], b_us: Sequence[float]) -> tuple[str, float, float]:
    """As two variants of a set are compared: the verdict, and the interval of B/A."""
    found = comparison.estimate([math.log(b / a) for a, b in zip(a_us, b_us, strict=True)])
    judged, *_ = comparison.judge([found], [comparison.default_floor(found.rounds)])
    low, high = (found.ratio if end is None else end for end in (found.lo, found.hi))
    return judged.verdict, low, high
