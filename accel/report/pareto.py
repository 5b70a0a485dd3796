"""The figure of a sweep: accuracy over latency, and the trials that no other beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel.files import replacing
from accel.optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FRONT, REST, BELOW = "#1f5fa8", "#8a8f98", "#c2452d"
PLACES = ((-8, 5, "right"), (8, -11, "left"))
"""Of a number beside its mark: above to the left, where nothing lies that beats it; below to the right if the last one is close."""
CLOSE = 0.06
"""As a share of the axes."""


def draw(path: Path, trials: Sequence[Mapping[str, Any]], *, title: str, latency: str, floor: float | None = None) -> None:
    """Write the figure to `path` in the format that its suffix names, whole or not at all.

    Args:
        trials: rows of `accel.sweeps.rows`; those without a result are not drawn.
        latency: what the horizontal axis says, with its unit.
        floor: of accuracy, in percent; trials below it are crosses.

    Raises:
        MissingExtra: matplotlib is absent. DiskFull: no space is left.
    """
    figures = require("matplotlib.figure", extra="report")
    figure = figures.Figure(figsize=(7.2, 4.8), dpi=140, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left")
    axes.set(xlabel=latency, ylabel="top-1 on held-out images, %")
    axes.grid(color="#e3e5e8", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)

    known = [row for row in trials if row["top1"] is not None]
    front = sorted((row for row in known if row["front"]), key=lambda row: (row["p50_us"], row["top1"]))
    rest = [row for row in known if not row["front"] and row["state"] == "complete"]
    below = [row for row in known if row["state"] == "infeasible"]
    groups = (
        (rest, {"marker": "o", "color": REST, "alpha": 0.8}, "beaten"),
        (below, {"marker": "x", "color": BELOW}, "below the floor"),
        (front, {"marker": "o", "color": FRONT, "s": 48, "zorder": 3}, "on the front"),
    )
    for rows, style, name in groups:
        if rows:
            axes.scatter([row["p50_us"] for row in rows], [row["top1"] for row in rows], label=f"{name} ({len(rows)})", **style)
    if front:
        axes.step([row["p50_us"] for row in front], [row["top1"] for row in front], where="post", color=FRONT, linewidth=1.2)
    _number(axes, front, known)
    if floor is not None:
        axes.axhline(floor, color=BELOW, linewidth=0.9, linestyle="--", label=f"floor {floor:g} %")
    axes.margins(x=0.08, y=0.08)
    if known:
        figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    else:
        axes.text(0.5, 0.5, "no trial has a result yet", transform=axes.transAxes, ha="center")
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."), metadata={"Date": None} if path.suffix == ".svg" else None)


def _number(axes: Axes, front: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]]) -> None:
    """Write the trials' numbers beside the marks of the front."""
    spans = [max(row[name] for row in known) - min(row[name] for row in known) or 1.0 for name in ("p50_us", "top1")] if known else []
    place, last = 0, None
    for row in front:
        at = (row["p50_us"], row["top1"])
        close = last is not None and all(abs(a - b) < CLOSE * span for a, b, span in zip(at, last, spans, strict=True))
        place, last = (1 - place if close else 0), at
        right, up, side = PLACES[place]
        axes.annotate(str(row["trial"]), at, (right, up), textcoords="offset points", ha=side, fontsize=8, color=FRONT)
