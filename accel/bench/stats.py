"""Statistics, derived from samples and never typed in. A percentile is the order statistic ⌈q·N⌉, defined here and nowhere else."""

from __future__ import annotations

import dataclasses

import numpy as np

from accel.types import Array

ENOUGH = {99: 662, 95: 130}
"""Percent → the fewest samples that support it: MLPerf LoadGen's early stopping at confidence 0.99. Fewer is "insufficient n"."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of one latency, in microseconds; None where `n` does not support the number."""

    n: int
    mean_us: float
    std_us: float | None
    min_us: float
    p50_us: float
    p95_us: float | None
    p99_us: float | None
    max_us: float


def rank(n: int, percent: int) -> int:
    """⌈percent/100 · n⌉, counted from 1, in integers: 0.95 · n in floats can land a hair above a whole number."""
    return max(1, -(-percent * n // 100))


def percentile(ordered: Array, percent: int) -> float:
    """The order statistic of ascending samples."""
    return float(ordered[rank(len(ordered), percent) - 1])


def summarise(samples_ns: Array) -> Statistics:
    """Summarise the samples (nanoseconds, integers, at least one) of one pass, in any order."""
    ordered = np.sort(samples_ns.astype(np.int64)) / 1000.0
    n = len(ordered)

    def supported(percent: int) -> float | None:
        return percentile(ordered, percent) if n >= ENOUGH[percent] else None

    return Statistics(
        n=n,
        mean_us=float(ordered.mean()),
        std_us=float(ordered.std(ddof=1)) if n > 1 else None,
        min_us=float(ordered[0]),
        p50_us=percentile(ordered, 50),
        p95_us=supported(95),
        p99_us=supported(99),
        max_us=float(ordered[-1]),
    )
