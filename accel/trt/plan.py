"""The first bytes of a serialised engine, which tell its version before any TensorRT is asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from accel.errors import CorruptArtifact
from accel.trt.library import FLAVORS

_VERSION_AT = 24
_LENGTH = 28


@dataclasses.dataclass(frozen=True)
class PlanHeader:
    """Attributes:
    flavor: a key of FLAVORS.
    version: major, minor, patch, build of the library that built it.
    """

    flavor: str
    version: tuple[int, int, int, int]

    def __str__(self) -> str:
        return f"{FLAVORS[self.flavor].title} {'.'.join(map(str, self.version))}"


def read_header(path: Path) -> PlanHeader | None:
    """The header of the plan at `path`; None where the layout is none that we know, which says nothing against the plan.

    Raises:
        CorruptArtifact: the file is shorter than any header, or cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            head = stream.read(_LENGTH)
    except OSError as error:
        raise CorruptArtifact(f"{path} cannot be read: {error.strerror}", remedy="export it again") from error
    if len(head) < _LENGTH:
        raise CorruptArtifact(f"{path} has {len(head)} bytes, which is no plan", remedy="export it again")
    flavor = next((flavor.name for flavor in FLAVORS.values() if head.startswith(flavor.magic)), None)
    if flavor is None or any(head[4:8]):
        return None
    major, minor, patch, build = head[_VERSION_AT:_LENGTH]
    return PlanHeader(flavor, (major, minor, patch, build))
