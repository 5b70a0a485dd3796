"""The table of a section: one line a variant, cells as text. The numbers are written as `accel.bench.report` writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from accel.bench import columns
from accel.bench.report import COLUMNS, insufficient
from accel.bench.summary import Line
from accel.report.sections import Section

NUMBERS = (
    *("top-1 %", "flips", "host p50", "spread", "host p95", "host p99", "host × floor", "device p50", "device × floor", "e2e p50"),
    "paced p50",
    "MB",
)
INTERVAL = "95 % interval"
ABSENT = "–"
UNITS = "Latencies in µs over all rounds; host = call + synchronize, device = GPU alone, e2e = host array to host array. Only OK rows rank."
MEANINGS = {
    "flips": "flips = predictions unlike the reference's.",
    INTERVAL: "The interval runs from the lowest to the highest end of the rounds' own, of the median.",
    "spread": "spread = largest / smallest p50 of a round.",
    "paced p50": "paced = host, each call after the pause that the plan names.",
    "MB": "MB = size of the engine's file, or of the weights.",
}
"""What a heading of the table stands for, where its name does not say it."""
APART = "The raw samples are not here: each figure is the median of what the rounds had, not that of all their samples together."


@dataclasses.dataclass(frozen=True)
class TableLine:
    """`cells` belongs to the headings of `headings`; `flags` counts the line's flags beside its verdict."""

    variant: str
    cells: tuple[str, ...]
    verdict: str
    flags: int


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why one or more variants are not OK, and what mends it (empty: not known)."""

    variants: tuple[str, ...]
    verdict: str
    reason: str
    remedy: str


def headings(section: Section) -> list[str]:
    """Numeric headings that hold something in this set; the interval follows the median that it belongs to."""
    shown = [name for name in NUMBERS if any(COLUMNS[name](line) is not None for line in section.lines)]
    if "host p50" in shown and any(interval(section, line) for line in section.lines):
        shown.insert(shown.index("host p50") + 1, INTERVAL)
    return shown


def table(section: Section) -> list[TableLine]:
    names = headings(section)
    return [
        TableLine(line.variant, tuple(_cell(section, line, name) for name in names), line.verdict, len({*line.flags} - {line.verdict}))
        for line in section.lines
    ]


def notes(section: Section) -> list[str]:
    """What the headings stand for, a sentence each; the launch floor with its value."""
    shown = headings(section)
    return [
        UNITS,
        *_apart(section),
        *(said for name, said in MEANINGS.items() if name in shown),
        *_floors(section),
        *insufficient(section.lines),
    ]


def _apart(section: Section) -> list[str]:
    """What the figures of latencies without raw samples are; which these are, where only some have none."""
    pooled: dict[str, set[bool]] = {}
    for line in section.lines:
        for kind, latency in line.latency.items():
            pooled.setdefault(kind, set()).add(latency.pooled)
    without = [kind.removesuffix("_us") for kind, found in pooled.items() if False in found]
    if len(without) in (0, len(pooled)):
        return [APART] if without else []
    return [APART.replace("The raw samples are not here", f"Of {', '.join(without)} the raw samples are not here")]


def reasons(section: Section) -> list[Reason]:
    """Lines that are not OK; those with the same reason and remedy share an entry."""
    shared: dict[tuple[str, str, str], list[str]] = {}
    for line in section.lines:
        if line.verdict != "OK":
            key = (line.verdict, line.reason or columns.VERDICTS[line.verdict], line.remedy or "")
            shared.setdefault(key, []).append(line.variant)
    return [Reason(tuple(variants), *said) for said, variants in shared.items()]


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


def _floors(section: Section) -> Iterator[str]:
    found = {
        kind: latency.launch_floor_us
        for line in section.lines
        for kind, latency in line.latency.items()
        if latency.times_floor is not None and f"{kind.removesuffix('_us')} × floor" in NUMBERS
    }
    if found:
        said = ", ".join(f"{kind.removesuffix('_us')} {floor:.1f} µs" for kind, floor in sorted(found.items(), reverse=True))
        yield f"× floor = p50 as a multiple of this machine's launch floor, a CUDA graph of one empty kernel ({said})."
