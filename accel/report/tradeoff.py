"""Accuracy against latency, and what a variant costs before its first answer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from accel.bench.summary import Line
from accel.report import svg
from accel.report.ledger import cold_starts
from accel.report.ranking import p50, rank
from accel.report.sections import Section
from accel.report.table import interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def wilson(percent: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a share of `n` independent trials, in percent: Wilson's (1927), which stays inside 0 to 100."""
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    share = percent / 100.0
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return 100.0 * max(0.0, middle - half), 100.0 * min(1.0, middle + half)


def front(ranked: Sequence[Line]) -> list[Line]:
    """Lines that no other beats in latency without being less accurate; `ranked` is in ascending order of latency."""
    found: list[Line] = []
    for line in ranked:
        if line.top1 is not None and (not found or line.top1 > (found[-1].top1 or 0.0)):
            found.append(line)
    return found


def pareto(section: Section, name: str, order: Sequence[str]) -> str | None:
    """Accuracy over median host latency, ranked lines only; whiskers are 95 % intervals. None where no accuracy was measured."""
    shown = [line for line in rank(section).ranked if line.top1 is not None]
    if not shown:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        best = front(shown)
        axes.step(
            [p50(line) or 0.0 for line in best],
            [line.top1 or 0.0 for line in best],
            where="post",
            color=svg.TEXT,
            alpha=0.45,
            linewidth=1.0,
            zorder=1,
        )
        ends: list[float] = []
        for line in shown:
            x, y, number = p50(line) or 0.0, line.top1 or 0.0, order.index(line.variant)
            n_test = section.n_test(line.variant)
            high_low = wilson(y, n_test) if n_test and line.metric == "top1" else None
            wide = interval(section, line)
            # Pooled over rounds, the median may lie a hair outside of what the rounds' own intervals span.
            whisker = None if wide is None else [[max(0.0, x - wide[0])], [max(0.0, wide[1] - x)]]
            tall = None if high_low is None else [[y - high_low[0]], [high_low[1] - y]]
            filled = svg.colour(number) if number < len(svg.SERIES) else "none"
            style: dict[str, Any] = {
                "color": svg.colour(number),
                "markerfacecolor": filled,
                "elinewidth": 0.8,
                "capsize": 2,
                "markersize": 5,
            }
            axes.errorbar(x, y, xerr=whisker, yerr=tall, fmt="o", **style)
            ends += [x, *(wide or ())]
        svg.log_axis(axes, "x", min(ends) / 1.15, max(ends) * 1.15)
        axes.grid(True)
        axes.set_xlabel("median host latency, µs (log)")
        axes.set_ylabel("top-1, %" if shown[0].metric == "top1" else str(shown[0].metric))

    return svg.drawn(name, paint)


def bars(section: Section, name: str, order: Sequence[str]) -> str | None:
    """Time until ready and time of the first call, a bar each; None where nothing was built."""
    found = cold_starts(section)
    if not found:
        return None

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        places = range(len(found))
        for axes, values, title, form in (
            (left, [item.ready_s for item in found], "export, load and build, s", "{:.1f}"),
            (right, [item.first_call_ms for item in found], "first call, ms", "{:.2f}"),
        ):
            axes.barh(places, [value or 0.0 for value in values], height=0.34, color=[svg.colour(order.index(i.variant)) for i in found])
            for place, value in zip(places, values, strict=True):
                said = "not measured" if value is None else form.format(value)
                axes.annotate(said, (value or 0.0, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=10)
            axes.set_xlim(0, 1.3 * max([value for value in values if value], default=1.0))
            axes.set_title(title, loc="left", fontsize=11)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            axes.xaxis.get_major_locator().set_params(nbins=4)
        for place, item in zip(places, found, strict=True):
            # No axes make room for a name: it may run over to the right ones.
            left.annotate(svg.short(item.variant), (0, place - 0.24), va="bottom", fontsize=10).set_in_layout(False)
        left.set_ylim(len(found) - 0.6, -0.75)

    return svg.drawn(name, paint, height=0.75 + 0.43 * len(found))
