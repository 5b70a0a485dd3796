"""Folders that are made whole or not at all, and files that are copied only if their bytes are those of the bundle."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from accel.engines import Bundle
from accel.engines.commit import sync_tree
from accel.errors import CorruptArtifact, UsageError
from accel.files import disk_errors, scratch_folder, sha256_file


def demand_free(target: Path, force: bool) -> None:
    """Refuse to write over `target`.

    Raises:
        UsageError: it exists and was not to be replaced, or is no folder.
    """
    if target.exists() and not (force and target.is_dir()):
        raise UsageError(f"{target} exists", remedy="replace it with --force, or choose another --out or --name")


@contextlib.contextmanager
def placed(target: Path, force: bool = False, *, outside: Path) -> Iterator[Path]:
    """Yield an empty folder that is renamed to `target` when the block ends; on an error nothing is left of it.

    Args:
        force: replace what is at `target`.
        outside: a folder that a server may be watching: what is not whole lies beside it, where that is the same file system.

    Raises:
        UsageError: as `demand_free`. DiskFull: the disk filled up; what was at `target` is as it was.
    """
    demand_free(target, force)
    home = outside.resolve()
    with disk_errors(target):
        home.mkdir(parents=True, exist_ok=True)
    # A rename does not leave its file system, and a mounted folder is one of its own.
    beside = home.parent if home.parent.stat().st_dev == home.stat().st_dev else home
    with scratch_folder(beside, target.name) as scratch:
        made, replaced = scratch / "made", scratch / "replaced"
        made.mkdir()
        yield made
        sync_tree(made)
        demand_free(target, force)
        if target.exists():
            target.rename(replaced)
        try:
            made.rename(target)
        except BaseException:
            if replaced.exists():
                replaced.rename(target)
            raise


def copy_files(bundle: Bundle, files: Mapping[str, str], names: Mapping[str, Path]) -> None:
    """Copy files of the bundle and hold each copy against its SHA-256.

    Args:
        files: path in the bundle → SHA-256.
        names: path in the bundle → where it goes.

    Raises:
        CorruptArtifact: a copy is not what accel.json names. DiskFull: the disk filled up.
    """
    for name, expected in files.items():
        target = names[name]
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / name, target)
        found = sha256_file(target)
        if found != expected:
            raise CorruptArtifact(
                f"{bundle.path / name} changed while it was copied: SHA-256 {found}; accel.json says {expected}", remedy="package it again"
            )
