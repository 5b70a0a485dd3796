"""`accel compare`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from accel.cli.options import CsvOption, Format, FormatOption

COLUMNS = (
    *("model", "variant", "against", "precisions", "rounds", "p50_us", "against_p50_us", "ratio", "ratio_lo", "ratio_hi"),
    *("p_holm", "floor_pct", "verdict", "flags"),
)

FAIL_IF_HELP = "Exit 3 if this holds: 'p50>+5%', 'p95>+20us', 'p50>500us', 'top1<-0.1'; may be repeated."


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="results.jsonl, or the folder of a set.")],
    b: Annotated[Path | None, typer.Argument(metavar="B", help="Compared with A; without it, the variants of A with a baseline.")] = None,
    fail_if: Annotated[list[str] | None, typer.Option("--fail-if", metavar="LIMIT", help=FAIL_IF_HELP)] = None,
    kind: Annotated[str, typer.Option("--kind", metavar="KIND", help="host_us, device_us, span_us or e2e_us.")] = "host_us",
    baseline: Annotated[str | None, typer.Option("--baseline", metavar="V", help="Within one set; eager:fp32.")] = None,
    across_machines: Annotated[bool, typer.Option("--across-machines", help="Compare what was not measured in one place.")] = False,
    aa: Annotated[Path | None, typer.Option("--aa", metavar="FILE", help="What `accel bench --aa` wrote: what chance alone does.")] = None,
    format: FormatOption = Format.table,
    export_csv: CsvOption = None,
) -> None:
    """Say which variant is faster, paired over rounds, with intervals; fail a CI on --fail-if."""
    from accel import api
    from accel.cli.output import print_notes, print_rows

    found = api.compare(a, b, fail_if=fail_if or (), kind=kind, baseline=baseline, across_machines=across_machines, aa=aa)
    print_rows(found.rows, COLUMNS, format, export_csv)
    print_notes(found.notes)
    if found.problem is not None:
        raise found.problem
