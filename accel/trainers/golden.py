"""The golden samples: 64 train images, a fixed few of each class, on which every engine is held against the reference."""

from __future__ import annotations

import zipfile
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


def write_golden_samples(dataset: Dataset, path: Path) -> None:
    """Choose COUNT images of a train split, as evenly over the classes as they go, and write them to `path` (.npz).

    The file holds `images` (uint8 64×H×W×3), `labels` (int64) and `indices` (int64, ascending, into the dataset).
    """
    labels = np.asarray(dataset.labels).astype(np.int64)
    generator = np.random.default_rng(SEED)
    share, rest = divmod(COUNT, len(dataset.classes))
    chosen = [
        generator.choice(np.flatnonzero(labels == label), share + (label < rest), replace=False) for label in range(len(dataset.classes))
    ]
    indices = np.sort(np.concatenate(chosen)).astype(np.int64)
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, images=np.asarray(dataset.images)[indices], labels=labels[indices], indices=indices)


def golden_images(dataset: str) -> Array:
    """The golden images of `dataset` that accel ships: uint8 64×H×W×3.

    Raises:
        DatasetMissing: none are shipped for it. CorruptArtifact: the file is damaged.
    """
    path = Path(__file__).parent / "weights" / f"golden-{dataset}.npz"
    if not path.is_file():
        raise DatasetMissing(f"no golden samples of {dataset} are installed ({path} is missing)", remedy=f"accel data fetch {dataset}")
    try:
        with np.load(path, allow_pickle=False) as file:
            images: Array = file["images"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CorruptArtifact(f"{path} cannot be read ({error!r})", remedy="install accel-engines again") from error
    return images
