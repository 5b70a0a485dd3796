"""`accel tune`, and `accel export --to best`"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from accel.cli.bench import ITERATIONS_HELP, count_or_auto
from accel.cli.options import (
    DEFAULT_MODEL,
    CsvOption,
    DataOption,
    DeviceOption,
    Format,
    FormatOption,
    MaxDropOption,
    MetricOption,
    MinTop1Option,
    ModelArgument,
    TrustedOption,
)

COLUMNS = ("step", "variant", "top-1 %", "flips", "host p50 µs", "against the best so far", "verdict", "decision", "why")
BudgetOption = Annotated[
    str | None, typer.Option("--budget", metavar="TIME", help="As 90s, 10m, 1h: nothing begins that would not fit; default no limit.")
]


def tune(
    model: ModelArgument = DEFAULT_MODEL,
    max_drop: MaxDropOption = None,
    budget: BudgetOption = None,
    min_top1: MinTop1Option = None,
    data: DataOption = None,
    metric: MetricOption = "top1",
    warmup: Annotated[int | None, typer.Option(min=0, help="Untimed calls; 200, on a CPU 20.")] = None,
    iterations: Annotated[Any, typer.Option(parser=count_or_auto, metavar="N|auto", help=ITERATIONS_HELP)] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Fresh processes a variant; 3. With 1 nothing is decided.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Intra-op threads on a CPU, of every candidate.")] = None,
    device: DeviceOption = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the sets are written; default results/local/tune/.")] = None,
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="Of a factory: its .safetensors.")] = None,
    input: Annotated[str | None, typer.Option(metavar="SHAPE", help="Of a factory: its input, as 1x3x224x224.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the bundle; default the model's.")] = None,
    trusted: TrustedOption = False,
    format: FormatOption = Format.table,
    export_csv: CsvOption = None,
) -> None:
    """Find the fastest engine on this machine that is right: try, verify, time, keep what is FASTER."""
    how: dict[str, Any] = {"warmup": warmup, "iterations": iterations, "rounds": rounds, "threads": threads, "metric": metric}
    gates: dict[str, Any] = {"max_drop": max_drop, "min_top1": min_top1, "data": data, "budget": budget}
    where: dict[str, Any] = {"device": device, "out": out, "weights": weights, "input": input, "name": name, "trusted": trusted}
    run(model, format, export_csv, **how, **gates, **where)


def run(model: str, format: Format, csv_file: Path | None, **given: Any) -> None:
    """Tune and print: the table with the summary as its last line, or data alone on stdout with the summary on stderr."""
    from accel import api
    from accel.cli.output import as_csv, command_line, print_notes, print_rows
    from accel.cli.progress import drawn
    from accel.files import write_text

    with drawn() as progress:
        done = api.tune(model, **given, command=command_line(), progress=progress)
    if format in (Format.table, Format.markdown):
        print_rows([_shown(row) for row in done.rows], COLUMNS, format)
        print(f"\n{done.summary}")
    else:
        print_rows(done.rows, list(done.rows[0]), format)
        print_notes([done.summary])
    if csv_file is not None:
        write_text(csv_file, as_csv(done.rows, list(done.rows[0])))
    if done.problem is not None:
        raise done.problem


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    mend = f"; to mend it: {row['remedy']}" if row["remedy"] else ""
    top1 = None if row["top1"] is None else f"{row['top1']:.2f}"
    cells = (
        row["step"],
        row["variant"],
        top1,
        row["n_flips"],
        row["p50_us"],
        _ratio(row),
        row["verdict"],
        row["decision"],
        row["why"] + mend,
    )
    return dict(zip(COLUMNS, cells, strict=True))


def _ratio(row: Mapping[str, Any]) -> str | None:
    """`0.512 (0.501 to 0.523) of eager:fp32`."""
    if row["ratio"] is None:
        return None
    wide = "" if row["ratio_lo"] is None else f" ({row['ratio_lo']:.3f} to {row['ratio_hi']:.3f})"
    return f"{row['ratio']:.3f}{wide} of {row['against']}"
