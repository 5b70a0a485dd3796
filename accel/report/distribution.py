"""How latency is distributed, and how it went over time. Both need raw samples, and show every round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from accel.report import svg
from accel.report.ranking import p50
from accel.report.sections import Section
from accel.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 120
"""Points of a distribution's curve: all that a screen resolves; the ends are always among them."""
TAIL, TAIL_SHARE = 40, 0.05
"""Points more for the slowest calls, closer and closer to the slowest: there neighbours in rank lie far apart in latency."""
NAMED = (0.5, 0.95, 0.99)
"""Percentiles of the table: a curve passes through them exactly."""
BINS = 16
"""Groups of neighbouring calls in a round's strip."""
FAR = (0.7, 1.6)
"""The widest scale of the strips, as a multiple of the median: one outlier must not flatten all of them."""


def curve(samples_us: Array) -> tuple[Array, Array]:
    """The empirical distribution: ascending latencies (µs) and the share of calls (%) at or below each, thinned where they lie close."""
    ordered = np.sort(samples_us)
    n = len(ordered)
    even = np.linspace(0, n - 1, min(n, POINTS))
    tail = n - np.geomspace(1, max(1, TAIL_SHARE * n), min(n, TAIL))
    kept = np.unique(np.concatenate([even, tail, [math.ceil(q * n) - 1 for q in NAMED]]).astype(int))
    return ordered[kept], 100.0 * (kept + 1) / n


def course(samples_us: Array) -> tuple[Array, Array, Array, Array]:
    """One round in BINS groups of neighbouring calls: the middle of each (share of the round), and its minimum, median and maximum."""
    groups = np.array_split(samples_us, min(BINS, len(samples_us)))
    middles = (np.arange(len(groups)) + 0.5) / len(groups)
    low, middle, high = (np.array([function(group) for group in groups]) for function in (np.min, np.median, np.max))
    return middles, low, middle, high


def measured(section: Section) -> list[str]:
    """Variants with raw samples, in the order of the table."""
    return [line.variant for line in section.lines if section.rounds(line.variant)]


def microseconds(section: Section, variant: str) -> list[Array]:
    return [samples.astype(np.int64) / 1000.0 for samples in section.rounds(variant)]


def ecdf(section: Section, name: str, order: Sequence[str]) -> str | None:
    """Share of calls over latency, one curve a variant, rounds pooled; None without samples."""
    shown = [variant for variant in order if section.rounds(variant)]
    if not shown:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        pooled = {variant: np.concatenate(microseconds(section, variant)) for variant in shown}
        for variant, samples in pooled.items():
            number = order.index(variant)
            axes.step(*curve(samples), where="post", color=svg.colour(number), linestyle=svg.dash(number))
        low, high = min(samples.min() for samples in pooled.values()), max(samples.max() for samples in pooled.values())
        svg.log_axis(axes, "x", low / 1.05, high * 1.05)
        axes.set_ylim(0, 101)
        axes.grid(True)
        axes.set_xlabel("host latency, µs (log)")
        axes.set_ylabel("calls at or below, %")

    return svg.drawn(name, paint)


def over_time(section: Section, name: str, order: Sequence[str]) -> str | None:
    """A strip a variant: median and range of neighbouring calls against the variant's own median, round after round."""
    shown = [variant for variant in order if section.rounds(variant) and p50(section.by_variant[variant])]
    if not shown:
        return None

    def paint(figure: Figure) -> None:
        strips = figure.subplots(len(shown), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        ends = [FAR[1], FAR[0]]
        rounds = 0
        for axes, variant in zip(strips, shown, strict=True):
            low, high, count = _strip(axes, section, variant, order.index(variant))
            ends, rounds = [min(ends[0], low), max(ends[1], high)], max(rounds, count)
        strips[-1].set_ylim(max(FAR[0], ends[0] - 0.02), min(FAR[1], ends[1] + 0.02))
        strips[-1].set_xlim(0, rounds)
        few = rounds <= 5
        strips[-1].set_xticks([at + 0.5 for at in range(rounds)], [f"round {at + 1}" if few else f"{at + 1}" for at in range(rounds)])
        if not few:
            strips[-1].set_xlabel("round")
        strips[-1].yaxis.set_major_formatter(lambda value, _: f"{100 * (value - 1):+.0f} %" if abs(value - 1) > 1e-9 else "0")
        strips[-1].yaxis.get_major_locator().set_params(nbins=3)

    return svg.drawn(name, paint, height=0.5 + 0.7 * len(shown))


def _strip(axes: Axes, section: Section, variant: str, number: int) -> tuple[float, float, int]:
    """Draw one strip; returns the lowest and highest of its group medians against the variant's median, and its number of rounds."""
    own = p50(section.by_variant[variant]) or 1.0
    rounds = microseconds(section, variant)
    lowest, highest = 1.0, 1.0
    for at, samples in enumerate(rounds):
        middles, low, middle, high = course(samples)
        x = at + 0.03 + 0.94 * middles
        axes.fill_between(x, low / own, high / own, color=svg.colour(number), alpha=0.22, linewidth=0)
        axes.plot(x, middle / own, color=svg.colour(number), linewidth=1.2)
        lowest, highest = min(lowest, float(middle.min()) / own), max(highest, float(middle.max()) / own)
    for boundary in range(1, len(rounds)):
        axes.axvline(boundary, color=svg.GRID, linewidth=0.8)
    axes.axhline(1, color=svg.GRID, linewidth=0.8)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.set_title(svg.short(variant), loc="left", fontsize=10, pad=2)
    return lowest, highest, len(rounds)
