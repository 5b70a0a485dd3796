"""Who is the fastest of a set, and against whom that may be said. Only OK rows of like conditions rank."""

from __future__ import annotations

import dataclasses

from accel.bench.summary import Latency, Line
from accel.report.sections import HOST, Section
from accel.types import Variant

BASELINE = Variant("eager", "fp32")
"""What an engine has to beat: the module as it was trained."""

SAME_PLACE = ("gpu_uuid", "driver", "cpu_model", "input_sha256", "batch", "threads")
"""Columns that must agree between rows for a ratio to mean anything."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The winner against one other variant.

    Attributes:
        ratio: the other's median latency over the winner's, rounds pooled as in the table.
        wins, rounds: in how many of the rounds that both have the winner's median was the smaller.
    """

    other: Line
    ratio: float
    wins: int
    rounds: int


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Attributes:
    ranked: OK lines with a host median, the fastest first; empty if nothing may be ranked.
    refused: why nothing may be ranked though rows are OK; None otherwise.
    against: the winner against eager of its own precision, eager in FP32 and the next fastest, each once and in this order.
    """

    ranked: tuple[Line, ...]
    refused: str | None
    against: tuple[Comparison, ...]


def host(line: Line) -> Latency | None:
    return line.latency.get(HOST)


def p50(line: Line) -> float | None:
    """Median host latency in microseconds."""
    latency = host(line)
    return None if latency is None else latency.p50_us


def rank(section: Section) -> Ranking:
    fine = [line for line in section.lines if line.verdict == "OK" and p50(line) is not None]
    differing = _differing(section, fine)
    if differing:
        return Ranking((), f"the rows differ in {', '.join(differing)}", ())
    if not fine:
        return Ranking((), None, ())
    winner, by_name = fine[0], {line.variant: line for line in fine}
    own_eager = str(Variant(BASELINE.runtime, Variant.parse(winner.variant).precision))
    names = dict.fromkeys([own_eager, str(BASELINE), *(line.variant for line in fine[1:2])])
    others = [by_name[name] for name in names if name in by_name and name != winner.variant]
    return Ranking(tuple(fine), None, tuple(_compare(section, winner, other) for other in others))


def baseline(section: Section) -> Line | None:
    """The OK line of eager in FP32 that this set's ratios may stand on."""
    return next((line for line in rank(section).ranked if line.variant == str(BASELINE)), None)


def _compare(section: Section, winner: Line, other: Line) -> Comparison:
    ours, theirs = ({row["round"]: row["p50_us"] for row in section.host_rows(line.variant)} for line in (winner, other))
    shared = ours.keys() & theirs.keys()
    ratio = (p50(other) or 0.0) / (p50(winner) or float("nan"))
    return Comparison(other, ratio, sum(ours[number] < theirs[number] for number in shared), len(shared))


def _differing(section: Section, fine: list[Line]) -> list[str]:
    rows = [row for line in fine for row in section.host_rows(line.variant)]
    return [name for name in SAME_PLACE if len({row[name] for row in rows}) > 1]
