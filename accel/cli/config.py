"""`accel config`"""

from __future__ import annotations

from accel.cli.options import Format, FormatOption


def config(format: FormatOption = Format.table) -> None:
    """Print every setting, its value and where that came from."""
    from accel.cli.output import print_rows
    from accel.config import resolve

    print_rows(resolve().rows(), ["key", "value", "source", "help"], format)
