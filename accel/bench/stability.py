"""Whether a variant's runs agree with one another, and what is odd about the samples of one run. The thresholds are measurement.md's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accel.bench.intervals import AUTOCORRELATED

AUTOCORR, DRIFT, NOISY, SPREAD, UNSTABLE = "AUTOCORR", "DRIFT", "NOISY", "SPREAD", "UNSTABLE"
"""The flags that this module gives. NOISY: the standard deviation of a run is large, or its runs differ; SPREAD: the quartiles of a run
lie far apart; UNSTABLE: the runs differ by more than NOISY allows."""

STABLE = "STABLE"
LIMITS = {"p50_us": (1.02, 1.05), "p95_us": (1.05, 1.10), "p99_us": (1.10, 1.20)}
"""Statistic → the largest max/min over the runs that is STABLE, and the largest that is NOISY."""

MARKS = {"cov_pct": (2.5, NOISY), "iqr_rel_pct": (10.0, SPREAD), "drift_pct": (1.0, DRIFT), "rho1": (AUTOCORRELATED, AUTOCORR)}
"""Statistic of one run → the value above which it is flagged, and with what; drift counts in either direction."""

_ORDER = (STABLE, NOISY, UNSTABLE)


def of_runs(runs: Sequence[Mapping[str, Any]]) -> str | None:
    """STABLE, NOISY or UNSTABLE: the worst of p50, p95 and p99; None for fewer than two runs, which say nothing.

    Args:
        runs: rows of one variant and latency kind, one a run; a percentile counts only if every run has it.
    """
    if len(runs) < 2:
        return None
    found = [_rated(ratio, LIMITS[name]) for name in LIMITS if (ratio := spread([run[name] for run in runs])) is not None]
    return max(found, key=_ORDER.index, default=None)


def spread(values: Sequence[float | None]) -> float | None:
    """The largest value over the smallest; None if one is missing. Infinite beside a zero, unless all are zero."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    least, most = min(known), max(known)
    return most / least if least > 0 else 1.0 if most == least else float("inf")


def run_flags(stability: str | None) -> tuple[str, ...]:
    """The flags of a variant whose runs are `stability`."""
    return (stability,) if stability in (NOISY, UNSTABLE) else ()


def marks(statistics: Mapping[str, Any]) -> tuple[str, ...]:
    """The flags of one run by its own statistics (`accel.bench.stats.Statistics` as a mapping), sorted."""
    exceeded = {flag for name, (limit, flag) in MARKS.items() if statistics[name] is not None and _size(name, statistics[name]) > limit}
    return tuple(sorted(exceeded))


def _size(name: str, value: float) -> float:
    # Samples that alternate (a negative rho1) tell more about the median than independent ones do: no reason for a flag.
    return abs(value) if name == "drift_pct" else value


def _rated(ratio: float, limits: tuple[float, float]) -> str:
    stable, noisy = limits
    # Seven digits: 1.02 / 1.00 in floats lies a hair above 1.02.
    rounded = round(ratio, 7)
    return STABLE if rounded <= stable else NOISY if rounded <= noisy else UNSTABLE
