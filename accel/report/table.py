"""The table of a section: one line a variant, cells as text. The numbers are written as `accel.bench.report` writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from accel.bench import columns
from accel.bench.report import COLUMNS, insufficient
from accel.bench.summary import Line
from accel.report.sections import Section

NUMBERS = (
    "top-1 %",
    "flips",
    "host p50",
    "host p95",
    "host p99",
    "host × floor",
    "device p50",
    "device × floor",
    "e2e p50",
    "paced p50",
    "MB",
)
INTERVAL = "95 % interval"
ABSENT = "–"
UNITS = "Latencies in µs over all rounds; host = call + synchronize, device = GPU alone, e2e = host array to host array. Only OK rows rank."


@dataclasses.dataclass(frozen=True)
class TableLine:
    """`cells` belongs to the headings of `headings`; `reason` is None for an OK line without a flag."""

    variant: str
    cells: tuple[str, ...]
    verdict: str
    reason: str | None
    remedy: str | None


def headings(section: Section) -> list[str]:
    """Numeric headings that hold something in this set; the interval follows the median that it belongs to."""
    shown = [name for name in NUMBERS if any(COLUMNS[name](line) is not None for line in section.lines)]
    if "host p50" in shown and any(interval(section, line) for line in section.lines):
        shown.insert(shown.index("host p50") + 1, INTERVAL)
    return shown


def units(sections: Sequence[Section]) -> str:
    """UNITS, and what stands in the place of a percentile that some variant has too few samples for."""
    return " ".join([UNITS, *insufficient([line for section in sections for line in section.lines])])


def table(section: Section) -> list[TableLine]:
    names = headings(section)
    return [TableLine(line.variant, tuple(_cell(section, line, name) for name in names), *_outcome(line)) for line in section.lines]


def interval(section: Section, line: Line) -> tuple[float, float] | None:
    """From the lowest to the highest end of the rounds' own 95 % intervals of p50 (µs); None unless every round has one."""
    rows = section.host_rows(line.variant)
    ends = [(row["p50_lo_us"], row["p50_hi_us"]) for row in rows]
    if not ends or any(low is None or high is None for low, high in ends):
        return None
    return min(low for low, _ in ends), max(high for _, high in ends)


def _cell(section: Section, line: Line, name: str) -> str:
    if name != INTERVAL:
        return COLUMNS[name](line) or ABSENT
    found = interval(section, line)
    return ABSENT if found is None else " – ".join(f"{end:.0f}" if end >= 1000 else f"{end:.1f}" for end in found)


def _outcome(line: Line) -> tuple[str, str | None, str | None]:
    if line.verdict == "OK":
        return line.verdict, f"flagged {', '.join(line.flags)}" if line.flags else None, None
    return line.verdict, line.reason or columns.VERDICTS[line.verdict], line.remedy
