"""`accel export`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from accel.cli.options import DEFAULT_MODEL, CsvOption, DeviceOption, Format, FormatOption, ModelArgument

COLUMNS = ("engine", "status", "opset", "size_mb", "parity", "max_rel_err", "limit", "built_s", "file")


def export(
    model: ModelArgument = DEFAULT_MODEL,
    to: Annotated[list[str] | None, typer.Option("--to", metavar="FORMAT", help="onnx, torchscript or aoti; may be repeated.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or fp16.")] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="The same as --precision fp16.")] = False,
    opset: Annotated[int | None, typer.Option(help="ONNX opset; 17 where none is given.")] = None,
    batch: Annotated[str | None, typer.Option(metavar="N|dynamic", help="Batch size of the engine; 1 where none is given.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where NAME.accel is written; default engines/.")] = None,
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="Of a factory: its .safetensors.")] = None,
    input: Annotated[str | None, typer.Option(metavar="SHAPE", help="Of a factory: its input, as 1x3x224x224.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the bundle; default the model's.")] = None,
    device: DeviceOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Export anew what is there; replace a bundle of another model.")] = False,
    format: FormatOption = Format.table,
    export_csv: CsvOption = None,
) -> None:
    """Export a model to engines, each held against the golden samples before it is kept."""
    from accel import api
    from accel.cli.output import print_rows
    from accel.cli.progress import drawn
    from accel.errors import UsageError

    if fp16 and precision not in (None, "fp16"):
        raise UsageError(f"--fp16 and --precision {precision} contradict each other", remedy="give one of them")
    what: dict[str, Any] = {"precision": "fp16" if fp16 else precision, "opset": opset, "batch": batch}
    where: dict[str, Any] = {"weights": weights, "input": input, "name": name, "out": out, "device": device}
    with drawn() as progress:
        done = api.export(model, to or "onnx", **what, **where, dry_run=dry_run, force=force, progress=progress)
    print_rows([item.to_row() for item in done], COLUMNS, format, export_csv)
