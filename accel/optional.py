"""Import a heavy dependency at the point of use, with an error that names the extra."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import re
import sys
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
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _recorded(distribution: str) -> str | None:
    """The `Version` that the first `*.dist-info/METADATA` of `distribution` on sys.path names, as importlib.metadata would find it."""
    wanted = _plain(distribution)
    for folder in sys.path:
        # A folder that is not there, or an archive, has none to show.
        with contextlib.suppress(OSError):
            for path in Path(folder or ".").iterdir():
                if path.suffix == ".dist-info" and _plain(path.name.partition("-")[0]) == wanted:
                    with open(path / "METADATA", encoding="utf-8") as lines:
                        # The headers end with the first empty line.
                        for line in itertools.takewhile(str.strip, lines):
                            if line.startswith("Version:"):
                                return line.partition(":")[2].strip()
    return None


def _plain(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
