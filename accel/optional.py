"""Import a heavy dependency at the point of use, with an error that names the extra."""

from __future__ import annotations

import importlib
import importlib.util
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
    import importlib.metadata  # here, because it brings the e-mail parser along, and a load asks for versions only where some are on record

    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
