"""Who is the fastest of a set, and against whom that may be said. Only OK rows of like conditions rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from accel.bench import comparison, pairing
from accel.bench.summary import Latency, Line
from accel.report.sections import HOST, Section
from accel.types import Variant

BASELINE = Variant("eager", "fp32")
"""What an engine has to beat: the module as it was trained."""

SAME_PLACE = ("gpu_uuid", *pairing.MUST_AGREE)
"""Columns that must agree between rows for a ratio to mean anything. Inside a set that is one GPU, and not only one kind of GPU."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The winner against one other variant.

    Attributes:
        ratio: the other's median latency over the winner's, rounds pooled as in the table.
        verdict: of the winner against the other, a key of `accel.bench.comparison.VERDICTS`; paired over rounds, with Holm's correction
            for the winner against every other.
        rounds: how many pairs that stands on.
        judged: the whole comparison, winner over other; None if they share no round.
    """

    other: Line
    ratio: float
    verdict: str
    rounds: int
    judged: comparison.Judged | None = None


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
    good, _ = pairing.sides(section.rows, HOST)
    fine = [line for line in section.lines if (line.model, line.variant) in good and p50(line) is not None]
    differing = _differing(section, fine)
    if differing:
        return Ranking((), f"the rows differ in {', '.join(differing)}", ())
    if not fine:
        return Ranking((), None, ())
    winner, by_name = fine[0], {line.variant: line for line in fine}
    own_eager = str(Variant(BASELINE.runtime, Variant.parse(winner.variant).precision))
    names = dict.fromkeys([own_eager, str(BASELINE), *(line.variant for line in fine[1:2])])
    judged = _judged(good, winner, fine[1:])
    return Ranking(tuple(fine), None, tuple(_against(winner, by_name[name], judged[name]) for name in names if name in judged))


def baseline(section: Section) -> Line | None:
    """The OK line of eager in FP32 that this set's ratios may stand on."""
    return next((line for line in rank(section).ranked if line.variant == str(BASELINE)), None)


def _judged(good: Mapping[pairing.Key, pairing.Side], winner: Line, others: Sequence[Line]) -> dict[str, comparison.Judged | None]:
    """The winner against each of the others, judged together as `accel compare` does; None for one that shares no round with it."""
    ours = good[winner.model, winner.variant]
    pairs = {line.variant: pairing.Pair(good[line.model, line.variant], ours) for line in others}
    paired = {name: found for name, pair in pairs.items() if (found := pair.log_ratios())}
    judged = comparison.judge([comparison.estimate(found) for found in paired.values()], [pairs[name].floor for name in paired])
    return {**dict.fromkeys(pairs), **dict(zip(paired, judged, strict=True))}


def _against(winner: Line, other: Line, judged: comparison.Judged | None) -> Comparison:
    ratio = (p50(other) or 0.0) / (p50(winner) or float("nan"))
    if judged is None:
        return Comparison(other, ratio, comparison.AMBIGUOUS, 0)
    return Comparison(other, ratio, judged.verdict, judged.estimate.rounds, judged)


def _differing(section: Section, fine: list[Line]) -> list[str]:
    rows = [row for line in fine for row in section.host_rows(line.variant)]
    return [name for name in SAME_PLACE if len({row[name] for row in rows}) > 1]
