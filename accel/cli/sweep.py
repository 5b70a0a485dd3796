"""`accel sweep`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from accel.cli.options import CsvOption, DeviceOption, Format, FormatOption


def sweep(
    model: Annotated[str, typer.Argument(metavar="NAME[,NAME]", help="A model of accel train; of several the best is searched too.")],
    trials: Annotated[int, typer.Option(min=1, help="How many trials the study shall have, of all workers together.")] = 20,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="A database for many machines, or a journal file; default runs/sweeps/STUDY.")
    ] = None,
    study: Annotated[str | None, typer.Option(metavar="STUDY", help="Its name; default that of the model.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study, alone or with others.")] = False,
    take_over: Annotated[bool, typer.Option("--take-over", help="Try again what workers of other hosts were at.")] = False,
    min_top1: Annotated[float | None, typer.Option(metavar="PERCENT", help="Least top-1 on the held-out images.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of every trial; default: searched, half of the recipe's to all.")] = None,
    space: Annotated[Path | None, typer.Option(metavar="FILE", help="TOML that changes what is searched, as [lr] low, high, log.")] = None,
    sampler: Annotated[str, typer.Option(help="tpe or nsga2.")] = "tpe",
    runtime: Annotated[str | None, typer.Option(metavar="V", help="The variant that is timed; eager:fp32, on a GPU +graph.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Fresh processes that time a trial.")] = 1,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE", help="A recipe.toml that changes what the trials share.")] = None,
    dataset: Annotated[str | None, typer.Option(metavar="NAME", help="cifar10, cifar100 or imagefolder:DIR.")] = None,
    image_size: Annotated[int | None, typer.Option(metavar="SIDE", help="Fit the images of an imagefolder into SIDE pixels.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Use the first N train images only; 0 for all.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the sampler and of every training.")] = None,
    device: DeviceOption = None,
    plot: Annotated[Path | None, typer.Option(metavar="F", help="Draw accuracy over latency: .svg, .png or .pdf.")] = None,
    format: FormatOption = Format.table,
    export_csv: CsvOption = None,
) -> None:
    """Search settings of a training by top-1 on held-out images and measured latency."""
    from accel import api
    from accel.cli.output import print_rows
    from accel.cli.progress import drawn

    shared = {"dataset": dataset, "image_size": image_size, "batch_size": batch_size, "limit": limit}
    manner: dict[str, Any] = {"trials": trials, "min_top1": min_top1, "epochs": epochs, "space": space, "sampler": sampler}
    manner |= {"runtime": runtime, "rounds": rounds, "recipe": recipe, "overrides": shared, "seed": seed}
    where: dict[str, Any] = {"storage": storage, "study_name": study, "resume": resume, "take_over": take_over}
    where |= {"device": device, "plot": plot}
    with drawn() as progress:
        done = api.sweep(model, **manner, **where, progress=progress)
    print_rows(done.rows, done.columns, format, export_csv)
    if done.problem is not None:
        raise done.problem
