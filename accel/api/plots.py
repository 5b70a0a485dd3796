"""Where a figure goes: looked at before the work that it shows, not after."""

from __future__ import annotations

from pathlib import Path

from accel.errors import UsageError
from accel.optional import require

SUFFIXES = (".svg", ".png", ".pdf")


def file(path: Path | str) -> Path:
    """`path`, if a figure can be written under such a name.

    Raises:
        UsageError: another suffix than SUFFIXES. MissingExtra: matplotlib is absent.
    """
    found = Path(path).expanduser()
    if found.suffix not in SUFFIXES:
        raise UsageError(f"{found} is no kind of plot", remedy="name it .svg, .png or .pdf")
    require("matplotlib.figure", extra="report")
    return found
