"""How many samples a run of an adaptive set takes: one number for every variant of a round, found when each has had its first run.

A 95 % interval narrows with 1/√N. What is looked at is how wide a variant's own interval is, and never how two variants compare.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from accel.bench.plan import CHOICES, MeasurementPlan
from accel.bench.results import ResultSet

WANTED_PCT = {50: 0.5, 95: 2.0}
"""Percentile → the widest half of its interval that is asked for, in percent of the percentile."""

KINDS = ("host_us", "device_us")
"""Latency kinds whose intervals decide; a CPU has only the first."""


def of_round(result: ResultSet, plan: MeasurementPlan, round_index: int) -> int:
    """Samples of each latency kind in one round. Adaptive ones are kept in the set's description, for when it is continued.

    Every variant must have had its runs of the rounds before.
    """
    if not plan.adaptive:
        return plan.iterations
    known: list[int] = list(result.description.get("iterations") or [])
    if round_index < len(known):
        return known[round_index]
    if not known:
        number, reason = plan.iterations, "the first round finds how many are enough"
    elif len(known) == 1:
        number, reason = enough(result.rows)
    else:
        number, reason = known[-1], result.description["iterations_reason"]
    result.describe(iterations=[*known, number], iterations_reason=reason)
    return number


def enough(rows: Iterable[Mapping[str, Any]]) -> tuple[int, str]:
    """The least of CHOICES with which every interval of `rows` would be as narrow as WANTED_PCT, else the largest; and who asked for it.

    Args:
        rows: one run of each variant. A percentile that is 0, or without an interval, asks for nothing.
    """
    asked = max((ask for row in rows for ask in _asks(row)), key=lambda ask: ask[0], default=None)
    if asked is None or asked[0] <= CHOICES[0]:
        return CHOICES[0], "all intervals are narrow enough"
    needed, who = asked
    number = next((choice for choice in CHOICES if choice >= needed), CHOICES[-1])
    return number, f"{who}: {needed} samples are needed" + (f", {number} are the most taken" if needed > number else "")


def _asks(row: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    # What is worthless already (INVALID) must not make the others wait.
    if row["latency_kind"] not in KINDS or row["verdict"] == "INVALID":
        return
    for percent, wanted in WANTED_PCT.items():
        value, low, high = (row[f"p{percent}_{end}us"] for end in ("", "lo_", "hi_"))
        if value and low is not None and high is not None:
            half = 100 * (high - low) / 2 / value
            # Nine digits: a half-width that is just what was wanted must not ask for one sample more.
            needed = math.ceil(round(row["n"] * (half / wanted) ** 2, 9))
            said = f"p{percent} of {row['latency_kind']} is known to ±{half:.2g} % from {row['n']}, wanted is ±{wanted:g} %"
            yield needed, f"{row['variant']}, {said}"
