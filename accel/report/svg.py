"""A matplotlib figure as SVG that can stand inside a page: no address, no clashing ids, colours of the page (light or dark)."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from accel.optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES = tuple(f"#fe00{number:02x}" for number in range(1, 9))
"""Stand-ins that become `var(--s1)` … `var(--s8)` of the page's style sheet."""
DASHES = ("solid", (0, (4, 1.5)), (0, (1, 1.2)))
TEXT, GRID = "#fe0100", "#fe0200"
_COLOURS = {**{stand_in: f"var(--s{number})" for number, stand_in in enumerate(SERIES, start=1)}, TEXT: "currentColor", GRID: "var(--grid)"}

_STYLE = {
    # Text stays text: small, and the reader's own font.
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11.0,
    "text.parse_math": False,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": TEXT,
    "axes.linewidth": 0.6,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "lines.linewidth": 1.3,
}


def drawn(name: str, paint: Callable[[Figure], None], *, width: float = 4.6, height: float = 3.2) -> str:
    """What `paint` draws, as one `<svg>` element.

    Args:
        name: unique in the page; every id in the figure starts with it.
        width, height: in inches; the element itself has no size and fills its box.

    Raises:
        MissingExtra: matplotlib is absent.
    """
    matplotlib = require("matplotlib", extra="report")
    figures = require("matplotlib.figure", extra="report")
    text = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = figures.Figure(figsize=(width, height), layout="constrained")
        paint(figure)
        figure.savefig(text, format="svg", metadata={"Date": None})
    return inline(text.getvalue(), name)


def inline(svg: str, name: str) -> str:
    """A whole SVG file as an element of HTML: head, metadata and namespaces (which are addresses) cut off, ids made its own."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", body).replace("xlink:href=", "href=")
    body = re.sub(r'(<svg[^>]*?)\s+width="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?)\s+height="[^"]*"', r"\1", body, count=1)
    used = dict.fromkeys(re.findall(r'(?:url\(#|href="#)([^")]+)', body))
    numbers = {found: f"{name}-i{number}" for number, found in enumerate(used)}
    body = re.sub(r'\s+id="([^"]*)"', lambda found: f' id="{numbers[found[1]]}"' if found[1] in numbers else "", body)
    body = re.sub(r'(url\(#|href="#)([^")]+)', lambda found: found[1] + numbers[found[2]], body)
    body = re.sub(r' transform="rotate\(-0 [^"]*"', "", body)  # matplotlib's of every label that stands upright
    body = re.sub(r'\sd="([^"]*)"', lambda found: f' d="{compact(found[1])}"', body)
    # A hundredth of a point is below what a screen shows.
    body = re.sub(r'\s(?:x|y|points|transform)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), body)
    for stand_in, colour in _COLOURS.items():
        body = body.replace(stand_in, colour)
    return re.sub(r"\n\s*", "\n", _classed(_ungrouped(body), name)).strip()


def _ungrouped(body: str) -> str:
    """Without the groups that say nothing of what they hold: matplotlib wraps each line and label in two of them."""
    kept: list[bool] = []

    def met(tag: re.Match[str]) -> str:
        if tag[0] != "</g>":
            kept.append(tag[0] != "<g>")
            return tag[0] if kept[-1] else ""
        return tag[0] if kept.pop() else ""

    return re.sub(r"<g(?:\s[^>]*)?>|</g>", met, body)


def _classed(body: str, name: str) -> str:
    """Styles that stand there more than once, as classes of the figure's own style sheet."""
    counts = Counter(re.findall(r' style="([^"]*)"', body))
    names = {style: f"{name}-{number}" for number, style in enumerate(style for style, count in counts.items() if count > 1)}
    if not names or "</style>" not in body:
        return body
    rules = "".join(f".{rule}{{{style}}}" for style, rule in names.items())
    body = re.sub(r' style="([^"]*)"', lambda found: f' class="{names[found[1]]}"' if found[1] in names else found[0], body)
    return body.replace("</style>", f"{rules}</style>", 1)


def compact(path: str) -> str:
    """The data of a path of straight lines in tenths of a point, each point as its distance from the one before: a fourth of the text.

    Distances are between rounded points, so that errors do not add up; points that fall together are drawn once. A path with curves
    keeps its words.
    """
    words = path.split()
    if not set(words) - {"M", "L", "z"} <= {word for word in words if _NUMBER.fullmatch(word)}:
        return " ".join(words)
    out, at, start, command = [], (0, 0), (0, 0), ""
    while words:
        if words[0] in "MLz":
            command = words.pop(0)
        if command == "z":
            out.append("z")
            at = start
            continue
        x, y = (round(10 * float(words.pop(0))) for _ in range(2))
        moved = x - at[0], y - at[1]
        at = x, y
        if command == "M":
            out.append(f"M{_tenths(x)}{_joined(_tenths(y))}")
            start, command = at, "L"
        elif moved != (0, 0):
            out.append(f"l{_tenths(moved[0])}{_joined(_tenths(moved[1]))}")
    return "".join(out)


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def _tenths(value: int) -> str:
    """A whole number of tenths, as short as SVG takes it: `-4`, `.5`, `12.3`."""
    whole, tenth = divmod(abs(value), 10)
    return "-" * (value < 0) + (f"{whole or ''}.{tenth}" if tenth else f"{whole}")


def _joined(number: str) -> str:
    return number if number.startswith("-") else f" {number}"


def colour(number: int) -> str:
    return SERIES[number % len(SERIES)]


def dash(number: int) -> str | tuple[int, tuple[float, float]]:
    """Solid for the first eight series, broken for those that use a colour again."""
    chosen: str | tuple[int, tuple[float, float]] = DASHES[number // len(SERIES) % len(DASHES)]
    return chosen


def short(name: str, most: int = 48) -> str:
    """A name that fits into a figure: one of more than `most` characters loses its middle; the key beside the figures has it whole."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"


def log_axis(axes: Axes, which: str, low: float, high: float) -> None:
    """A logarithmic axis from `low` to `high` with plain numbers at `ticks`."""
    ticker = require("matplotlib.ticker", extra="report")
    getattr(axes, f"set_{which}scale")("log")
    # A coarse clock reads 0, which a logarithmic axis has no place for.
    low = max(low, 1e-3)
    high = max(high, 2 * low) if high <= low else high
    getattr(axes, f"set_{which}lim")(low, high)
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(ticker.FixedLocator(ticks(low, high)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1e5 else f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())


def ticks(low: float, high: float) -> list[float]:
    """At least four round numbers from `low` to `high`: powers of ten, else 1, 2, 5, …, else 1, 2, 3, 5, 7, …, else evenly spaced."""
    ticker = require("matplotlib.ticker", extra="report")
    for factors in ((1,), (1, 2, 5), (1, 2, 3, 5, 7)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [float(f"{factor}e{power}") for power in powers for factor in factors]
        found = [value for value in found if low <= value <= high]
        if len(found) >= 4:
            return found
    return [float(value) for value in ticker.MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= value <= high]
