"""One training run, from the dataset to the checkpoint folder."""

from __future__ import annotations

import copy
import csv
import importlib
import io
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accel import datasets, preprocess
from accel.checkpoint import exported_sha256, write_checkpoint
from accel.errors import ConfigError, MissingError, UnknownName
from accel.files import disk_errors, write_text
from accel.optional import require, version_of
from accel.progress import Progress
from accel.trainers import affine, augment, backend, snapshot
from accel.trainers.distill import open_teachers
from accel.trainers.evaluate import top1
from accel.trainers.loop import fit
from accel.trainers.objective import autocast_dtype
from accel.trainers.recipe import Recipe, write_recipe
from accel.trainers.subset import split
from accel.trainers.views import Views
from accel.types import Array, Checkpoint, TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

PREPROCESS = {"cifar10": preprocess.CIFAR10, "cifar100": preprocess.CIFAR100}
"""Dataset → what the checkpoint asks of its images."""

COLUMNS = ("epoch", "lr", "train_loss", "train_top1", "val_top1", "test_top1", "images_per_s", "epoch_s")
"""Of log.csv. val_top1 is the average's on the held-out images; test_top1 is filled in the last row only, before rounding."""


def run(recipe: Recipe, *, factory: str, out: Path, device: str, resumed: dict[str, Any] | None = None, progress: Progress) -> Checkpoint:
    """Train by `recipe` and write `out`; see `accel.trainers.train`. `resumed` is what `snapshot.read` found there."""
    torch = require("torch", extra="train")
    if recipe.dataset not in PREPROCESS:
        raise UnknownName("dataset to train on", recipe.dataset, list(PREPROCESS))
    target = backend.resolve(device, recipe)
    train_set = datasets.load(recipe.dataset, "train")
    test_set = datasets.load(recipe.dataset, "test") if recipe.split == "full" else None
    learned, held = split(np.asarray(train_set.labels), recipe)
    if len(learned) < recipe.batch_size:
        raise ConfigError(
            f"batch_size = {recipe.batch_size} is more than the {len(learned)} images to learn from", remedy="lower --batch-size"
        )
    log = Log(out / "log.partial.csv", [] if resumed is None else resumed["rows"])
    state_file = out / snapshot.STATE_FILE
    if resumed is None and state_file.is_file():
        logger.warning("%s, the state of an unfinished run, will be replaced; --resume would have gone on with it", state_file)
    try:
        if target.type == "cuda":
            torch.cuda.reset_peak_memory_stats(target)
        torch.manual_seed(recipe.seed)
        module = build(factory, len(train_set.classes)).to(target)
        if recipe.channels_last:
            module = module.to(memory_format=torch.channels_last)
        pixels, labels = on_device(train_set, learned, target)
        teachers = open_teachers(recipe, PREPROCESS[recipe.dataset].to_dict(), tuple(train_set.classes), target)
        if recipe.upscale:
            few = augment.normalise(pixels[:4], *colours(recipe), torch.float32)
            affine.demand_enlarging(module, recipe.upscale, few)
        classes = len(train_set.classes)
        sources = {"dataset": train_set.sha256, "teachers": [teacher.checkpoint.sha256 for teacher in teachers]}
        if resumed is not None:
            snapshot.demand_same(resumed, sources, state_file)
        views = Views(pixels, labels, recipe, colours=colours(recipe), dtype=autocast_dtype(recipe), num_classes=classes)
        held_out = measurable(train_set, held, recipe, target) if len(held) else None
        trained = fit(
            module,
            views,
            recipe,
            teachers=[teacher.module for teacher in teachers],
            held_out=held_out,
            resumed=resumed,
            on_state=lambda state: snapshot.write(state_file, {**state, "rows": log.rows}, recipe, sources),
            on_epoch=log.add,
            progress=progress,
        )
        peak_mib = round(torch.cuda.max_memory_allocated(target) / 2**20) if target.type == "cuda" else None
        factory, shipped = deployable(factory, trained.module)
        stored = stored_tensors(shipped)
        exact = rounded = None
        if test_set is not None:
            inputs, answers = measurable(test_set, np.arange(len(test_set.labels)), recipe, target)
            exact = top1(trained.module, inputs, answers, progress, "test")
            rounded = top1(restored(shipped, stored), inputs, answers, progress, "test as stored")
    except torch.OutOfMemoryError as error:
        raise MissingError(
            f"{target} ran out of memory training {recipe.model} with batch_size = {recipe.batch_size}",
            remedy=f"--batch-size {max(recipe.batch_size // 2, 1)}",
        ) from error

    log.finish(out / "log.csv", test_top1=exact)
    write_recipe(recipe, out / "recipe.toml")
    facts = {
        "top1": rounded,
        "top1_unrounded": exact,
        "val_top1": log.rows[-1]["val_top1"],
        "train_s": round(trained.train_s, 2),
        "peak_mib": peak_mib,
        "teachers": [teacher.to_dict() for teacher in teachers],
        "compilation": trained.compilation,
        "device": torch.cuda.get_device_name(target) if target.type == "cuda" else "cpu",
        "versions": {name: version_of(name) for name in ("torch", "torchvision", "numpy")},
        "dataset_sha256": train_set.sha256,
        "exported_sha256": exported_sha256(stored),
    }
    write_text(out / "run.json", json.dumps(facts, indent=2) + "\n")
    height, width = train_set.images.shape[1:3]
    checkpoint = Checkpoint(
        path=out,
        sha256="",
        name=recipe.model,
        factory=factory,
        num_classes=len(train_set.classes),
        factory_args={"num_classes": len(train_set.classes)},
        input=TensorSpec("input", ("batch", 3, height, width), "float32", "NCHW"),
        output=TensorSpec("logits", ("batch", len(train_set.classes)), "float32", "NC"),
        dataset=recipe.dataset,
        preprocess=PREPROCESS[recipe.dataset].to_dict(),
        labels=tuple(train_set.classes),
        top1=rounded,
        recipe=recipe.to_dict(),
        seed=recipe.seed,
    )
    written = write_checkpoint(checkpoint, stored)
    state_file.unlink(missing_ok=True)
    return written


def build(factory: str, num_classes: int) -> nn.Module:
    """Call the factory that `package.module:callable` names."""
    location, _, name = factory.partition(":")
    module: nn.Module = getattr(importlib.import_module(location), name)(num_classes=num_classes)
    return module


def deployable(factory: str, module: nn.Module) -> tuple[str, nn.Module]:
    """What is stored of a trained module, and the factory of that: itself, unless its file knows another form (see `trainers.models`)."""
    location, _, _ = factory.partition(":")
    deployed = getattr(importlib.import_module(location), "deployed", None)
    return (f"{location}:build_deployed", deployed(module)) if deployed else (factory, module)


def colours(recipe: Recipe) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the recipe's dataset."""
    return PREPROCESS[recipe.dataset].mean, PREPROCESS[recipe.dataset].std


def on_device(dataset: datasets.Dataset, indices: Array, device: torch.device) -> tuple[Tensor, Tensor]:
    """The chosen uint8 N×H×W×3 images and int64 labels."""
    import torch

    images = torch.from_numpy(np.asarray(dataset.images)[indices]).to(device)
    labels = torch.from_numpy(np.asarray(dataset.labels)[indices].astype(np.int64)).to(device)
    return images, labels


def measurable(dataset: datasets.Dataset, indices: Array, recipe: Recipe, device: torch.device) -> tuple[Tensor, Tensor]:
    """The chosen images as float32 N×3×H×W, through the very preprocessing that the checkpoint names, and int64 labels."""
    import torch

    images = PREPROCESS[recipe.dataset](np.asarray(dataset.images)[indices])
    labels = np.asarray(dataset.labels)[indices].astype(np.int64)
    return torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)


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
    """log.csv: grows row by row under a provisional name, so that a failed run leaves both its log and the old checkpoint's."""

    def __init__(self, partial: Path, rows: list[dict[str, Any]]) -> None:
        self.partial = partial
        self.rows = list(rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append({"test_top1": None, **row})
        with disk_errors(self.partial):
            self.partial.parent.mkdir(parents=True, exist_ok=True)
            self.partial.write_text(self.text(), encoding="utf-8")
        logger.info("%s", ", ".join(f"{key} {shown(value)}" for key, value in self.rows[-1].items() if value is not None))

    def text(self) -> str:
        stream = io.StringIO()
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: shown(row[key]) for key in COLUMNS} for row in self.rows)
        return stream.getvalue()

    def finish(self, path: Path, *, test_top1: float | None) -> None:
        """Write the last row again with the test result, under the final name."""
        self.rows[-1]["test_top1"] = test_top1
        write_text(path, self.text())
        self.partial.unlink(missing_ok=True)


def shown(value: Any) -> str:
    """A CSV cell: six significant digits, empty for None."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
