"""The figure of a sweep: accuracy over latency, and the trials that no other beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accel.files import replacing
from accel.optional import require

FRONT, REST, BELOW = "#1f5fa8", "#8a8f98", "#c2452d"
CLOSE_PT = 9
"""Points between a mark and its number."""


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
    for row in front:
        # Above and to the left no trial of the front's neighbours lies.
        place = {"textcoords": "offset points", "xytext": (-CLOSE_PT, CLOSE_PT / 2), "ha": "right", "fontsize": 8, "color": FRONT}
        axes.annotate(str(row["trial"]), (row["p50_us"], row["top1"]), **place)
    if floor is not None:
        axes.axhline(floor, color=BELOW, linewidth=0.9, linestyle="--", label=f"floor {floor:g} %")
    axes.margins(x=0.08, y=0.08)
    if known:
        axes.legend(loc="lower right", fontsize=8, framealpha=0.9)
    else:
        axes.text(0.5, 0.5, "no trial has a result yet", transform=axes.transAxes, ha="center")
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."), metadata={"Date": None} if path.suffix == ".svg" else None)
