"""What a variant costs before its first answer, and after how many calls that is paid back."""

from __future__ import annotations

import dataclasses
import math

from accel.bench.summary import Line
from accel.report.ranking import baseline, p50, rank
from accel.report.sections import Section


@dataclasses.dataclass(frozen=True)
class ColdStart:
    """Of one variant, the slowest over the rounds: the first build of a set pays, later workers find its caches."""

    variant: str
    build_s: float
    first_call_ms: float | None


@dataclasses.dataclass(frozen=True)
class BreakEven:
    """One variant against eager in FP32.

    Attributes:
        extra_s: how much longer it builds (loads, compiles, captures) in the worker; negative if it is ready sooner.
        saved_us: median host time that it saves a call; not above zero if it is not faster.
        calls: the first whole number of calls that pays `extra_s` back; 0 if there is nothing to pay back; None: never.
    """

    variant: str
    extra_s: float
    saved_us: float
    calls: int | None


def cold_starts(section: Section) -> list[ColdStart]:
    """In the order of the table; variants that were not built are left out."""
    found = []
    for line in section.lines:
        first = [row["first_call_ms"] for row in section.host_rows(line.variant) if row["first_call_ms"] is not None]
        if line.build_s is not None:
            found.append(ColdStart(line.variant, line.build_s, max(first) if first else None))
    return found


def break_evens(section: Section) -> list[BreakEven]:
    """Every ranked variant but the baseline; empty where the baseline has no OK row."""
    against = baseline(section)
    if against is None:
        return []
    others = [line for line in rank(section).ranked if line.variant != against.variant]
    return [found for line in others if (found := _break_even(line, against)) is not None]


def _break_even(line: Line, against: Line) -> BreakEven | None:
    ours, theirs = p50(line), p50(against)
    if ours is None or theirs is None or line.build_s is None or against.build_s is None:
        return None
    extra, saved = line.build_s - against.build_s, theirs - ours
    if saved <= 0:
        return BreakEven(line.variant, extra, saved, None)
    # In float a quotient may land a hair above the whole number that it is.
    return BreakEven(line.variant, extra, saved, max(0, math.ceil(round(extra * 1e6 / saved, 6))))
