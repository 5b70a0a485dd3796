"""Statistics, derived from samples and never typed in. A percentile is the order statistic ⌈q·N⌉, defined here and nowhere else."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from accel.bench import intervals
from accel.bench.intervals import rank
from accel.types import Array

ENOUGH = {99: 662, 95: 130}
"""Percent → the fewest samples that support it: MLPerf LoadGen's early stopping at confidence 0.99. Fewer is "insufficient n"."""

OUTLIER = 14.826
"""Median absolute deviations from the median (hyperfine): ten standard deviations of a normal distribution."""
FEWEST_FOR_IQR = 4
FEWEST_FOR_DRIFT = 30
"""Thirds of ten samples."""


@dataclasses.dataclass(frozen=True)
class Percentiles:
    """Of one latency, in microseconds; None where `n` does not support the number."""

    n: int
    mean_us: float
    std_us: float | None
    min_us: float
    p50_us: float
    p95_us: float | None
    p99_us: float | None
    max_us: float


@dataclasses.dataclass(frozen=True)
class Statistics(Percentiles):
    """Of one pass of one run; None where `n` does not support the number, and where it would be a division by zero.

    Attributes:
        p50_lo_us, p50_hi_us, …: 95 % intervals, for the samples of this process: between processes there is more (see comparison.py).
        ci_method: `intervals.EXACT` or `intervals.BLOCKED`.
        cov_pct: standard deviation in percent of the mean.
        iqr_rel_pct: p75 − p25 in percent of the median.
        rho1: lag-1 autocorrelation in the order taken.
        drift_pct: median of the last third of the samples less that of the first, in percent of the median of all.
        n_outliers: samples with |x − median| > 14.826 · MAD; they are counted and stay in every number.
    """

    p50_lo_us: float | None
    p50_hi_us: float | None
    p95_lo_us: float | None
    p95_hi_us: float | None
    p99_lo_us: float | None
    p99_hi_us: float | None
    ci_method: str
    cov_pct: float | None
    iqr_rel_pct: float | None
    rho1: float | None
    drift_pct: float | None
    n_outliers: int


def percentile(ordered: Array, percent: int) -> float:
    """The order statistic of ascending samples."""
    return float(ordered[rank(len(ordered), percent) - 1])


def percentiles(samples_ns: Array) -> Percentiles:
    """Of samples (nanoseconds, integers, at least one) in any order, of one run or of several together."""
    ordered = np.sort(samples_ns.astype(np.int64)) / 1000.0
    n = len(ordered)

    def supported(percent: int) -> float | None:
        return percentile(ordered, percent) if n >= ENOUGH[percent] else None

    return Percentiles(
        n=n,
        mean_us=float(ordered.mean()),
        std_us=float(ordered.std(ddof=1)) if n > 1 else None,
        min_us=float(ordered[0]),
        p50_us=percentile(ordered, 50),
        p95_us=supported(95),
        p99_us=supported(99),
        max_us=float(ordered[-1]),
    )


def corrected(value_us: float | None, event_floor_us: float | None) -> float | None:
    """What CUDA events read, less what they read around nothing; None where no events were read. The raw value stays beside it."""
    return None if value_us is None or event_floor_us is None else max(value_us - event_floor_us, 0.0)


def summarise(samples_ns: Array) -> Statistics:
    """Summarise the samples (nanoseconds, integers, at least one) of one pass of one run, in the order in which they were taken."""
    taken = samples_ns.astype(np.int64) / 1000.0
    found = percentiles(samples_ns)
    supported = tuple(percent for percent in (50, 95, 99) if len(taken) >= ENOUGH.get(percent, 1))
    rho = intervals.rho1(taken)
    bounds, method = intervals.of_percentiles(taken, supported, rho)
    ends: dict[str, Any] = {}
    for percent in (50, 95, 99):
        bound = bounds.get(percent)
        ends |= {f"p{percent}_lo_us": bound.lo if bound else None, f"p{percent}_hi_us": bound.hi if bound else None}
    return Statistics(
        **dataclasses.asdict(found),
        **ends,
        ci_method=method,
        cov_pct=100 * found.std_us / found.mean_us if found.std_us is not None and found.mean_us > 0 else None,
        iqr_rel_pct=_iqr_rel_pct(taken),
        rho1=rho,
        drift_pct=_drift_pct(taken),
        n_outliers=_outliers(taken),
    )


def _iqr_rel_pct(samples: Array) -> float | None:
    ordered = np.sort(samples)
    middle = percentile(ordered, 50)
    if len(samples) < FEWEST_FOR_IQR or middle <= 0:
        return None
    return 100 * (percentile(ordered, 75) - percentile(ordered, 25)) / middle


def _drift_pct(taken: Array) -> float | None:
    third, middle = len(taken) // 3, _median(taken)
    if len(taken) < FEWEST_FOR_DRIFT or middle <= 0:
        return None
    return 100 * (_median(taken[-third:]) - _median(taken[:third])) / middle


def _outliers(samples: Array) -> int:
    """A product and no quotient: if most samples are the same, the MAD is 0 and each that differs is an outlier."""
    distances = np.abs(samples - _median(samples))
    return int(np.count_nonzero(distances > OUTLIER * _median(distances)))


def _median(samples: Array) -> float:
    return percentile(np.sort(samples), 50)
