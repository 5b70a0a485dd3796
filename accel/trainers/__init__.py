"""Train accel's models, and find the ones that it ships trained. torch is imported only inside `train`."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel.checkpoint import read_checkpoint
from accel.errors import BundleMissing, ConfigError, UnknownName
from accel.optional import require
from accel.packed import unpacked
from accel.progress import Progress, silent
from accel.tracking import UNTRACKED, Tracker, followed, terminated_by_exception
from accel.trainers.golden import golden_images, write_golden_samples
from accel.trainers.recipe import Recipe, default_recipe, read_recipe, write_recipe
from accel.types import Checkpoint

if TYPE_CHECKING:
    from accel.trainers.ranks import Ranks

__all__ = [
    "MODELS",
    "Recipe",
    "default_recipe",
    "golden_images",
    "is_shipped",
    "read_recipe",
    "shipped",
    "train",
    "with_weights",
    "write_golden_samples",
    "write_recipe",
]

logger = logging.getLogger(__name__)

MODELS = {
    "airbench94": "accel.trainers.models.airbench94:build",
    "alexnet": "accel.trainers.models.alexnet:build",
    "efficientnet_b0": "accel.trainers.models.efficientnet_b0:build",
    "mobilenetv2": "accel.trainers.models.mobilenetv2:build",
    "mobilenetv3_small": "accel.trainers.models.mobilenetv3_small:build",
    "naivenet": "accel.trainers.models.naivenet:build",
    "resnet18": "accel.trainers.models.resnet18:build",
    "shufflenetv2_x1": "accel.trainers.models.shufflenetv2_x1:build",
    "student_a": "accel.trainers.models.student_a:build",
    "student_b": "accel.trainers.models.student_b:build",
    "student_c": "accel.trainers.models.student_c:build",
}
"""Model name → factory of the untrained module, called with `num_classes`."""

WEIGHTS = Path(__file__).parent / "weights"


def is_shipped(name: str) -> bool:
    """Whether trained weights of `name` are installed, packed or not."""
    return name in MODELS and (WEIGHTS / name / "checkpoint.json").is_file()


def shipped(name: str) -> Path:
    """The checkpoint folder of a model that accel ships: weights.safetensors, checkpoint.json, recipe.toml, log.csv, run.json.

    Where its weights are installed packed, that is a folder of the cache, made by the first call (`accel.packed`).

    Raises:
        UnknownName: no such model. BundleMissing: it is known, but no trained weights are installed.
        CorruptArtifact, MissingError, DiskFull: its weights cannot be unpacked.
    """
    if name not in MODELS:
        raise UnknownName("model", name, list(MODELS))
    folder = WEIGHTS / name
    if not is_shipped(name):
        raise BundleMissing(f"no trained weights of {name} are installed ({folder} is missing)", remedy=f"accel train {name}")
    return unpacked(folder)


def with_weights() -> list[str]:
    """The models whose trained weights are installed, packed or not, by name.

    Raises:
        BundleMissing: there are none.
    """
    found = [name for name in sorted(MODELS) if is_shipped(name)]
    if not found:
        raise BundleMissing(f"no trained weights are installed ({WEIGHTS} has none)", remedy="install accel-engines again")
    return found


def train(
    name: str,
    *,
    out: Path,
    recipe: Recipe | None = None,
    recipe_file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
    resume: bool = False,
    tracker: Tracker = UNTRACKED,
    progress: Progress = silent,
) -> Checkpoint:
    """Train `name` and write the checkpoint folder `out`, whose checkpoint is touched only once the run has succeeded.

    In a process that torchrun started, together with the others (`accel.trainers.ranks`); `out` must then be the same folder for all.

    Args:
        name: a key of MODELS.
        out: written: weights.safetensors, checkpoint.json, recipe.toml, log.csv, log.jsonl, run.json.
        recipe: what to run; without it the model's own. Its `amp` is for a GPU: a CPU trains in FP32 unless one of the next two names it.
        recipe_file: TOML whose keys replace those of the recipe.
        overrides: field of Recipe → value, applied last; None means "not given".
        device: `auto` (the first GPU, else the CPU), `cpu` or `cuda:N`; of several processes `auto`, `cpu` or `cuda`.
        resume: go on with the unfinished run in `out`, by its own recipe, from its last whole epoch (`state.pt`); on a CPU the result is
            that of an uninterrupted run bit for bit. `recipe` is ignored, and other values of `recipe_file` and `overrides` are refused.
        tracker: follows the run (`accel.tracking`); of several processes the first alone tells it.
        progress: called with the step's name, steps done and steps in all.

    Returns:
        The checkpoint; `top1` is that of the stored (FP16-rounded) weights, run in FP32 over the whole test set, in percent.
        It is None for the split `45k/5k`, which leaves the test set alone.

    Raises:
        UnknownName, ConfigError, DatasetMissing, DeviceUnavailable, MissingExtra; MissingError if memory runs out, or if there is
        nothing to resume; CorruptArtifact, IncompatibleArtifact: what is to be resumed is damaged or learned from other data; DiskFull;
        AccelError if the loss stops being finite. SystemExit (143): the process got SIGTERM. Whatever ends a run, the state of its
        last whole epoch stays.
    """
    from accel.trainers import backend, snapshot
    from accel.trainers.ranks import joined
    from accel.trainers.run import run

    if name not in MODELS:
        raise UnknownName("model", name, list(MODELS))
    require("torch", extra="train")

    def completed(base: Recipe) -> Recipe:
        chosen = base if recipe_file is None else read_recipe(recipe_file, base=base)
        return chosen.replaced({"model": name, **(overrides or {})})

    with joined(device) as ranks, ended(ranks), followed(tracker if ranks.leads else UNTRACKED):
        own, notes = ranks.device(device), []
        resumed = snapshot.read(out) if resume else None
        if resumed is None:
            base = recipe or default_recipe(name)
            chosen = completed(base)
            in_fp32 = completed(dataclasses.replace(base, amp="off"))
            if in_fp32 != chosen and backend.find(own).type == "cpu":  # then nobody but the base has named an amp
                notes.append(f"amp = {chosen.amp!r} of the recipe is for a GPU; this CPU trained in FP32, because --amp was not given")
                logger.info("the CPU trains in FP32; --amp %s would ask for the autocast that the recipe has for a GPU", chosen.amp)
                chosen = in_fp32
        else:
            chosen = completed(Recipe(**resumed["recipe"]))
            _refuse_changes(Recipe(**resumed["recipe"]), chosen)
        chosen.demand_effect(overrides or {})
        written = run(
            chosen,
            factory=MODELS[name],
            out=out,
            device=own,
            ranks=ranks,
            resumed=resumed,
            notes=notes,
            tracker=tracker if ranks.leads else UNTRACKED,
            progress=progress,
        )
    return written or read_checkpoint(out)


def ended(ranks: Ranks) -> contextlib.AbstractContextManager[None]:
    """Where SIGTERM is heard: in a run of one process. Of several, one may hang in an exchange that no Python would get out of."""
    return terminated_by_exception() if ranks.count == 1 else contextlib.nullcontext()


def _refuse_changes(begun: Recipe, asked: Recipe) -> None:
    for key, value in begun.to_dict().items():
        if getattr(asked, key) != value:
            raise ConfigError(
                f"{key} = {getattr(asked, key)!r} was asked for; the run to resume has {value!r}",
                remedy="leave it out to go on as the run began, or train without --resume",
            )
