"""`accel selfcheck`"""

from __future__ import annotations

import typer

from accel.cli.options import DeviceOption, Format, FormatOption


def selfcheck(device: DeviceOption = None, format: FormatOption = Format.table) -> None:
    """Check the harness itself: it must measure what is known beforehand."""
    from accel import api
    from accel.cli.output import print_rows
    from accel.cli.progress import drawn

    with drawn() as progress:
        found = api.selfcheck(device, progress=progress)
    rows = [{"check": check.name, "result": "ok" if check.passed else "FAILED", "found": check.said} for check in found.checks]
    print_rows(rows, ["check", "result", "found"], format)
    if not found.passed:
        raise typer.Exit(3)
