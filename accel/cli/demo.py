"""`accel demo`"""

from __future__ import annotations

import sys

from accel.cli.options import DeviceOption, Format, FormatOption


def demo(device: DeviceOption = None, format: FormatOption = Format.table) -> None:
    """Fetch CIFAR-10, export, verify and time the shipped models, and print the table."""
    from accel import api
    from accel.cli.output import command_line, print_sets
    from accel.cli.progress import drawn

    with drawn() as progress:
        toured = api.demo(device_name=device, command=command_line(), progress=progress)
    print_sets(toured.sets, format)
    print(f"accel: the record is in {toured.folder}: results.jsonl, results.csv, table.md", file=sys.stderr)
    if toured.problem is not None:
        raise toured.problem
