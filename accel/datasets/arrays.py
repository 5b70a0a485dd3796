"""One split in memory, on its way from a source to the cache, and the checks that every source's result passes."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from accel.datasets.catalog import IMAGE_SHAPE, DatasetInfo, find_split
from accel.errors import CorruptArtifact
from accel.files import sha256_bytes


@dataclass(frozen=True)
class Arrays:
    """Decoded images and labels: uint8 N×32×32×3 and uint8 N."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]

    @classmethod
    def joined(cls, parts: Iterable[Arrays]) -> Arrays:
        """Batches one after the other."""
        batches = list(parts)
        return cls(np.concatenate([part.images for part in batches]), np.concatenate([part.labels for part in batches]))


@dataclass(frozen=True)
class Hashes:
    """SHA-256 in hex of the image bytes, of the label bytes, and of the two one after the other."""

    images: str
    labels: str
    both: str

    @classmethod
    def of(cls, arrays: Arrays) -> Hashes:
        digest = hashlib.sha256(arrays.images.data.cast("B"))
        images, labels = digest.hexdigest(), arrays.labels.data.cast("B")
        digest.update(labels)
        return cls(images, sha256_bytes(labels), digest.hexdigest())


def read_npz(path: Path, names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    """Those of the arrays `names` that the .npz file `path` has, never unpickling.

    Raises:
        CorruptArtifact: it is no whole .npz, or holds Python objects.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise CorruptArtifact(f"{path} is not an .npz file")
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in names if name in data.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptArtifact(f"{path} cannot be read: {error}") from error


def to_labels(values: Any, where: str) -> npt.NDArray[np.uint8]:
    """A list or array of whole numbers 0..255 as uint8.

    Raises:
        CorruptArtifact: `values`, found in `where`, are anything else.
    """
    if isinstance(values, np.ndarray):
        labels = values
    elif isinstance(values, list) and all(type(value) is int and 0 <= value <= 255 for value in values):
        labels = np.array(values, np.uint8)
    else:
        raise CorruptArtifact(f"the labels in {where} are not a list of whole numbers from 0 to 255")
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or (labels.size and not 0 <= labels.min() <= labels.max() <= 255):
        raise CorruptArtifact(f"the labels in {where} are {labels.dtype} {labels.shape}, not whole numbers from 0 to 255 in one row")
    return labels.astype(np.uint8)


def check_layout(info: DatasetInfo, split: str, arrays: Arrays, where: str) -> None:
    """Hold dtypes, counts and label range against the catalogue.

    Raises:
        CorruptArtifact: what was found in `where`, and what was expected.
    """
    expected = (find_split(info, split).images, *IMAGE_SHAPE)
    images, labels = arrays.images, arrays.labels
    if images.dtype != np.uint8 or images.shape != expected or not images.flags.c_contiguous:
        raise CorruptArtifact(
            f"the {split} images of {info.name} in {where} are {images.dtype} {images.shape}, not uint8 {expected} in C order"
        )
    if labels.dtype != np.uint8 or labels.shape != expected[:1]:
        raise CorruptArtifact(f"the {split} labels of {info.name} in {where} are {labels.dtype} {labels.shape}, not uint8 {expected[:1]}")
    if int(labels.max()) >= len(info.classes):
        raise CorruptArtifact(f"a {split} label of {info.name} in {where} is {labels.max()}; there are {len(info.classes)} classes")


def check_hashes(info: DatasetInfo, split: str, found: Hashes, images: str | None, labels: str | None, where: str) -> None:
    """Hold the hashes against the expected ones; None expects nothing.

    Raises:
        CorruptArtifact: which array, what was expected and what was found.
    """
    for kind, expected, actual in (("images", images, found.images), ("labels", labels, found.labels)):
        if expected is not None and expected != actual:
            raise CorruptArtifact(f"the {split} {kind} of {info.name} in {where} have SHA-256 {actual}; expected {expected}")
