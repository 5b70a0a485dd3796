"""What a recipe learns from and is measured on: a dataset of the cache, or a folder of the user's own images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from accel import datasets, preprocess
from accel.datasets.imagefolder import ImageFolder
from accel.errors import ConfigError, DatasetMissing, UnknownName, UsageError
from accel.pictures import read as read_picture
from accel.preprocess import Preprocess, letterbox
from accel.trainers import workers
from accel.trainers.evaluate import BATCH, Measured
from accel.trainers.ranks import Ranks
from accel.trainers.views import Source, Views
from accel.types import Array

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from accel.trainers.recipe import Recipe

PREPROCESS = {"cifar10": preprocess.CIFAR10, "cifar100": preprocess.CIFAR100}
"""Dataset of the cache → what the checkpoint asks of its images."""

FOLDER = "imagefolder:"


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Labelled images.

    Attributes:
        labels: int64 (N,).
        read: int64 (B,) → uint8 B×H×W×3, the images with these numbers, all of one size; can be sent to another process.
        hashed: the SHA-256 over images and labels; of a folder it reads every file.
    """

    labels: Array
    read: Callable[[Array], Array]
    hashed: Callable[[], str]


@dataclasses.dataclass(frozen=True)
class Data:
    """What one run learns from.

    Attributes:
        test: measured once, after the last epoch; None if there is none, or if the split leaves it alone.
        source: what `accel verify` measures the checkpoint on by itself; empty if that would be what it has learned from.
        sorted_by_class: whether the first N images are of few classes.
        own: whether its golden samples must come from the run, because none are shipped.
    """

    train: Pictures
    test: Pictures | None
    classes: tuple[str, ...]
    preprocess: Preprocess
    source: str
    sorted_by_class: bool = False
    own: bool = False

    @property
    def colours(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the channels, of images scaled to 0..1."""
        return self.preprocess.mean, self.preprocess.std


def open_data(recipe: Recipe) -> Data:
    """Open what `recipe.dataset` names.

    Raises:
        UnknownName: no such dataset. ConfigError: an image size that is missing, or that the dataset cannot have.
        DatasetMissing, UsageError, CorruptArtifact, MissingExtra: as `datasets.load` and `ImageFolder`.
    """
    if recipe.dataset.startswith(FOLDER):
        return _of_folder(recipe, Path(recipe.dataset.removeprefix(FOLDER)).expanduser())
    if recipe.dataset not in PREPROCESS:
        raise UnknownName("dataset to train on", recipe.dataset, [*PREPROCESS, f"{FOLDER}DIR"])
    return _of_cache(recipe)


def source(data: Data, learned: Array, recipe: Recipe, device: torch.device, dtype: torch.dtype, ranks: Ranks) -> Source:
    """The batches of the images `learned`, by the recipe's loader."""
    import torch

    labels = torch.from_numpy(data.train.labels[learned]).to(device)
    size, classes = (data.preprocess.height, data.preprocess.width), len(data.classes)
    if recipe.loader == "gpu":
        pixels = torch.from_numpy(data.train.read(learned)).to(device)
        return Views(pixels, labels, recipe, colours=data.colours, dtype=dtype, num_classes=classes, ranks=ranks)
    read = functools.partial(_read_chosen, data.train.read, learned)
    return workers.Streamed(
        read,
        labels,
        recipe,
        size=size,
        colours=data.colours,
        dtype=dtype,
        num_classes=classes,
        workers=workers.count(ranks),
        ranks=ranks,
    )


def measurable(pictures: Pictures, chosen: Array, prepare: Preprocess, recipe: Recipe, labels_on: torch.device) -> Measured:
    """The images `chosen` through the very preprocessing that the checkpoint names: resident, or read by workers each time."""
    import torch

    labels: Tensor = torch.from_numpy(pictures.labels[chosen]).to(labels_on)
    if recipe.loader == "gpu":
        images = torch.from_numpy(prepare(pictures.read(chosen))).to(labels_on)
        return Measured(list(zip(torch.split(images, BATCH), torch.split(labels, BATCH), strict=True)), len(chosen))
    read = functools.partial(_read_prepared, pictures.read, chosen, prepare)
    return Measured(workers.Measurable(read, labels, workers.count()), len(chosen))


def _of_cache(recipe: Recipe) -> Data:
    prepare = PREPROCESS[recipe.dataset]
    if recipe.image_size not in (0, prepare.height):
        raise ConfigError(
            f"image_size = {recipe.image_size} was asked for; the images of {recipe.dataset} have {prepare.height}×{prepare.width} pixels",
            remedy="leave out --image-size (--upscale enlarges them for a model that does so itself)",
        )
    train = datasets.load(recipe.dataset, "train")
    test = datasets.load(recipe.dataset, "test") if recipe.split == "full" else None
    return Data(_of_dataset(train), None if test is None else _of_dataset(test), tuple(train.classes), prepare, recipe.dataset)


def _of_dataset(dataset: datasets.Dataset) -> Pictures:
    # asarray drops the memmap subclass, and with it the copying of the whole file where a worker is not forked.
    read = functools.partial(_rows, np.asarray(dataset.images))
    return Pictures(np.asarray(dataset.labels).astype(np.int64), read, lambda: dataset.sha256)


def _of_folder(recipe: Recipe, path: Path) -> Data:
    side = recipe.image_size
    if not side:
        raise ConfigError(
            f"{recipe.dataset} has images of any size, and image_size, which a model is given, was not named",
            remedy="add --image-size N, as 64; what training costs grows with its square",
        )
    if recipe.crop_padding >= side:
        raise ConfigError(f"crop_padding = {recipe.crop_padding} is no less than image_size = {side}", remedy="lower crop_padding")
    if not path.is_dir():
        raise DatasetMissing(f"{recipe.dataset} is not a folder", remedy="name a folder with train/CLASS/… and, for a test, val/CLASS/…")
    if not (path / "train").is_dir():
        raise DatasetMissing(f"{recipe.dataset} has no folder train", remedy=f"move the folders of the classes into {path / 'train'}")
    train = ImageFolder(path / "train")
    if len(train.classes) < 2:
        raise UsageError(f"{train.name} has the one class {train.classes[0]}", remedy="add a folder for each other class")
    prepare = Preprocess(*preprocess.PHOTOGRAPHS, side, side, resize="letterbox")
    reader = {"gpu": _read_exact, "workers": _read_fitted}[recipe.loader]
    pictures = Pictures(np.asarray(train.labels), functools.partial(reader, train.files, side), lambda: train.sha256)
    measured, source = None, ""
    if (path / "val").is_dir():
        val = ImageFolder(path / "val")
        source = f"{FOLDER}{val.path.resolve()}"
        if recipe.split == "full":
            measured = Pictures(_labels_by_name(val, train), functools.partial(reader, val.files, side), lambda: val.sha256)
    return Data(pictures, measured, train.classes, prepare, source, sorted_by_class=True, own=True)


def _labels_by_name(val: ImageFolder, train: ImageFolder) -> Array:
    """The labels of `val` as numbers of the classes of `train`; it may lack some."""
    if unknown := sorted(set(val.classes) - set(train.classes)):
        raise UsageError(
            f"{val.name} has the classes {', '.join(unknown)}, which {train.name} has not", remedy="give both the same folders"
        )
    number: Array = np.array([train.classes.index(name) for name in val.classes])[val.labels]
    return number


def _rows(images: Array, numbers: Array) -> Array:
    return images[numbers]


def _read_fitted(files: list[Path], side: int, numbers: Array) -> Array:
    """Decoded, and fitted into side×side as `preprocess.letterbox` does."""
    images = np.empty((len(numbers), side, side, 3), np.uint8)
    for place, number in enumerate(numbers):
        image = read_picture(files[number])
        images[place] = image if image.shape[:2] == (side, side) else letterbox(image, side, side)
    return images


def _read_exact(files: list[Path], side: int, numbers: Array) -> Array:
    """Decoded; raises ConfigError for an image of another size."""
    images = np.empty((len(numbers), side, side, 3), np.uint8)
    for place, number in enumerate(numbers):
        image = read_picture(files[number])
        if image.shape[:2] != (side, side):
            raise ConfigError(
                f"loader = 'gpu' takes images of {side}×{side} as they are, and {files[number]} has {image.shape[1]}×{image.shape[0]}",
                remedy="--loader workers, which fits images of any size in",
            )
        images[place] = image
    return images


def _read_chosen(read: Callable[[Array], Array], chosen: Array, numbers: Array) -> Array:
    return read(chosen[numbers])


def _read_prepared(read: Callable[[Array], Array], chosen: Array, prepare: Preprocess, numbers: Array) -> Array:
    return prepare(read(chosen[numbers]))
