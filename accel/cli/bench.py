"""`accel bench`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from accel.cli.options import (
    DEFAULT_MODEL,
    VARIANTS_HELP,
    BatchOption,
    CsvOption,
    DataOption,
    DeviceOption,
    Format,
    FormatOption,
    MaxDropOption,
    MetricOption,
    MinTop1Option,
    TrackOption,
    TrustedOption,
)

BUNDLES_HELP = "A folder NAME.accel, or the name of a model in the engines folder; several are timed in turns."
ITERATIONS_HELP = "Timed calls a round; 2000, on a CPU 200; auto: 500 to 2000."


def count_or_auto(text: str) -> int | str:
    """A positive number, or `auto`."""
    if text != "auto" and not (text.isdecimal() and int(text)):
        raise typer.BadParameter(f"{text!r} is neither a positive number nor auto")
    return text if text == "auto" else int(text)


def bench(
    bundle: Annotated[list[str] | None, typer.Argument(metavar="BUNDLE", help=BUNDLES_HELP, show_default=DEFAULT_MODEL)] = None,
    runtime: Annotated[list[str] | None, typer.Option("--runtime", "--variant", metavar="V", help=VARIANTS_HELP)] = None,
    warmup: Annotated[int | None, typer.Option(min=0, help="Untimed calls; 200, on a CPU 20.")] = None,
    iterations: Annotated[Any, typer.Option(parser=count_or_auto, metavar="N|auto", help=ITERATIONS_HELP)] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Fresh processes a variant; 3.")] = None,
    max_rounds: Annotated[int | None, typer.Option(min=1, help="At most, where they disagree; 5, on a CPU as --rounds.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Intra-op threads on a CPU.")] = None,
    l2: Annotated[str, typer.Option(metavar="hot|cold", help="Leave the GPU's L2 cache hot, or fill it before every call.")] = "hot",
    idle_ms: Annotated[float | None, typer.Option(metavar="MS", help="Also time calls after a sleep, as --idle-ms 33.")] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Empty compile caches for every run: each build is a cold one.")] = False,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Verify first what is not verified.")] = True,
    baseline: Annotated[bool, typer.Option("--baseline/--no-baseline", help="Run eager:fp32 beside what is named.")] = True,
    aa: Annotated[bool, typer.Option("--aa", help="Run what is named against itself, 20 rounds, for the machine's A/A floor.")] = False,
    data: DataOption = None,
    metric: MetricOption = "top1",
    max_drop: MaxDropOption = None,
    min_top1: MinTop1Option = None,
    batch: BatchOption = 1,
    device: DeviceOption = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the set is written; default results/local/.")] = None,
    trusted: TrustedOption = False,
    track: TrackOption = None,
    format: FormatOption = Format.table,
    export_csv: CsvOption = None,
) -> None:
    """Time every variant at batch 1, beside the accuracy of the same bytes; several bundles side by side."""
    from accel import api
    from accel.cli.output import command_line, print_notes, print_sets
    from accel.cli.progress import drawn

    plan: dict[str, Any] = {"warmup": warmup, "iterations": iterations, "rounds": rounds, "max_rounds": max_rounds}
    plan |= {"threads": threads, "batch": batch, "l2": l2, "idle_ms": idle_ms, "rebuild": rebuild}
    gates: dict[str, Any] = {"verify": verify, "data": data, "metric": metric, "max_drop": max_drop, "min_top1": min_top1}
    where: dict[str, Any] = {"device": device, "out": out, "trusted": trusted, "aa": aa, "track": track, "command": command_line()}
    with drawn() as progress:
        done = api.bench(bundle or DEFAULT_MODEL, runtime or None, baseline=baseline, **plan, **gates, **where, progress=progress)
    print_sets(done.sets, format, export_csv)
    print_notes(done.notes)
    if done.problem is not None:
        raise done.problem
