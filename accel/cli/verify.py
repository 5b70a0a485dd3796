"""`accel verify`"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from accel.cli.options import (
    DEFAULT_MODEL,
    VARIANTS_HELP,
    BatchOption,
    BundleArgument,
    CsvOption,
    DataOption,
    DeviceOption,
    Format,
    FormatOption,
    MaxDropOption,
    MetricOption,
    MinTop1Option,
    TrustedOption,
)

COLUMNS = ("variant", "top1", "top1_reference", "drop", "n_flips", "mcnemar_p", "n_test", "max_rel_err", "verdict", "reason")


def verify(
    bundle: BundleArgument = DEFAULT_MODEL,
    variant: Annotated[list[str] | None, typer.Option("--variant", "--runtime", metavar="V", help=VARIANTS_HELP)] = None,
    data: DataOption = None,
    metric: MetricOption = "top1",
    max_drop: MaxDropOption = None,
    min_top1: MinTop1Option = None,
    batch: BatchOption = 1,
    device: DeviceOption = None,
    trusted: TrustedOption = False,
    force: Annotated[bool, typer.Option("--force", help="Run again what is known of the same bytes.")] = False,
    format: FormatOption = Format.table,
    export_csv: CsvOption = None,
) -> None:
    """Hold every variant against the FP32 reference on all test images."""
    from accel import api
    from accel.cli.output import print_rows
    from accel.cli.progress import drawn

    gates: dict[str, Any] = {"data": data, "metric": metric, "max_drop": max_drop, "min_top1": min_top1}
    with drawn() as progress:
        found = api.verify(bundle, variant or "all", **gates, batch=batch, device=device, trusted=trusted, force=force, progress=progress)
    print_rows(found.rows, COLUMNS, format, export_csv)
    if found.problem is not None:
        raise found.problem
