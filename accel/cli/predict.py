"""`accel predict`"""

from __future__ import annotations

import contextlib
import json
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from accel.cli.options import BundleArgument, CsvOption, DeviceOption, Format, FormatOption, TrustedOption

if TYPE_CHECKING:
    from accel.api.predicting import Predicted, Prediction
    from accel.progress import Progress

COLUMNS = ("file", "rank", "label", "index", "probability", "error")


def predict(
    bundle: BundleArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE|DIR", help="Pictures, or folders with pictures below them.")],
    top_k: Annotated[int, typer.Option("--top-k", min=1, metavar="K", help="Classes of each picture.")] = 5,
    runtime: Annotated[str, typer.Option("--runtime", metavar="V", help="auto, a runtime or a variant (onnxruntime:fp16).")] = "auto",
    device: DeviceOption = None,
    trusted: TrustedOption = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw a contact sheet: .png, .svg or .pdf.")] = None,
    format: FormatOption = Format.table,
    export_csv: CsvOption = None,
) -> None:
    """The likeliest classes of pictures; JSON is one line a picture, written as soon as it is known."""
    from accel import api
    from accel.cli.output import as_csv, print_notes
    from accel.files import write_text

    with _progress(format) as progress:
        how: dict[str, Any] = {"runtime": runtime, "device": device, "trusted": trusted, "plot": plot, "progress": progress}
        found = api.predict(bundle, images, top_k, **how, each=_tell_line if format is Format.json else _tell_problem)
    if export_csv is not None:
        write_text(export_csv, as_csv(found.rows(), COLUMNS))
    _print(found, format)
    print_notes(found.notes)
    if found.problem is not None:
        raise found.problem


def _progress(format: Format) -> AbstractContextManager[Progress]:
    from accel.cli.progress import drawn
    from accel.progress import silent

    # While bars are drawn, what is printed on stdout goes where they go: to stderr.
    return contextlib.nullcontext(silent) if format is Format.json else drawn()


def _tell_problem(picture: Prediction) -> None:
    if picture.error is not None:
        print(f"accel: {picture.error}", file=sys.stderr)


def _tell_line(picture: Prediction) -> None:
    _tell_problem(picture)
    print(json.dumps(picture.to_dict()), flush=True)


def _print(found: Predicted, format: Format) -> None:
    """A row a picture and a column a rank for who reads; a row a class in CSV. JSON was printed as it came."""
    from accel.cli.output import print_rows

    if format is Format.csv:
        print_rows(found.rows(), COLUMNS, format)
    elif format is not Format.json:
        ranks = [str(rank) for rank in range(1, 1 + max(1, *(len(picture.top) for picture in found.pictures)))]
        print_rows([_across(picture) for picture in found.pictures], ["file", *ranks], format)


def _across(picture: Prediction) -> dict[str, str]:
    if picture.error is not None:
        return {"file": picture.shown, "1": "not read"}
    ranked = {str(rank): f"{guess.label} {100 * guess.probability:.2f} %" for rank, guess in enumerate(picture.top, start=1)}
    return {"file": picture.shown, **ranked}
