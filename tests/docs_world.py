"""The small world behind the documentation: CIFAR-10 of 1,100 images, a network of 40 numbers in the place of each model, no processes.

Every command of the docs is typed as it stands there; what takes minutes is shrunk, and nothing else: the images (their brightness is
their class), the networks, the calls that are timed. Workers answer in this process, and torch.compile hands back what it was given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel.datasets import arrays, catalog, store

TRAIN, TEST = 1000, 100
FIRST_LABELS = (3, 8, 8, 0)
"""Cat, ship, ship, airplane: what the first images of the real test set show."""

MISLABELLED = 7
"""Of the test images, so that the networks are 93 % right, as the real ones."""

BRIGHTNESS = 20
"""Steps of 255 between a class and the next."""

SHIPPED = ("mobilenetv3_small", "resnet18")
TRAINED = "student_a"


def pictures(count: int) -> arrays.Arrays:
    """Noise around the brightness of its class."""
    labels = (np.arange(count) % 10).astype(np.uint8)
    labels[: len(FIRST_LABELS)] = FIRST_LABELS
    noise = np.random.default_rng(count).integers(0, 60, (count, 32, 32, 3))
    images = (labels[:, None, None, None] * BRIGHTNESS + noise).astype(np.uint8)
    if count == TEST:
        labels[-MISLABELLED:] = (labels[-MISLABELLED:] + 1) % 10
    return arrays.Arrays(images, labels)


def network(num_classes: int = 10) -> Any:
    """The class of the nearest brightness, by a linear map of the mean pixel; only its biases learn, far too slowly to matter."""
    import torch
    from torch import nn

    centres = ((np.arange(num_classes) * BRIGHTNESS + 30) / 255 - 0.4734) / 0.2507
    layer = nn.Conv2d(3, num_classes, 1)
    # argmin |m - c|² = argmax (2·m·c - c²), times 200 so that rounding to FP16 changes no answer.
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.repeat(400 * centres[:, None, None, None] / 3, 3, axis=1)))
        layer.bias.copy_(torch.from_numpy(-200 * centres**2))
    layer.weight.requires_grad_(False)
    return nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def in_this_process(request: dict[str, Any], python: str, folder: Path, progress: Any = None) -> dict[str, Any]:
    """What a worker does, without a process: starting one takes seconds."""
    from accel.bench import worker
    from accel.bench.launch import ARRAYS
    from accel.progress import silent

    if "plan" in request:
        request = {**request, "plan": {**request["plan"], "warmup": 2, "iterations": 140}}
    reply, found = worker.answer(request, progress or silent)
    folder.mkdir(parents=True, exist_ok=True)
    if found:
        np.savez(folder / ARRAYS, **found)
    return dict(json.loads(json.dumps(reply, default=str)))


def build(patch: pytest.MonkeyPatch, root: Path) -> None:
    """Shrink the world until `patch` is undone; `root` is an empty folder for its cache and weights."""
    import torch

    from accel import trainers
    from accel.api import benching, selfchecking, tune_steps, tuning, verifying
    from accel.bench import measure

    patch.setenv("ACCEL_CACHE_DIR", str(root / "cache"))
    patch.setenv("ACCEL_OFFLINE", "1")
    patch.setenv("ACCEL_BENCH_THREADS", "1")
    patch.setenv("ACCEL_DEVICE", "cpu")  # the pages show what a CPU prints
    _shrink_cifar10(patch)
    patch.setattr(trainers, "WEIGHTS", root / "weights")
    for name in (*SHIPPED, TRAINED):
        patch.setitem(trainers.MODELS, name, "docs_world:network")
    for name in SHIPPED:
        _ship(name, root / "weights" / name)
    for module in (selfchecking, tuning, verifying):
        patch.setattr(module, "spawn", in_this_process)
    for name in ("run_set", "run_sets"):
        patch.setattr(benching, name, functools.partial(getattr(benching, name), launch=in_this_process))
    # Before each pass the collector would look through all that pytest and torch hold.
    patch.setattr(measure, "quiet_collector", contextlib.nullcontext)
    # AOTInductor runs a C++ compiler for half a minute.
    patch.setitem(tune_steps.STEPS, "cpu", tuple(step for step in tune_steps.STEPS["cpu"] if not step.variant.startswith("aoti")))
    patch.setattr(torch, "compile", lambda module, **options: module)


def local_copy(folder: Path) -> None:
    """CIFAR-10's pickles as torchvision leaves them on the disk."""
    info = catalog.DATASETS["cifar10"]
    folder.mkdir(parents=True)
    for part in info.splits.values():
        whole = pictures(part.images)
        rows = np.array_split(np.arange(part.images), len(part.members))
        for member, chosen in zip(part.members, rows, strict=True):
            planes = np.ascontiguousarray(whole.images[chosen].transpose(0, 3, 1, 2)).reshape(len(chosen), -1)
            data = pickle.dumps({info.label_key: whole.labels[chosen].tolist(), "data": planes}, protocol=2)
            (folder / member).write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


def _shrink_cifar10(patch: pytest.MonkeyPatch) -> None:
    info = catalog.DATASETS["cifar10"]
    small = {"train": pictures(TRAIN), "test": pictures(TEST)}
    splits = {}
    for split, part in info.splits.items():
        hashes = arrays.Hashes.of(small[split])
        splits[split] = dataclasses.replace(part, images=len(small[split].labels), images_sha256=hashes.images, labels_sha256=hashes.labels)
    info = dataclasses.replace(info, splits=splits)
    patch.setitem(catalog.DATASETS, "cifar10", info)
    store.write(info, small, "the small world")


def _ship(name: str, folder: Path) -> None:
    """Weights of `network` described as those of the shipped model."""
    import accel.trainers
    from accel.checkpoint import read_checkpoint, write_checkpoint
    from accel.packed import unpacked

    real = read_checkpoint(unpacked(Path(accel.trainers.__file__).parent / "weights" / name))
    described = dataclasses.replace(real, path=folder, factory="docs_world:network", top1=float(100 - MISLABELLED))
    write_checkpoint(described, {key: value.numpy() for key, value in network().state_dict().items()})
