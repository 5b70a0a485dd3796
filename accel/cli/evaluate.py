"""`accel evaluate`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from accel.cli.options import DEFAULT_MODEL, CsvOption, DataOption, DeviceOption, Format, FormatOption, TrustedOption

COLUMNS = ("class", "images", "right", "top1", "mistaken_for")


def evaluate(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A shipped name or a checkpoint folder.")] = DEFAULT_MODEL,
    data: DataOption = None,
    device: DeviceOption = None,
    trusted: TrustedOption = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw curves and confusion matrix: .svg, .png or .pdf.")] = None,
    format: FormatOption = Format.table,
    export_csv: CsvOption = None,
) -> None:
    """Top-1 of a checkpoint in FP32, class by class; the confusion matrix is in --format json."""
    from accel import api
    from accel.cli.output import as_csv, print_notes, print_rows
    from accel.cli.progress import drawn
    from accel.files import write_text

    with drawn() as progress:
        found = api.evaluate(checkpoint, data=data, device=device, trusted=trusted, plot=plot, progress=progress)
    if export_csv is not None:
        write_text(export_csv, as_csv(found.rows(), COLUMNS))
    if format is Format.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        print_rows(found.rows(), COLUMNS, format)
    print_notes([f"{found.checkpoint.name} on {found.data}: top-1 {found.top1:.2f} %"])
