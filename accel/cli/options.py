"""Options that several commands share, with one wording each."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer


class Format(str, enum.Enum):
    table = "table"
    json = "json"
    csv = "csv"
    markdown = "markdown"


DEFAULT_MODEL = "resnet18"
VARIANTS_HELP = "all, a runtime (onnxruntime) or a variant (onnxruntime:fp16); may be repeated."

FormatOption = Annotated[Format, typer.Option("--format", help="How results are printed on stdout.")]
CsvOption = Annotated[Path | None, typer.Option("--export-csv", metavar="FILE", help="Also write the rows to FILE as CSV.")]
DeviceOption = Annotated[str | None, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A shipped name, a checkpoint, a bundle, an ONNX file, or package.module:factory.")
]
BundleArgument = Annotated[str, typer.Argument(metavar="BUNDLE", help="A folder NAME.accel, or the name of a model in the engines folder.")]
TrustedOption = Annotated[bool, typer.Option("--trusted", help="Run code of a bundle or a checkpoint that somebody else made.")]
DataOption = Annotated[str | None, typer.Option("--data", metavar="SPEC", help="cifar10, imagefolder:DIR, npz:FILE or pkg.mod:iterable.")]
MetricOption = Annotated[str, typer.Option("--metric", metavar="NAME", help="top1 or pkg.mod:function.")]
MaxDropOption = Annotated[float | None, typer.Option("--max-drop", metavar="POINTS", help="Largest fall below the reference; 0.5.")]
MinTop1Option = Annotated[float | None, typer.Option("--min-top1", metavar="PERCENT", help="Lowest top-1; 85 for CIFAR-10.")]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="Batch size of the engines.")]
TrackOption = Annotated[str | None, typer.Option("--track", metavar="WHERE", help="Log to mlflow as well; none overrules the setting.")]
