"""`accel doctor`"""

from __future__ import annotations

import dataclasses

import typer

from accel.cli.options import Format, FormatOption


def doctor(format: FormatOption = Format.table) -> None:
    """Check this machine: each line ok, warn or fail, with what mends it."""
    from accel import config
    from accel.cli.output import print_rows
    from accel.doctor import FAIL, examine

    config.apply_environment(config.resolve())
    lines = examine()
    print_rows([dataclasses.asdict(line) for line in lines], ["status", "name", "found", "fix"], format)
    if any(line.status == FAIL for line in lines):
        raise typer.Exit(4)
