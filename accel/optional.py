"""Import a heavy dependency at the point of use, with an error that names the extra."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import os
import re
import stat
import sys
import time
from pathlib import Path
from types import ModuleType

from accel.errors import MissingExtra


def require(module: str, extra: str) -> ModuleType:
    """Return `module`, imported.

    Raises:
        MissingExtra: the module is absent, or present but broken (the cause is chained).
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        root = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != root:
            raise MissingExtra(module, extra, f"cannot be imported: it needs {error.name}, which is absent") from error
        raise MissingExtra(module, extra) from error
    except (ImportError, OSError) as error:
        raise MissingExtra(module, extra, f"is installed but cannot be imported ({error})") from error


def installed(module: str) -> bool:
    """Whether `module` can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def version_of(*distributions: str) -> str | None:
    """The version of the first of `distributions` that is installed, read without importing it."""
    for name in distributions:
        found = _recorded(name)
        if found is not None:
            return found
    # What no folder of sys.path shows may come from another finder. Not asked first: it brings the e-mail parser along, 30 ms of a load.
    import importlib.metadata

    for name in distributions:
        # What is there without metadata is none: a finder that another package brought along says so by an error of its own, an OSError.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError, OSError, KeyError):
            return importlib.metadata.version(name)
    return None


def _recorded(distribution: str) -> str | None:
    """The `Version` that the first `*.dist-info/METADATA` of `distribution` on sys.path names, as importlib.metadata would find it."""
    wanted = _plain(distribution)
    for folder in sys.path:
        for name in _dist_infos(folder).get(wanted, ()):
            # Read anew each time, for it is short: what is remembered are names.
            with contextlib.suppress(OSError), open(Path(folder, name, "METADATA"), encoding="utf-8") as lines:
                # The headers end with the first empty line.
                for line in itertools.takewhile(str.strip, lines):
                    if line.startswith("Version:"):
                        return line.partition(":")[2].strip()
    return None


_SETTLED_NS = 2_000_000_000
"""How long a folder must have been at rest for its listing to be remembered: two changes within one tick of a file system's clock have
the same time, and the coarsest tick in use (FAT's) is 2 s."""

_Stamp = tuple[int, int, int, int]
_listed: dict[str, tuple[_Stamp, dict[str, list[str]]]] = {}
"""Folder of sys.path → what it was when it was listed, and what `_list` found."""


def _dist_infos(folder: str) -> dict[str, list[str]]:
    """Distribution → the names of its `*.dist-info` in `folder`; nothing of a folder that is not there, or of an archive.

    The folder is listed again once it is another one (a relative path, a link) or has changed: installing, upgrading and removing a
    package all do that.
    """
    try:
        found = Path(folder).stat()
        if not stat.S_ISDIR(found.st_mode):
            return {}
        # The time of the inode's change too: whoever copies a folder may set the other one back.
        stamp = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
        known = _listed.get(folder)
        if known is not None and known[0] == stamp:
            return known[1]
        # Asked before the listing, which may take long: a change that it misses must get another time.
        settled = time.time_ns() - max(stamp[2:]) > _SETTLED_NS
        names = _list(folder)
    except OSError:
        return {}
    if settled:
        _listed[folder] = stamp, names
    return names


def _list(folder: str) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    # The current folder is an empty word on sys.path.
    with os.scandir(folder or ".") as children:
        for child in children:
            if child.name.endswith(".dist-info"):
                names.setdefault(_plain(child.name.partition("-")[0]), []).append(child.name)
    return names


def _plain(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
