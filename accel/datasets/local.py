"""A copy that the user already has: one of four forms, recognised by what is in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from accel.datasets import store
from accel.datasets.archive import read_cifar
from accel.datasets.arrays import Arrays, read_npz, to_labels
from accel.datasets.catalog import DatasetInfo
from accel.datasets.pickles import read_batch
from accel.errors import CorruptArtifact, DatasetMissing
from accel.progress import Progress


class Form(NamedTuple):
    """One form of a local copy.

    Attributes:
        describe: what to look for, for messages.
        locate: the file or folder of this form at or in a path, or None.
        read: decode it.
    """

    describe: Callable[[DatasetInfo], str]
    locate: Callable[[Path, DatasetInfo], Path | None]
    read: Callable[[Path, DatasetInfo, Progress], dict[str, Arrays]]


def read(path: Path, info: DatasetInfo, progress: Progress) -> dict[str, Arrays]:
    """Decode the copy at `path`.

    Raises:
        DatasetMissing: there is nothing at `path`, or nothing of a known form.
        CorruptArtifact: a known form with wrong contents.
    """
    for form in FORMS:
        found = form.locate(path, info)
        if found is not None:
            return form.read(found, info, progress)
    forms = "; ".join(form.describe(info) for form in FORMS)
    state = "does not hold it in a form that accel reads" if path.exists() else "does not exist"
    raise DatasetMissing(f"{info.name} was to be read from {path}, which {state}", remedy=f"pass --from one of: {forms}")


def _members(info: DatasetInfo) -> list[str]:
    return [member for split in info.splits.values() for member in split.members]


def _locate_batches(path: Path, info: DatasetInfo) -> Path | None:
    return next((folder for folder in (path, path / info.folder) if all((folder / name).is_file() for name in _members(info))), None)


def _read_batches(folder: Path, info: DatasetInfo, progress: Progress) -> dict[str, Arrays]:
    names = _members(info)
    batches = {}
    for index, name in enumerate(names):
        progress("decode", index, len(names))
        batches[name] = read_batch((folder / name).read_bytes(), info.label_key, str(folder / name))
    progress("decode", len(names), len(names))
    return {split: Arrays.joined(batches[name] for name in part.members) for split, part in info.splits.items()}


def _locate_archive(path: Path, info: DatasetInfo) -> Path | None:
    if path.is_file() and path.name.endswith((".tar.gz", ".tgz")):
        return path
    inside = path / info.archive
    return inside if inside.is_file() else None


def _locate_cache(path: Path, info: DatasetInfo) -> Path | None:
    folders = (path, path / info.name, path / "datasets" / info.name)
    return next((folder for folder in folders if (folder / store.RECORD).is_file()), None)


def _read_cache(folder: Path, info: DatasetInfo, progress: Progress) -> dict[str, Arrays]:
    record = store.read_record(folder, info)
    return {split: store.read_arrays(folder, info, split, record)[0] for split in info.splits}


def _locate_npz(path: Path, info: DatasetInfo) -> Path | None:
    return path if all((path / f"{split}.npz").is_file() for split in info.splits) else None


def _read_npz(folder: Path, info: DatasetInfo, progress: Progress) -> dict[str, Arrays]:
    splits = {}
    for index, split in enumerate(info.splits):
        progress("decode", index, len(info.splits))
        path = folder / f"{split}.npz"
        data = read_npz(path, ("images", "labels"))
        if len(data) < 2:
            raise CorruptArtifact(f"{path} lacks `images` or `labels`; it has {sorted(data)} of them")
        splits[split] = Arrays(np.ascontiguousarray(data["images"]), to_labels(data["labels"], str(path)))
    progress("decode", len(info.splits), len(info.splits))
    return splits


FORMS = (
    Form(lambda info: f"torchvision's folder {info.folder}", _locate_batches, _read_batches),
    Form(lambda info: f"the archive {info.archive}", _locate_archive, read_cifar),
    Form(lambda info: f"a cache folder of accel (…/datasets/{info.name})", _locate_cache, _read_cache),
    Form(
        lambda info: "a folder with " + " and ".join(f"{split}.npz" for split in info.splits) + " (images, labels)", _locate_npz, _read_npz
    ),
)
