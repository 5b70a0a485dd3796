"""The golden samples: 64 train images, a fixed few of each class, on which every engine is held against the reference."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from accel.errors import CorruptArtifact, DatasetMissing
from accel.files import replacing
from accel.types import Array

if TYPE_CHECKING:
    from accel.datasets import Dataset

COUNT = 64
SEED = 0


OWN_FILE = "golden.npz"
"""In the folder of a checkpoint that was trained on the user's own images."""


def write_golden_samples(dataset: Dataset, path: Path) -> None:
    """Choose COUNT images of a train split, as evenly over the classes as they go, and write them to `path` (.npz).

    The file holds `images` (uint8 64×H×W×3), `labels` (int64) and `indices` (int64, ascending, into the dataset).
    """
    images = np.asarray(dataset.images)
    write_chosen(lambda indices: images[indices], np.asarray(dataset.labels).astype(np.int64), len(dataset.classes), path)


def write_chosen(read: Callable[[Array], Array], labels: Array, classes: int, path: Path) -> None:
    """As `write_golden_samples`, of images that `read` gives by their numbers; fewer than COUNT where a class has too few."""
    generator = np.random.default_rng(SEED)
    share, rest = divmod(COUNT, classes)
    chosen = []
    for label in range(classes):
        members = np.flatnonzero(labels == label)
        chosen.append(generator.choice(members, min(share + (label < rest), len(members)), replace=False))
    indices = np.sort(np.concatenate(chosen)).astype(np.int64)
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, images=read(indices), labels=labels[indices], indices=indices)


def golden_images(dataset: str, folder: Path | None = None) -> Array:
    """The golden images of the checkpoint in `folder`, if it has its own, else those of `dataset` that accel ships: uint8 64×H×W×3.

    Raises:
        DatasetMissing: there are neither. CorruptArtifact: the file is damaged.
    """
    own = None if folder is None else folder / OWN_FILE
    if own is not None and own.is_file():
        return _read(own, "train the checkpoint again")
    path = Path(__file__).parent / "weights" / f"golden-{dataset}.npz"
    if not dataset or not path.is_file():
        raise DatasetMissing(f"no golden samples of {dataset} are installed ({path} is missing)", remedy=f"accel data fetch {dataset}")
    return _read(path, "install accel-engines again")


def _read(path: Path, remedy: str) -> Array:
    try:
        with np.load(path, allow_pickle=False) as file:
            images: Array = file["images"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CorruptArtifact(f"{path} cannot be read ({error!r})", remedy=remedy) from error
    return images
