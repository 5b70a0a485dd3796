"""Before the first sample: the GPU's clock is brought up, and calls are thrown away until they are as fast as those before them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from accel.bench.passes import Take
from accel.types import Array

NOT_WARM = "NOT_WARM"
"""The last calls of the warm-up were still getting faster, or slower; or the GPU's clock was still moving (`Watch.clock_moved`)."""

PREHEAT_NS = 1_000_000_000
"""How long the GPU is kept busy. That its clock holds still then is judged by the coordinator, which reads it; a worker has no NVML."""

STEP = 50
MEDIAN, QUARTILES = 0.02, 0.05
"""How far two halves may be apart, relative to the first."""


def preheat(calls: Callable[[int], None], now_ns: Callable[[], int], busy_ns: int = PREHEAT_NS) -> None:
    """Run `calls(STEP)`, which returns when they are done, until `busy_ns` have passed."""
    end = now_ns() + busy_ns
    while now_ns() < end:
        calls(STEP)


def warm_up(take: Take, most: int) -> tuple[int, bool]:
    """Throw calls away, STEP by STEP, until two halves of the last 2 · STEP agree, or `most` are spent.

    Returns:
        How many there were, and whether the halves agreed; fewer than STEP are too few to judge, and count as agreeing.
    """
    samples = np.empty(most, dtype=np.int64)
    spent = 0
    while spent < most:
        step = min(STEP, most - spent)
        take(samples[spent : spent + step], spent)
        spent += step
        if spent >= STEP and agree(samples[max(0, spent - 2 * STEP) : spent]):
            return spent, True
    return spent, most < STEP


def agree(samples: Array) -> bool:
    """Whether the two halves have the same median within MEDIAN and the same quartiles within QUARTILES."""
    first, second = (np.percentile(half, (25, 50, 75)) for half in np.array_split(samples, 2))
    apart = np.abs(second - first) / np.maximum(first, 1.0)
    return bool(apart[1] <= MEDIAN and max(apart[0], apart[2]) <= QUARTILES)
