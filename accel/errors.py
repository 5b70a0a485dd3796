"""Every error that accel raises on purpose, and the exit code each one carries.

    AccelError                     1  internal, or a subclass below
    ├── UsageError                 2  a request that cannot be understood
    │   ├── ConfigError            2  a settings file or ACCEL_* variable that is wrong
    │   ├── UnknownName            2  a model, format, runtime or dataset that does not exist
    │   └── UnsupportedOperator    2  a model that a format cannot express
    ├── GateError                  3  the request was carried out and the result is not good enough
    │   ├── AccuracyGate           3  top-1 fell too far
    │   ├── ParityError            3  an engine disagrees with the golden samples
    │   └── PrecisionError         3  the precision computed is not the one asked for
    ├── MissingError               4  this machine lacks something that the request needs
    │   ├── MissingExtra           4  a Python package that an extra installs
    │   ├── RuntimeUnavailable     4  a runtime, provider or kernel
    │   ├── DeviceUnavailable      4  a GPU, or one that works
    │   ├── DatasetMissing         4  images that are not in the cache and cannot be fetched
    │   ├── BundleMissing          4  an engine folder or entry that was not exported yet
    │   └── DiskFull               4  space on a disk
    └── ArtifactError              5  a file that must not be used
        ├── CorruptArtifact        5  truncated, edited, missing or of an unknown schema
        ├── IncompatibleArtifact   5  whole, but made for another machine or version
        └── UntrustedArtifact      5  whole, but code-bearing and of unknown origin

A foreign exception is chained (`raise … from error`), never swallowed.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any


class AccelError(Exception):
    """What was asked, what was found, and what mends it.

    Args:
        message: one sentence that names what was asked and what was found.
        remedy: the command, option or action that mends it, if there is one.
    """

    exit_code = 1
    told = False
    """Whether it has been shown already, by this process or by one that works with it."""

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        # By its class alone: the subclasses' arguments are not those that Python would call them with in another process.
        return _restored, (type(self), self.message, self.__dict__)

    def __str__(self) -> str:
        return f"{self.message}\n  to mend it: {self.remedy}" if self.remedy else self.message


def of_users_code(what: str, error: Exception, remedy: str = "mend that code") -> UsageError:
    """What the user's own code ended in, and in which line, for `raise … from error`: a factory, a metric, an iterable."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = "" if frame.filename.startswith("<") else f" ({Path(frame.filename).name}, line {frame.lineno})"
    return UsageError(f"{what}: {type(error).__name__}: {error}{where}", remedy=remedy)


def _restored(kind: type[AccelError], message: str, state: dict[str, Any]) -> AccelError:
    error = kind.__new__(kind, message)
    error.__dict__.update(state)
    return error


class UsageError(AccelError):
    exit_code = 2


class ConfigError(UsageError):
    pass


class UnknownName(UsageError):
    """A name outside a closed table; the known ones are listed in the remedy."""

    def __init__(self, kind: str, name: str, known: list[str] | tuple[str, ...]) -> None:
        super().__init__(f"there is no {kind} called {name!r}", remedy=f"choose one of: {', '.join(sorted(known))}")


class UnsupportedOperator(UsageError):
    pass


class GateError(AccelError):
    exit_code = 3


class AccuracyGate(GateError):
    pass


class ParityError(GateError):
    pass


class PrecisionError(GateError):
    pass


class MissingError(AccelError):
    exit_code = 4


class MissingExtra(MissingError):
    """A module that one of our extras installs cannot be imported."""

    def __init__(self, module: str, extra: str, why: str = "is not installed") -> None:
        super().__init__(f"{module} {why}", remedy=f"pip install 'accel-engines[{extra}]'")
        self.extra = extra


class RuntimeUnavailable(MissingError):
    pass


class DeviceUnavailable(MissingError):
    pass


class DatasetMissing(MissingError):
    pass


class BundleMissing(MissingError):
    pass


class DiskFull(MissingError):
    pass


class ArtifactError(AccelError):
    exit_code = 5


class CorruptArtifact(ArtifactError):
    pass


class IncompatibleArtifact(ArtifactError):
    pass


class UntrustedArtifact(ArtifactError):
    pass
