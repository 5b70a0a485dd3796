"""`accel package`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from accel.cli.options import BundleArgument, CsvOption, Format, FormatOption

COLUMNS = ("name", "engine", "platform", "max_batch", "size_mb", "path")


def package(
    bundle: BundleArgument,
    to: Annotated[str, typer.Option("--to", metavar="SYSTEM", help="triton or mlflow.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where NAME is written; default triton/ or mlflow/.")] = None,
    engine: Annotated[list[str] | None, typer.Option("--engine", metavar="NAME", help="onnx-fp16, or onnx; repeatable; else all.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the model; default the bundle's.")] = None,
    max_batch_size: Annotated[int | None, typer.Option(metavar="N", help="Triton: of engines with a dynamic batch; 32.")] = None,
    dynamic_batching: Annotated[bool, typer.Option("--dynamic-batching", help="Triton: gather requests into batches.")] = False,
    instances: Annotated[int | None, typer.Option(min=1, metavar="N", help="Triton: on each device; 1.")] = None,
    device: Annotated[str | None, typer.Option(metavar="KIND", help="Triton: auto, cpu or cuda.")] = None,
    model_version: Annotated[int | None, typer.Option(min=1, metavar="N", help="Triton: the folder of the engine; 1.")] = None,
    warmup: Annotated[bool, typer.Option("--warmup", help="Triton: run a golden sample before the model is ready.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there, with all its versions.")] = False,
    format: FormatOption = Format.table,
    export_csv: CsvOption = None,
) -> None:
    """Write a bundle as a Triton model repository or an MLflow model; engines are copied, none is run."""
    from accel.cli.output import print_notes, print_rows
    from accel.integrations.packaging import package

    what: dict[str, Any] = {"out": out, "engines": engine or (), "name": name, "force": force}
    batches: dict[str, Any] = {"max_batch_size": max_batch_size, "dynamic_batching": dynamic_batching}
    how: dict[str, Any] = {"instances": instances, "device": device, "model_version": model_version, "warmup": warmup}
    done = package(bundle, to, **what, **batches, **how)
    print_rows([item.to_row() for item in done.packages], COLUMNS, format, export_csv)
    print_notes(done.notes)
