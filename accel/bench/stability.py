"""Whether a variant's runs agree with one another, by the thresholds of measurement.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
"""A result row."""

NOISY, UNSTABLE = "NOISY", "UNSTABLE"
"""The flags that this module gives; what one run alone shows is flagged in `accel.bench.flags`."""

STABLE = "STABLE"
LIMITS = {"p50_us": (1.02, 1.05), "p95_us": (1.05, 1.10), "p99_us": (1.10, 1.20)}
"""Statistic → the largest max/min over the runs that is STABLE, and the largest that is NOISY."""

_ORDER = (STABLE, NOISY, UNSTABLE)


def of_runs(runs: Sequence[Row]) -> str | None:
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


def judged(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """`rows` with `stability` and its flags: each latency kind of a variant over all of its runs; rows of no run stay as they are."""
    grouped: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        grouped.setdefault(_kind_of(row), []).append(row)
    found = {key: of_runs(group) for key, group in grouped.items()}
    return [dict(row) if row["latency_kind"] is None else _marked(row, found[_kind_of(row)]) for row in rows]


def run_flags(stability: str | None) -> tuple[str, ...]:
    """The flags of a variant whose runs are `stability`."""
    return (stability,) if stability in (NOISY, UNSTABLE) else ()


def _kind_of(row: Row) -> tuple[str, str, str]:
    return row["model"], row["variant"], row["latency_kind"]


def _marked(row: Row, stability: str | None) -> dict[str, Any]:
    # A set that goes on after it was judged is judged anew.
    others = {flag for flag in row["flags"] or () if flag not in (NOISY, UNSTABLE)}
    return {**row, "stability": stability, "flags": sorted(others.union(run_flags(stability)))}


def _rated(ratio: float, limits: tuple[float, float]) -> str:
    stable, noisy = limits
    # Seven digits: 1.02 / 1.00 in floats lies a hair above 1.02.
    rounded = round(ratio, 7)
    return STABLE if rounded <= stable else NOISY if rounded <= noisy else UNSTABLE
