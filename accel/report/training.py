"""The figure of one trained model: the curves of its log, and its confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from accel.files import replacing
from accel.optional import require
from accel.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMES = 20
"""Classes up to which the matrix names rows and columns and writes the numbers in."""

CURVES = (("train_top1", "train"), ("val_top1", "held out"), ("test_top1", "test"))


def draw(path: Path, confusion: Array, classes: Sequence[str], log: Sequence[Mapping[str, str]], *, title: str) -> None:
    """Write the figure to `path` in the format that its suffix names, whole or not at all.

    Args:
        confusion: int64 C×C, rows the true class.
        log: rows of log.csv; without any only the matrix is drawn.

    Raises:
        MissingExtra: matplotlib is absent. DiskFull: no space is left.
    """
    figures = require("matplotlib.figure", extra="report")
    figure = figures.Figure(figsize=(6 + 6 * bool(log), 5.4), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 1 + bool(log), squeeze=False)[0]
    if log:
        _curves(panels[0], log)
    _matrix(panels[-1], confusion, classes)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."), metadata={"Date": None} if path.suffix == ".svg" else None)


def _curves(axes: Axes, log: Sequence[Mapping[str, str]]) -> None:
    for column, name in CURVES:
        points = [(int(row["epoch"]), float(row[column])) for row in log if row.get(column)]
        if points:
            # The test set is measured once: a point, not a line.
            axes.plot(*zip(*points, strict=True), marker="o" if len(points) == 1 else "", label=name)
    axes.set(xlabel="epoch", ylabel="top-1 in %")
    losses = axes.twinx()
    losses.plot([int(row["epoch"]) for row in log], [float(row["train_loss"]) for row in log], "k:", label="train loss")
    losses.set_ylabel("train loss (dotted)")
    axes.legend(loc="center right")


def _matrix(axes: Axes, confusion: Array, classes: Sequence[str]) -> None:
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="taken for", ylabel="class")
    if len(classes) > MOST_NAMES:
        return
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            axes.text(
                column, row, str(count), ha="center", va="center", fontsize=7, color="white" if shares[row, column] > 0.5 else "black"
            )
