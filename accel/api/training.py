"""Train a shipped model from the settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accel import config, trainers
from accel.api import tracking
from accel.api.settings import resolve
from accel.progress import Progress, silent
from accel.trainers.ranks import from_environment
from accel.types import Checkpoint


def train(
    model: str = "resnet18",
    *,
    out: Path | str | None = None,
    recipe: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    device: str | None = None,
    resume: bool = False,
    track: str | None = None,
    progress: Progress = silent,
) -> Checkpoint:
    """Train `model` on its dataset's train set; in a process that torchrun started, together with the others.

    Args:
        out: the checkpoint folder; None is `runs_dir`/NAME.
        recipe: a TOML file whose keys replace those of the shipped recipe.
        overrides: field of `accel.trainers.Recipe` → value, the last word; None means "not given". The settings under `train.` replace
            the shipped recipe's values, and are replaced by those of `recipe`.
        resume: go on with the unfinished run in `out`, by its own recipe; see `accel.trainers.train`.
        track: `mlflow` logs the run there as well (`accel.api.tracking`); None takes the setting.

    Raises:
        UnknownName, ConfigError, DatasetMissing, DeviceUnavailable, MissingExtra, MissingError, DiskFull, ArtifactError.
    """
    flags = {key: value for key, value in (overrides or {}).items() if value is not None}
    typed = {("seed" if key == "seed" else f"train.{key}"): value for key, value in flags.items()}
    settings = resolve({"device": device, "track.to": track, **{key: value for key, value in typed.items() if key in config.BY_KEY}})
    standing = settings.table("train")
    if settings.source("seed") != "default":
        standing["seed"] = settings["seed"]
    folder = Path(out) if out is not None else Path(settings["runs_dir"]) / model
    checkpoint = trainers.train(
        model,
        out=folder,
        recipe=trainers.default_recipe(model).replaced(standing, "the settings"),
        recipe_file=None if recipe is None else Path(recipe).expanduser(),
        overrides=flags,
        device=settings["device"],
        resume=resume,
        tracker=tracking.tracker(settings, "train", folder=folder, tags={"accel.model": model}),
        progress=progress,
    )
    if from_environment().leads:
        settings.save(folder)
    return checkpoint
