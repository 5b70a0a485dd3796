"""The cache: `<cache>/datasets/NAME/` with memory-mapped .npy files and `dataset.json`, which says what they are.

Hashes: a process hashes a file the first time that it loads it (less than a second for a train set) and again only if its inode, size or
mtime has changed. They are held against the catalogue's, or, for a set whose hashes nobody has published, against those that
the fetch recorded in `dataset.json`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from accel.datasets.arrays import Arrays, Hashes, check_hashes, check_layout
from accel.datasets.catalog import DATASETS, IMAGE_SHAPE, DatasetInfo, find, find_split
from accel.errors import CorruptArtifact, DatasetMissing
from accel.files import cache_dir, offline, scratch_folder, write_text

RECORD = "dataset.json"
SCHEMA_VERSION = 1

_Stamp = tuple[int, ...]
_verified: dict[tuple[str, str], tuple[_Stamp, Hashes]] = {}


@dataclass(frozen=True)
class Dataset:
    """One split, checked.

    Attributes:
        images: uint8 N×32×32×3, a read-only memmap.
        labels: uint8 N.
        sha256: of the image bytes followed by the label bytes.
    """

    name: str
    split: str
    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    classes: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class Status:
    """Whether one split is in the cache; the sizes of the files are looked at, their hashes are not.

    Attributes:
        path: of its images, present or not.
        sha256: that the image bytes must have; None for a set that was never fetched and has no published hash.
    """

    name: str
    split: str
    present: bool
    path: Path
    sha256: str | None
    images: int


def folder_of(name: str) -> Path:
    return cache_dir() / "datasets" / name


def load(name: str, split: str) -> Dataset:
    """Open one split from the cache; never opens a connection.

    Raises:
        UnknownName: no such dataset or split.
        DatasetMissing: it was not fetched; when offline, names the path and the hash that are wanted.
        CorruptArtifact: the cache was edited or damaged.
    """
    info = find(name)
    find_split(info, split)
    folder = folder_of(name)
    if not (folder / RECORD).is_file():
        raise missing(info, (split,))
    try:
        arrays, hashes = read_arrays(folder, info, split, read_record(folder, info))
    except CorruptArtifact as error:
        raise CorruptArtifact(error.message, remedy=f"accel data fetch {name} (it replaces what is wrong)") from error
    return Dataset(name, split, arrays.images, arrays.labels, info.classes, hashes.both)


def status() -> list[Status]:
    """Every split of every known dataset, present or not."""
    return [_status(info, split) for info in DATASETS.values() for split in info.splits]


def missing(info: DatasetInfo, splits: tuple[str, ...]) -> DatasetMissing:
    """The error for splits that are not in the cache."""
    by_hand = f"accel data fetch {info.name} --from PATH"
    if not offline():
        return DatasetMissing(
            f"{info.name} ({', '.join(splits)}) is not in {folder_of(info.name)}", remedy=f"accel data fetch {info.name}, or {by_hand}"
        )
    wanted = "; ".join(
        f"{_images_path(info.name, split)} with SHA-256 {info.splits[split].images_sha256 or f'as in {info.archive}, MD5 {info.md5}'}"
        for split in splits
    )
    return DatasetMissing(
        f"{info.name} is not in the cache and ACCEL_OFFLINE forbids fetching it; wanted are the images {wanted}",
        remedy=f"{by_hand} (a copy of {info.folder}, {info.archive}, or a cache of accel), or unset ACCEL_OFFLINE",
    )


def write(info: DatasetInfo, splits: Mapping[str, Arrays], source: str) -> Path:
    """Check `splits` and put them in the cache at one stroke; the caller holds the dataset's lock.

    Raises:
        CorruptArtifact: they are not what the catalogue says; the cache is as it was. DiskFull: likewise.
    """
    record: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "name": info.name, "source": source, "splits": {}}
    for split, part in info.splits.items():
        check_layout(info, split, splits[split], source)
        hashes = Hashes.of(splits[split])
        check_hashes(info, split, hashes, part.images_sha256, part.labels_sha256, source)
        record["splits"][split] = {"images": part.images, "images_sha256": hashes.images, "labels_sha256": hashes.labels}
    folder = folder_of(info.name)
    sweep(info.name)
    with scratch_folder(folder.parent, info.name) as scratch:
        new = scratch / "new"
        new.mkdir()
        for split, arrays in splits.items():
            for kind, array in (("images", arrays.images), ("labels", arrays.labels)):
                with open(new / f"{split}_{kind}.npy", "wb") as stream:
                    np.save(stream, array, allow_pickle=False)
                    stream.flush()
                    os.fsync(stream.fileno())
        write_text(new / RECORD, json.dumps(record, indent=2) + "\n")
        # A folder cannot be renamed onto another; a kill between the two leaves the set absent, never half.
        if folder.exists():
            os.replace(folder, scratch / "old")
        os.replace(new, folder)
    return folder


def sweep(name: str) -> None:
    """Remove what killed fetches have left beside the dataset's folder; the caller holds its lock."""
    for left in folder_of(name).parent.glob(f".{name}.*.part"):
        shutil.rmtree(left, ignore_errors=True)


def read_record(folder: Path, info: DatasetInfo) -> dict[str, Any]:
    """`dataset.json` of the cache in `folder`.

    Raises:
        CorruptArtifact: unreadable, of another schema, or of another dataset.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found = (record["schema_version"], record["name"], sorted(record["splits"]))
        record = {"splits": {split: (part["images_sha256"], part["labels_sha256"]) for split, part in record["splits"].items()}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptArtifact(f"{path} cannot be read: {error!r}") from error
    expected = (SCHEMA_VERSION, info.name, sorted(info.splits))
    if found != expected:
        raise CorruptArtifact(f"{path} has schema version, name and splits {found}; expected {expected}")
    return record


def read_arrays(folder: Path, info: DatasetInfo, split: str, record: Mapping[str, Any]) -> tuple[Arrays, Hashes]:
    """Memory-map one split of the cache in `folder` and check it against the catalogue or, for want of that, the record.

    Raises:
        CorruptArtifact: what was expected and what was found.
    """
    paths = [folder / f"{split}_{kind}.npy" for kind in ("images", "labels")]
    with _reading(folder):
        stamp = tuple(number for path in paths for number in _stamp(path))
        arrays = Arrays(np.load(paths[0], mmap_mode="r", allow_pickle=False), np.load(paths[1], allow_pickle=False))
    check_layout(info, split, arrays, str(folder))
    known = _verified.get((str(folder), split))
    hashes = known[1] if known and known[0] == stamp else Hashes.of(arrays)
    part, recorded = info.splits[split], record["splits"][split]
    check_hashes(info, split, hashes, part.images_sha256 or recorded[0], part.labels_sha256 or recorded[1], str(folder))
    _verified[str(folder), split] = (stamp, hashes)
    return arrays, hashes


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError) as error:
        raise CorruptArtifact(f"the arrays in {folder} cannot be read: {error}") from error


def _stamp(path: Path) -> _Stamp:
    found = path.stat()
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def _images_path(name: str, split: str) -> Path:
    return folder_of(name) / f"{split}_images.npy"


def _status(info: DatasetInfo, split: str) -> Status:
    folder, part = folder_of(info.name), info.splits[split]
    recorded = None
    with contextlib.suppress(CorruptArtifact):
        recorded = read_record(folder, info)["splits"][split][0]
    least = {"images": part.images * math.prod(IMAGE_SHAPE), "labels": part.images}
    paths = {folder / f"{split}_{kind}.npy": size for kind, size in least.items()}
    whole = recorded is not None and all(path.is_file() and path.stat().st_size > size for path, size in paths.items())
    return Status(info.name, split, whole, _images_path(info.name, split), part.images_sha256 or recorded, part.images)
