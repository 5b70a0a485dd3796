"""What a variant costs before its first answer, and after how many calls that is paid back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

from accel.bench.report import COLUMNS
from accel.bench.summary import Line
from accel.report.ranking import baseline, p50, rank
from accel.report.sections import Section

READY = (
    "Ready = export + load + build: the export of an engine file is counted once, in full, against one process that makes all the "
    "calls. The first call comes after that. Each is the slowest of the rounds."
)
AT_LEAST = (
    "≥ and “not known”: the export is not on record, or only builds were seen that found the caches of an earlier one (--rebuild "
    "measures cold ones)."
)
OLD = "This set is of a version that recorded no exports and did not tell the load from the build: its build holds both load and build."


@dataclasses.dataclass(frozen=True)
class ColdStart:
    """Of one variant, the slowest over the rounds.

    Attributes:
        ready_s: export, load and build together; the cold build where one was seen, else the warm one. What is not known adds nothing.
        warm: whether only builds were seen that could use an earlier one's caches.
        uncounted: it runs a file of which nobody recorded how long its export took.
    """

    variant: str
    ready_s: float
    first_call_ms: float | None
    warm: bool = False
    uncounted: bool = False

    @property
    def is_bound(self) -> bool:
        """Whether it really takes longer, by an unknown time."""
        return self.warm or self.uncounted


@dataclasses.dataclass(frozen=True)
class BreakEven:
    """One variant against eager in FP32.

    Attributes:
        ours: its cold start.
        extra_s: how much later it is ready; negative if it is ready sooner.
        saved_us: median host time that it saves a call; not above zero if it is not faster.
        calls: the first whole number of calls that pays `extra_s` back; 0 if there is nothing to pay back; None: never.
    """

    ours: ColdStart
    extra_s: float
    saved_us: float
    calls: int | None

    @property
    def variant(self) -> str:
        return self.ours.variant


def cold_starts(section: Section) -> list[ColdStart]:
    """In the order of the table; variants that were not built are left out."""
    return [found for line in section.lines if (found := cold_start(section, line)) is not None]


def cold_start(section: Section, line: Line) -> ColdStart | None:
    """None for a variant that was not built."""
    warm = line.build_s is None
    build = line.build_warm_s if warm else line.build_s
    if build is None:
        return None
    has_file = any(row["engine"] for row in section.host_rows(line.variant))
    ready = (line.export_s or 0.0) + (line.load_s or 0.0) + build
    return ColdStart(line.variant, ready, line.first_call_ms, warm, has_file and line.export_s is None)


def break_evens(section: Section) -> list[BreakEven]:
    """Every ranked variant but the baseline; empty where the baseline has no OK row."""
    against = baseline(section)
    if against is None:
        return []
    others = [line for line in rank(section).ranked if line.variant != against.variant]
    return [found for line in others if (found := _break_even(section, line, against)) is not None]


def _break_even(section: Section, line: Line, against: Line) -> BreakEven | None:
    ours, theirs = p50(line), p50(against)
    mine, other = cold_start(section, line), cold_start(section, against)
    if ours is None or theirs is None or mine is None or other is None:
        return None
    extra, saved = mine.ready_s - other.ready_s, theirs - ours
    if saved <= 0:
        return BreakEven(mine, extra, saved, None)
    # In float a quotient may land a hair above the whole number that it is.
    return BreakEven(mine, extra, saved, max(0, math.ceil(round(extra * 1e6 / saved, 6))))


def headings(section: Section) -> list[str]:
    """Of the ledger's columns those that hold something in this set."""
    calls = {found.variant: found for found in break_evens(section)}
    return [name for name, cell in CELLS.items() if any(cell(section, line, calls) is not None for line in section.lines)]


def table(section: Section) -> list[tuple[str, list[str]]]:
    """Variant → a cell for each of `headings`; variants that were not built are left out."""
    built = {found.variant for found in cold_starts(section)}
    calls = {found.variant: found for found in break_evens(section)}
    names = headings(section)
    return [(line.variant, [CELLS[name](section, line, calls) or "–" for name in names]) for line in section.lines if line.variant in built]


def notes(section: Section) -> list[str]:
    """How the ledger is to be read, and what this set cannot tell."""
    old = any(row["schema_version"] == 1 for row in section.rows)
    bounded = any(found.calls is not None and found.ours.is_bound for found in break_evens(section))
    return [READY, *([AT_LEAST] if bounded else []), *([OLD] if old else [])]


Cell = Callable[[Section, Line, Mapping[str, BreakEven]], "str | None"]


def _as_in_the_table(name: str) -> Cell:
    return lambda section, line, calls: COLUMNS[name](line)


def _number(name: str, form: str) -> Cell:
    def cell(section: Section, line: Line, calls: Mapping[str, BreakEven]) -> str | None:
        value = getattr(line, name)
        return None if value is None else form.format(value)

    return cell


def _ready(section: Section, line: Line, calls: Mapping[str, BreakEven]) -> str | None:
    found = cold_start(section, line)
    return None if found is None else f"{found.ready_s:.1f}"


def _paid_back(section: Section, line: Line, calls: Mapping[str, BreakEven]) -> str | None:
    found = calls.get(line.variant)
    if found is None or found.calls is None:
        return None if found is None else "never"
    if found.ours.is_bound:
        return f"≥ {found.calls:,}" if found.calls else "not known"
    return f"{found.calls:,}" if found.calls else "at once"


CELLS: dict[str, Cell] = {
    "export s": _as_in_the_table("export s"),
    "load s": _as_in_the_table("load s"),
    "build s": _as_in_the_table("build s"),
    "warm build s": _as_in_the_table("warm build s"),
    "ready s": _ready,
    "first call ms": _number("first_call_ms", "{:.2f}"),
    "host peak MiB": _number("host_mem_peak_mib", "{:.0f}"),
    "GPU peak MiB": _number("mem_peak_mib", "{:.0f}"),
    "pays back after calls": _paid_back,
}
"""Heading → cell, as the table's own columns have it wherever they do."""
