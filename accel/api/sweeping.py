"""Search settings of a training by accuracy and measured latency, with any number of workers that share one study."""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accel import device as devices
from accel import locking, trainers
from accel.api import plots
from accel.api.settings import resolve
from accel.api.trial_process import measure_apart
from accel.bench.coordinate import device_lock
from accel.errors import AccelError, AccuracyGate, UnknownName, UsageError
from accel.files import write_text
from accel.progress import Progress, silent
from accel.runtimes import info
from accel.sweeps import rows as shown
from accel.sweeps import space as spaces
from accel.sweeps import store, study
from accel.tracking import without_password
from accel.trainers import Recipe
from accel.types import Variant

logger = logging.getLogger(__name__)

JOURNAL = "journal.log"
ON_GPU, ON_CPU = "eager:fp32+graph", "eager:fp32"
"""What is timed where nothing else is named: the arithmetic in which the accuracy was measured."""


@dataclasses.dataclass(frozen=True)
class Swept:
    """What the study holds when this worker has ended.

    Attributes:
        rows: a trial each (`accel.sweeps.rows`); columns: their names, for a table.
        folder: of this worker's trials.
        problem: what the command ends with: no trial has a result, or none reaches the floor; None if all is well.
    """

    rows: tuple[dict[str, Any], ...]
    columns: tuple[str, ...]
    folder: Path
    problem: AccelError | None


def sweep(
    model: str,
    *,
    trials: int = 20,
    storage: str | None = None,
    study_name: str | None = None,
    resume: bool = False,
    take_over: bool = False,
    min_top1: float | None = None,
    epochs: int | None = None,
    space: Path | str | Mapping[str, Any] | None = None,
    sampler: str = "tpe",
    runtime: str | None = None,
    rounds: int = 1,
    recipe: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    seed: int | None = None,
    device: str | None = None,
    plot: Path | str | None = None,
    objective: study.Objective | None = None,
    progress: Progress = silent,
) -> Swept:
    """Try settings of `model` until the study has `trials` that are finished.

    Each is a process of its own, which trains on 45,000 of CIFAR-10's train images (of other data, nine tenths); its top-1 is that on
    the others, never on the test set. Then the harness of `accel bench` times the trained model at batch 1. Both under one lock for the
    device, for which all sweeps of this user on it wait: beside another process on a GPU nothing can be timed. One worker a GPU is enough.

    Settings of one model differ in accuracy; what their latencies differ by is what one measurement differs from the next by. With
    several models the front says what accuracy costs.

    Args:
        model: a name, or several with commas between, between which is then chosen too.
        storage: a database's URL, by which many machines work together, or a journal file; None is one beside the trials.
        study_name: None is the name of the model.
        resume: go on with the study if it exists; without this one that exists is refused.
        take_over: count the running trials of hosts that cannot be asked as lost.
        min_top1: the least accuracy in percent, on the held-out images; what is below is no part of the front.
        epochs: of every trial; None searches them between half of the recipe's and all.
        space: a TOML file (`accel.sweeps.space`) that changes what is searched, or what it would hold.
        sampler: `tpe` or `nsga2`.
        runtime: the variant that is timed; None is `eager:fp32`, on a GPU in a CUDA graph.
        rounds: fresh processes that time it.
        recipe, overrides: of every trial, as `accel.train` takes them.
        plot: an .svg, .png or .pdf file for the front.
        objective: what a setting is worth, instead of all this.

    Raises:
        UsageError, UnknownName, ConfigError: nothing was tried. MissingError: the storage, a package, the data or the device is missing.
        AccelError: an error that every trial has. KeyboardInterrupt: what is finished is kept, and the study can be resumed.
    """
    if trials < 1:
        raise UsageError(f"{trials} trials were asked for", remedy="--trials 1 or more")
    figure = None if plot is None else plots.file(plot)
    settings = resolve({"device": device, "seed": seed})
    models = tuple(dict.fromkeys(model.split(",")))
    for name in models:
        if name not in trainers.MODELS:
            raise UnknownName("model", name, list(trainers.MODELS))
    chosen = devices.parse(settings["device"])
    variant = Variant.parse(runtime or (ON_CPU if chosen == "cpu" else ON_GPU))
    info(variant.runtime)
    fixed = {**(overrides or {}), "epochs": epochs, "split": "45k/5k", "seed": settings["seed"]}
    recipes = {name: base_recipe(name, recipe, fixed, chosen) for name in models}
    changes = spaces.read_space(Path(space).expanduser()) if isinstance(space, str | Path) else dict(space or {})
    if epochs is not None:
        changes = {**changes, "epochs": False}
    searched = {name: searched_of(name, one, changes, models) for name, one in recipes.items()}
    study_name = study_name or "-".join(models)
    folder = Path(settings["runs_dir"]).expanduser() / "sweeps" / study_name
    place = storage or str(folder / JOURNAL)
    about = {
        "models": list(models),
        "recipes": {name: one.to_dict() for name, one in recipes.items()},
        "space": {name: {field: one.to_dict() for field, one in found.items()} for name, found in searched.items()},
        "min_top1": min_top1,
        "timed": f"{variant} at batch 1, {rounds} round{'s' if rounds > 1 else ''}",
        "device": devices.name(chosen),
    }
    about = json.loads(json.dumps(about))  # as the storage gives it back
    opened, new = store.open_study(store.open_storage(place), study_name, resume=resume, place=place, about=about)
    logger.info("the study %s in %s is %s", study_name, without_password(place), "new" if new else "gone on with")
    job = Trials(recipes, variant, rounds, chosen, folder, progress)
    try:
        study.work(
            opened,
            searched,
            objective or job.measure,
            trials=trials,
            min_top1=min_top1,
            seed=settings["seed"],
            sampler=sampler,
            take_over=take_over,
            progress=progress,
        )
    finally:
        found = shown.rows(opened)
        if figure is not None:
            from accel.report.pareto import draw

            title = f"{study_name}: {sum(row['top1'] is not None for row in found)} trials on {about['device']}"
            draw(figure, found, title=title, latency=f"host p50 of {variant} at batch 1, µs", floor=min_top1)
    return Swept(tuple(found), tuple(shown.columns(found)), folder, problem_of(found, min_top1))


def base_recipe(model: str, file: Path | str | None, fixed: Mapping[str, Any], device: str) -> Recipe:
    """What all trials of a model have in common; on a CPU in FP32, as `accel.train` has it."""
    base = trainers.default_recipe(model)
    if device == "cpu":
        base = base.replaced({"amp": "off"})
    found = base if file is None else trainers.read_recipe(Path(file).expanduser(), base=base)
    return found.replaced({"model": model, **fixed}, "the options of the sweep")


def searched_of(model: str, recipe: Recipe, changes: Mapping[str, Any], models: Sequence[str]) -> spaces.Space:
    own = changes.get(model)
    for field in ("model", "dataset", "split", "seed"):
        if field in changes or (isinstance(own, Mapping) and field in own):
            raise UsageError(f"the space has {field}, which is the same in all trials of a sweep", remedy="leave it out of the --space")

    def check(field: str, value: Any) -> Any:
        return getattr(recipe.replaced({field: value}, "the space"), field)

    return spaces.of_model(model, recipe.to_dict(), changes, models=tuple(trainers.MODELS), check=check)


def problem_of(found: Sequence[Mapping[str, Any]], min_top1: float | None) -> AccelError | None:
    best = max((row["top1"] for row in found if row["top1"] is not None), default=None)
    if best is None:
        reason = next((row["reason"] for row in found if row["reason"]), "none was begun")
        return AccelError(f"no trial has a result: {reason}", remedy="mend that, or change the --space")
    if min_top1 is not None and best < min_top1:
        return AccuracyGate(
            f"no trial reaches {min_top1:g} % top-1; the best has {best:.2f} %", remedy="more --trials, or a lower --min-top1"
        )
    return None


@dataclasses.dataclass(frozen=True)
class Trials:
    """What a trial of this worker is."""

    recipes: Mapping[str, Recipe]
    variant: Variant
    rounds: int
    device: str
    folder: Path
    progress: Progress

    def measure(self, model: str, values: Mapping[str, Any], number: int) -> study.Outcome:
        """Train, export, time; raises AccelError."""
        recipe = self.recipes[model].replaced(values, f"trial {number}")
        out = self.folder / f"trial-{number:04}"

        def told(step: str, done: float, total: float | None = None) -> None:
            self.progress(f"trial {number}: {step}", done, total)

        lock = device_lock(self.device)
        with locking.held(lock.with_name(f"sweep-{lock.name}"), f"a trial of a sweep on {self.device}"):
            top1, p50_us = measure_apart(model, recipe.to_dict(), out, self.device, str(self.variant), self.rounds, told)
        write_text(out / "trial.json", json.dumps({"top1": top1, "p50_us": p50_us, **values}, indent=2) + "\n")
        return study.Outcome(top1, p50_us, {"folder": f"{platform.node()}:{out.resolve()}"})
