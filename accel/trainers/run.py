"""One training run, from the dataset to the checkpoint folder."""

from __future__ import annotations

import copy
import csv
import importlib
import io
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accel.checkpoint import exported_sha256, write_checkpoint
from accel.errors import ConfigError, MissingError, UsageError
from accel.files import disk_errors, write_text
from accel.optional import require, version_of
from accel.progress import Progress, silent
from accel.tracking import UNTRACKED, Tracker
from accel.trainers import affine, augment, backend, snapshot
from accel.trainers.data import measurable, open_data, source
from accel.trainers.distill import open_teachers
from accel.trainers.evaluate import top1
from accel.trainers.golden import OWN_FILE, write_chosen
from accel.trainers.loop import fit
from accel.trainers.objective import autocast_dtype
from accel.trainers.ranks import ALONE, Ranks
from accel.trainers.recipe import Recipe, write_recipe
from accel.trainers.subset import split
from accel.trainers.tracking import artifacts, outcome, parameters
from accel.types import Array, Checkpoint, TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from accel.trainers.views import Colours

logger = logging.getLogger(__name__)

FIRST_IMAGES = 5000
"""Train images, at most, that first weights may depend on."""

COLUMNS = ("epoch", "lr", "train_loss", "train_top1", "val_top1", "test_top1", "images_per_s", "epoch_s", "data_wait_s")
"""Of log.csv and log.jsonl. val_top1 is the average's on the held-out images; test_top1 is filled in the last row only, before rounding.

data_wait_s is the part of epoch_s in which the process (of several, the first) waited for images to be read.
"""

PARTIAL = {"log.csv": "log.partial.csv", "log.jsonl": "log.partial.jsonl"}
"""The logs, and what they are called until the run has succeeded."""


def run(
    recipe: Recipe,
    *,
    factory: str,
    out: Path,
    device: str,
    ranks: Ranks = ALONE,
    resumed: dict[str, Any] | None = None,
    notes: Sequence[str] = (),
    tracker: Tracker = UNTRACKED,
    progress: Progress,
) -> Checkpoint | None:
    """Train by `recipe` and write `out`; see `accel.trainers.train`.

    Args:
        ranks: those who train together; the first writes, and the others return None.
        resumed: what `snapshot.read` found in `out`.
        notes: what of the recipe is not as its author wrote it, for run.json.
        tracker: opened; told of the run by the first of the ranks, but not of its failure.
    """
    torch = require("torch", extra="train")
    target = backend.resolve(device, recipe)
    if target.type == "cuda":
        torch.cuda.reset_peak_memory_stats(target)
    try:
        with backend.deterministic(recipe.deterministic):
            return _run(recipe, factory, out, target, ranks, resumed, notes, tracker, progress if ranks.leads else silent)
    except (KeyboardInterrupt, SystemExit):
        if ranks.leads:
            state = out / snapshot.STATE_FILE
            kept = f"--resume goes on from the last whole epoch in {state}" if state.is_file() else "no epoch was over"
            logger.warning("the training was stopped: %s", kept)
        raise
    except (RuntimeError, MemoryError) as error:
        if not backend.out_of_memory(error):
            raise
        raise MissingError(
            f"{target} ran out of memory training {recipe.model} with batch_size = {recipe.batch_size}",
            remedy=f"--batch-size {max(recipe.batch_size // 2, 1)}",
        ) from error


def _run(
    recipe: Recipe,
    factory: str,
    out: Path,
    target: torch.device,
    ranks: Ranks,
    resumed: dict[str, Any] | None,
    notes: Sequence[str],
    tracker: Tracker,
    progress: Progress,
) -> Checkpoint | None:
    import torch

    data = open_data(recipe)
    prepare, classes = data.preprocess, len(data.classes)
    learned, held = split(data.train.labels, recipe, sorted_by_class=data.sorted_by_class)
    if len(learned) < recipe.batch_size:
        raise ConfigError(
            f"batch_size = {recipe.batch_size} is more than the {len(learned)} images to learn from", remedy="lower --batch-size"
        )
    if ranks.count > 1 and recipe.whitening_epochs:
        # DistributedDataParallel waits for the gradient of everything that had one at first.
        raise ConfigError(
            f"whitening_epochs = {recipe.whitening_epochs} ends a parameter's learning within the run; {ranks.count} processes cannot",
            remedy=f"train {recipe.model} in one process",
        )
    if ranks.leads:
        demand_folder(out)
    log = Log(out, [] if resumed is None else resumed["rows"])
    state_file = out / snapshot.STATE_FILE
    if resumed is None and state_file.is_file():
        logger.warning("%s, the state of an unfinished run, will be replaced; --resume would have gone on with it", state_file)
    elif resumed is None and (out / "checkpoint.json").is_file():
        logger.warning("the checkpoint in %s will be replaced when this run ends; --out names another folder", out)
    torch.manual_seed(recipe.seed)
    module = build(factory, classes).to(target)
    initialise(factory, module, lambda: torch.from_numpy(data.train.read(learned[:FIRST_IMAGES])).to(target), data.colours)
    if recipe.channels_last:
        module = module.to(memory_format=torch.channels_last)
    few = augment.normalise(torch.from_numpy(data.train.read(learned[:4])).to(target), *data.colours, torch.float32)
    demand_size(module, few, recipe)
    if recipe.upscale:
        affine.demand_enlarging(module, recipe.upscale, few)
    views = source(data, learned, recipe, target, autocast_dtype(recipe), ranks)
    teachers = open_teachers(recipe, prepare.to_dict(), data.classes, target)
    of_teachers = [teacher.module for teacher in teachers]
    if not ranks.leads:
        fit(module, views, recipe, teachers=of_teachers, ranks=ranks, resumed=resumed)
        return None

    sources = {
        "dataset": data.train.hashed(),
        "teachers": [teacher.checkpoint.sha256 for teacher in teachers],
        "number of processes": ranks.count,
    }
    if resumed is not None:
        snapshot.demand_same(resumed, sources, state_file)
    name_of_device = torch.cuda.get_device_name(target) if target.type == "cuda" else "cpu"
    described = parameters(recipe, device=name_of_device, ranks=ranks, learned=len(learned))
    tracker.start(out.name, described, log.rows, resumed=resumed is not None)

    def on_epoch(row: dict[str, Any]) -> None:
        log.add(row)
        tracker.epoch(log.rows[-1])

    trained = fit(
        module,
        views,
        recipe,
        teachers=of_teachers,
        held_out=measurable(data.train, held, prepare, recipe, target) if len(held) else None,
        ranks=ranks,
        resumed=resumed,
        on_state=lambda state: snapshot.write(state_file, {**state, "rows": log.rows}, recipe, sources),
        on_compiled=lambda compilation: tracker.note({"compilation": compilation}),
        on_epoch=on_epoch,
        progress=progress,
    )
    peak_mib = round(torch.cuda.max_memory_allocated(target) / 2**20) if target.type == "cuda" else None
    factory, shipped = deployable(factory, trained.module)
    stored = stored_tensors(shipped)
    exact = rounded = None
    if data.test is not None:
        tested = measurable(data.test, np.arange(len(data.test.labels)), prepare, recipe, target)
        exact = top1(trained.module, tested, progress, "test")
        rounded = top1(restored(shipped, stored), tested, progress, "test as stored")

    log.finish(test_top1=exact)
    write_recipe(recipe, out / "recipe.toml")
    facts = {
        "top1": rounded,
        "top1_unrounded": exact,
        "val_top1": log.rows[-1]["val_top1"],
        "train_s": round(trained.train_s, 2),
        "peak_mib": peak_mib,
        "teachers": [teacher.to_dict() for teacher in teachers],
        "compilation": trained.compilation,
        "device": name_of_device,
        "processes": ranks.count,
        "notes": list(notes),
        "versions": {name: version_of(name) for name in ("torch", "torchvision", "numpy")},
        "dataset_sha256": sources["dataset"],
        "exported_sha256": exported_sha256(stored),
    }
    write_text(out / "run.json", json.dumps(facts, indent=2) + "\n")
    if data.own:
        write_chosen(data.train.read, data.train.labels, classes, out / OWN_FILE)
    checkpoint = Checkpoint(
        path=out,
        sha256="",
        name=recipe.model,
        factory=factory,
        num_classes=classes,
        factory_args={"num_classes": classes},
        input=TensorSpec("input", ("batch", 3, prepare.height, prepare.width), "float32", "NCHW"),
        output=TensorSpec("logits", ("batch", classes), "float32", "NC"),
        dataset=data.source,
        preprocess=prepare.to_dict(),
        labels=data.classes,
        top1=rounded,
        recipe=recipe.to_dict(),
        seed=recipe.seed,
    )
    written = write_checkpoint(checkpoint, stored)
    state_file.unlink(missing_ok=True)
    tracker.finish(*outcome(facts), artifacts(out))
    return written


def demand_folder(out: Path) -> None:
    """Make the folder of the run, before an epoch is spent on what could not be kept.

    Raises:
        UsageError: it cannot be made or written to. DiskFull: no space is left.
    """
    try:
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        why = None if os.access(out, os.W_OK) else "it may not be written to"
    except OSError as error:
        why = error.strerror
    if why is not None:
        raise UsageError(f"{out} cannot be the folder of a run: {why}", remedy="name another with --out")


def demand_size(module: nn.Module, images: Tensor, recipe: Recipe) -> None:
    """Refuse a model that does not take images of the size of the float32 N×H×W×3 `images`.

    Raises:
        ConfigError: names the size.
    """
    import torch

    if not recipe.image_size:
        return  # every model takes the size of the datasets of the cache
    module.eval()
    try:
        with torch.inference_mode():
            module(images.permute(0, 3, 1, 2))
    except RuntimeError as error:
        if backend.out_of_memory(error):
            raise
        raise ConfigError(
            f"{recipe.model} does not take images of {images.shape[1]}×{images.shape[2]}: {str(error).splitlines()[0]}",
            remedy="choose another --image-size, or another model",
        ) from error
    module.train()


def build(factory: str, num_classes: int) -> nn.Module:
    """Call the factory that `package.module:callable` names."""
    location, _, name = factory.partition(":")
    module: nn.Module = getattr(importlib.import_module(location), name)(num_classes=num_classes)
    return module


def initialise(factory: str, module: nn.Module, images: Callable[[], Tensor], colours: Colours) -> None:
    """Let the first weights follow from train images, if the module's file says how (see `trainers.models`).

    Args:
        images: makes them, uint8 N×H×W×3 on the device of `module`; called only if they are needed.
        colours: mean and standard deviation of their channels, scaled to 0..1.
    """
    import torch

    location, _, _ = factory.partition(":")
    hook = getattr(importlib.import_module(location), "initialise", None)
    if hook is not None:
        hook(module, augment.normalise(images()[:FIRST_IMAGES], *colours, torch.float32).permute(0, 3, 1, 2))


def deployable(factory: str, module: nn.Module) -> tuple[str, nn.Module]:
    """What is stored of a trained module, and the factory of that: itself, unless its file knows another form (see `trainers.models`)."""
    location, _, _ = factory.partition(":")
    deployed = getattr(importlib.import_module(location), "deployed", None)
    return (f"{location}:build_deployed", deployed(module)) if deployed else (factory, module)


def stored_tensors(module: nn.Module) -> dict[str, Array]:
    """What goes on disk: FP16 for tensors of two or more dimensions, FP32 for biases and BatchNorm, no step counters."""
    tensors = {}
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            array = tensor.detach().float().cpu().contiguous().numpy()
            tensors[name] = array.astype(np.float16 if array.ndim >= 2 else np.float32)
    return tensors


def restored(module: nn.Module, tensors: dict[str, Array]) -> nn.Module:
    """A copy of `module` with the stored tensors, back in FP32: what every engine will be made from."""
    import torch

    twin = copy.deepcopy(module)
    twin.load_state_dict({name: torch.from_numpy(array.astype(np.float32)) for name, array in tensors.items()}, strict=True)
    return twin


class Log:
    """log.csv and log.jsonl of `folder`: they grow row by row under provisional names, so that a failed run leaves the old checkpoint's."""

    def __init__(self, folder: Path, rows: list[dict[str, Any]]) -> None:
        self.folder = folder
        self.rows = list(rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append({"test_top1": None, **row})
        with disk_errors(self.folder / PARTIAL["log.csv"]):
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, text in self.texts().items():
                (self.folder / PARTIAL[name]).write_text(text, encoding="utf-8")
        logger.info("%s", ", ".join(f"{key} {shown(value)}" for key, value in self.rows[-1].items() if value is not None))

    def texts(self) -> dict[str, str]:
        """By file: CSV with six digits a number, and an object of JSON an epoch, with all of them."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: shown(row.get(key)) for key in COLUMNS} for row in self.rows)
        lines = (json.dumps({key: row.get(key) for key in COLUMNS}, allow_nan=False) + "\n" for row in self.rows)
        return {"log.csv": stream.getvalue(), "log.jsonl": "".join(lines)}

    def finish(self, *, test_top1: float | None) -> None:
        """Write the last row again with the test result, under the final names."""
        self.rows[-1]["test_top1"] = test_top1
        for name, text in self.texts().items():
            write_text(self.folder / name, text)
        for name in PARTIAL.values():
            (self.folder / name).unlink(missing_ok=True)


def shown(value: Any) -> str:
    """A CSV cell: six significant digits, empty for None."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
