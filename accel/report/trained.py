"""What trainings on disk say of themselves: the folders that `accel train` writes, with or without their weights."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accel import packed
from accel.checkpoint import exported_sha256
from accel.errors import CorruptArtifact, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


APART = ("seed", "split", "train_fraction", "teacher")
"""What runs of one recipe may differ in."""


@dataclasses.dataclass(frozen=True)
class Training:
    """One finished training.

    Attributes:
        name: of its folder.
        split: `full`, or `45k/5k` where the test set was left alone.
        fraction: of every class that was learned from.
        top1: of the stored weights on the whole test set, in percent; None for a split. val_top1: on the held-out images, else None.
        train_s: of the epochs, without compilation and evaluation.
        device: the GPU's name, or `cpu`.
        peak_mib: of GPU memory; None on a CPU, and where nobody recorded it.
        exported_sha256: `weights_sha256` of result rows of this model; None without a record and without weights.
        teachers: what it was distilled from, by name and hash.
        recipe: its other values, sorted by their names.
    """

    name: str
    model: str
    seed: int
    split: str
    fraction: float
    epochs: int
    top1: float | None
    val_top1: float | None
    train_s: float
    device: str
    peak_mib: float | None
    exported_sha256: str | None
    teachers: tuple[str, ...]
    recipe: tuple[tuple[str, Any], ...]

    def alike(self, other: Training) -> bool:
        """Whether both followed one recipe on one kind of GPU: `same_recipe`, and the same `device`."""
        return self.device == other.device and self.same_recipe(other)

    def same_recipe(self, other: Training) -> bool:
        """Whether both followed one recipe, but for seed, split, share of the images and which teachers there were.

        A value that one of them does not have is newer than it, and says nothing.
        """
        ours, theirs = dict(self.recipe), dict(other.recipe)
        return bool(self.teachers) == bool(other.teachers) and all(ours[key] == theirs[key] for key in ours.keys() & theirs.keys())

    @property
    def tested(self) -> bool:
        """Whether it learned from the train set and was measured on the test set."""
        return self.split == "full" and self.top1 is not None


def find(paths: Sequence[Path]) -> list[Training]:
    """The trainings at `paths`: their folders, or folders of such; trials of a few images (`limit`) are left out, and copies of a run.

    Raises:
        UsageError: a path holds none. CorruptArtifact: a file of one is damaged.
    """
    found: dict[Any, Training] = {}
    for path in paths:
        folders = [path] if (path / "run.json").is_file() else sorted(item.parent for item in path.glob("*/run.json"))
        if not folders:
            raise UsageError(
                f"{path} holds no training: no run.json in it", remedy="name a folder that `accel train` wrote, or one of such"
            )
        for folder in folders:
            training = _read(folder)
            if training is not None:
                # The name apart, what is the same in every number is the same run.
                found.setdefault(dataclasses.replace(training, name=""), training)
    return list(found.values())


def _read(folder: Path) -> Training | None:
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        recipe = tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))
        if recipe.get("limit"):
            return None
        return Training(
            name=folder.name,
            model=recipe["model"],
            seed=recipe["seed"],
            split=recipe["split"],
            fraction=float(recipe.get("train_fraction", 1.0)),
            epochs=recipe["epochs"],
            top1=run["top1"],
            val_top1=float(run["val_top1"]) if run["val_top1"] is not None else None,
            train_s=float(run["train_s"]),
            device=run["device"],
            peak_mib=run.get("peak_mib"),
            exported_sha256=run.get("exported_sha256") or _of_weights(folder),
            recipe=tuple(sorted((key, value) for key, value in recipe.items() if key not in APART)),
            teachers=tuple(f"{teacher['name']} {teacher['sha256'][:8]}" for teacher in run.get("teachers", ())),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"the training {folder} cannot be read ({error!r})"
        raise CorruptArtifact(what, remedy="restore its run.json and recipe.toml, or leave it out") from error


def _of_weights(folder: Path) -> str | None:
    """For runs that are older than the record of it."""
    from safetensors.numpy import load

    weights = packed.read(folder)
    return exported_sha256(load(weights)) if weights is not None else None
