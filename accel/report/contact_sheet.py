"""Many pictures on one sheet, each as the model sees it, with bars for its likeliest classes beside it."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel.files import replacing
from accel.optional import require
from accel.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 200
"""Pictures on a sheet; of more, the first."""

MOST_BARS = 10

DPI = 110
PICTURE, BARS, GAP, NAME, HEAD = 1.5, 2.3, 0.3, 0.26, 0.55
"""In inches: the square that a picture is fitted into, the width of its bars, the space between cells, the lines of name and title."""
BAR = 0.26
LETTERS_PER_INCH = {7: 17.5, 8: 15.5}
"""Of DejaVu Sans by its size in points, a little less than its mean letter would allow."""
WIDE = 4 / 3
"""Width by height that the sheet comes near to."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One picture: uint8 H×W×1 or 3, its bars as (class, probability), or what was wrong with it."""

    name: str
    pixels: Array | None
    bars: Sequence[tuple[str, float]]
    error: str = ""


def draw(path: Path, cells: Sequence[Cell], *, title: str) -> None:
    """Write the sheet to `path` in the format that its suffix names, whole or not at all.

    Raises:
        MissingExtra: matplotlib is absent. DiskFull: no space is left.
    """
    figures = require("matplotlib.figure", extra="report")
    bars = min(MOST_BARS, max(1, *(len(cell.bars) for cell in cells), 1))
    cell_height = NAME + max(PICTURE, bars * BAR) + GAP
    cell_width = PICTURE + 0.12 + BARS + GAP
    columns = columns_of(len(cells), cell_width / cell_height)
    width, height = GAP + columns * cell_width, HEAD + math.ceil(len(cells) / columns) * cell_height
    figure = figures.Figure(figsize=(width, height), dpi=DPI)
    # Else an SVG has all pictures in one, at the resolution of a screen.
    figure.suppressComposite = True
    # One pair of axes for all, in inches from the upper left: hundreds of axes would take a minute.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    _write(axes, GAP, 0.3, title, width - 2 * GAP, size=8, weight="bold")
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        _cell(axes, cell, GAP + column * cell_width, HEAD + row * cell_height)
    # Imshow set its own limits and aspect.
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    with replacing(path) as temporary, warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; that is no matter for stderr.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(temporary, format=path.suffix.removeprefix("."), metadata={"Date": None} if path.suffix == ".svg" else None)


def columns_of(count: int, cell_aspect: float) -> int:
    """How many columns bring a sheet of `count` cells nearest to WIDE."""
    return max(1, min(count, round(math.sqrt(count * WIDE / cell_aspect))))


def _cell(axes: Axes, cell: Cell, left: float, top: float) -> None:
    whole = PICTURE + 0.12 + BARS
    _write(axes, left, top + 0.1, cell.name, whole, size=7, keep_end=True, color="0.35")
    top += NAME
    if cell.pixels is None:
        _box(axes, left, top, PICTURE, PICTURE, "0.92")
        _write(axes, left + PICTURE / 2, top + PICTURE / 2, "not read", PICTURE, size=8, ha="center", color="0.35")
        _paragraph(axes, left + PICTURE + 0.12, top + 0.1, cell.error)
        return
    high, wide = cell.pixels.shape[:2]
    scale = PICTURE / max(high, wide)
    x, y = left + (PICTURE - wide * scale) / 2, top + (PICTURE - high * scale) / 2
    pixels = cell.pixels[..., 0] if cell.pixels.shape[2] == 1 else cell.pixels
    extent = (x, x + wide * scale, y + high * scale, y)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="nearest", origin="upper")
    for rank, (label, probability) in enumerate(cell.bars[:MOST_BARS]):
        _bar(axes, left + PICTURE + 0.12, top + rank * BAR, label, probability, first=rank == 0)


def _bar(axes: Axes, left: float, top: float, label: str, probability: float, *, first: bool) -> None:
    tall = BAR - 0.05
    _box(axes, left, top, BARS, tall, "0.95")
    _box(axes, left, top, BARS * probability, tall, "#8fbce6" if first else "#c9dcef")
    _write(axes, left + 0.06, top + tall / 2, label, BARS - 0.7, size=8)
    _write(axes, left + BARS - 0.06, top + tall / 2, f"{100 * probability:.1f} %", 0.6, size=8, ha="right")


def _box(axes: Axes, left: float, top: float, width: float, height: float, color: str) -> None:
    patches = require("matplotlib.patches", extra="report")
    # As a patch it would move the data limits, which are fixed, and take twice the time.
    axes.add_artist(patches.Rectangle((left, top), width, height, facecolor=color, edgecolor="none"))


def _write(axes: Axes, x: float, y: float, text: str, width: float, *, size: int, keep_end: bool = False, **style: Any) -> None:
    """One line, cut to `width` inches: of a path the end says more than the beginning."""
    most = max(4, int(width * LETTERS_PER_INCH[size]))
    if len(text) > most:
        text = "…" + text[1 - most :] if keep_end else text[: most - 1] + "…"
    # A dollar in a name is no formula, and a name that is no UTF-8 cannot be drawn as it is.
    shown = text.encode("utf-8", "replace").decode("utf-8")
    axes.text(x, y, shown, fontsize=size, va="center", parse_math=False, **style)


def _paragraph(axes: Axes, x: float, y: float, text: str) -> None:
    import textwrap

    for number, line in enumerate(textwrap.wrap(text, int(BARS * LETTERS_PER_INCH[7]))[:9]):
        _write(axes, x, y + number * 0.15, line, BARS, size=7, color="0.35")
