"""Replace a folder so that a process killed at any moment leaves the old bundle or the new one, never half of each.

    folder                written                        if killed here, `settle` …
    .X.old                X renamed aside (or made empty)  renames it back
    X                     the new folder renamed in        keeps it if accel.json names its bytes, else undoes
    accel.json            replaced                         keeps X
    .X.old                removed                          removes it

The engine's path stays `X/model.onnx`, so that other tools can be pointed at it.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from accel.files import sha256_file
from accel.locking import held

ENTRY_NAME = re.compile(r"(?!checkpoint\Z)[a-z0-9][a-z0-9_-]*")
"""What an engine's folder may be called; the checkpoint has its own."""

_ASIDE = ".old"


@contextlib.contextmanager
def locked(bundle: Path) -> Iterator[None]:
    """Hold the bundle's lock file, which lies beside it, and settle what a killed process left of the bundle folder itself."""
    bundle = bundle.resolve()
    with held(bundle.with_name(f".{bundle.name}.lock"), f"its work on {bundle.name}"):
        settle(bundle, bundle.is_dir)
        yield


def leftovers(bundle: Path) -> list[str]:
    """Names of the engine folders whose replacement is going on now, or was killed."""
    names = (path.name[1 : -len(_ASIDE)] for path in bundle.glob(f".*{_ASIDE}"))
    # A stranger's folder may have one called `....old`, whose engine would be the folder above the bundle.
    return [name for name in names if ENTRY_NAME.fullmatch(name)]


def was_moved(bundle: Path) -> bool:
    """Whether the bundle folder itself is being replaced now, or its replacement was killed."""
    return _aside(bundle.resolve()).is_dir()


def swap_in(new: Path, target: Path) -> None:
    """Rename `target` aside and `new` to `target`; `settle` must follow."""
    if target.is_dir():
        target.rename(_aside(target))
    else:
        _aside(target).mkdir()
    new.rename(target)


def settle(target: Path, is_committed: Callable[[], bool]) -> None:
    """Finish or undo a replacement of `target`; nothing to do where none was begun. The caller holds the lock.

    Args:
        is_committed: whether the folder that is at `target` now is the one to keep.
    """
    aside = _aside(target)
    if not aside.is_dir():
        return
    if not is_committed():
        _remove(target)
        if any(aside.iterdir()):
            aside.rename(target)
            return
    _remove(aside)


def remove_parts(bundle: Path) -> None:
    """Remove what killed writers left; under the lock nobody else is writing."""
    for part in bundle.glob(".*.part"):
        _remove(part)


def remove_parts_of(target: Path) -> None:
    """Remove what killed writers of `target` itself left beside it; the caller holds its lock."""
    target = target.resolve()
    for part in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        _remove(part)


def holds(root: Path, files: Mapping[str, str]) -> bool:
    """Whether every path of `files`, relative to `root`, is there with its SHA-256."""
    return all((root / name).is_file() and sha256_file(root / name) == digest for name, digest in files.items())


def sync_tree(folder: Path) -> None:
    """Flush every file of `folder`, so that a crash of the machine cannot leave a new name on an empty file."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb+") as stream:
                os.fsync(stream.fileno())


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}{_ASIDE}")


def _remove(path: Path) -> None:
    """Remove a folder, a file or a link (never what the link points at), if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
