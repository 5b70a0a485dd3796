"""Can this machine run this engine, and if not, why not: asked before a runtime sees the file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accel.engines import processor
from accel.errors import IncompatibleArtifact, MissingExtra
from accel.optional import version_of
from accel.types import EngineEntry


def check(entry: EngineEntry, device: str) -> None:
    """Hold `entry.target` against this machine.

    Args:
        device: `cpu` or `cuda:N`, where it is to run.

    Raises:
        IncompatibleArtifact: what was expected, what was found and the command that mends it.
        MissingExtra: the engine needs a package that is not installed at all.
    """
    for key, wanted in entry.target.items():
        if key not in _CHECKS:
            raise IncompatibleArtifact(
                f"{entry.name} was made for a certain {key} ({wanted}), which this accel cannot judge",
                remedy="pip install --upgrade accel-engines, or export it again on this machine",
            )
        _CHECKS[key](entry, wanted, device)


def _torch(entry: EngineEntry, wanted: str, device: str) -> None:
    found = version_of("torch")
    if found is None:
        raise MissingExtra("torch", extra="train", why=f"is not installed; {entry.name} was made with {wanted} and needs it")
    if _minor(found) < _minor(wanted):
        series = ".".join(map(str, _minor(wanted)))
        raise IncompatibleArtifact(
            f"{entry.name} was made with torch {wanted}; this environment has torch {found}, which is older",
            remedy=f"pip install 'torch>={series}', or export it again here: {_again(entry)}",
        )


def _torch_minor(entry: EngineEntry, wanted: str, device: str) -> None:
    found = version_of("torch")
    if found is None:
        raise MissingExtra("torch", extra="train", why=f"is not installed; {entry.name} was compiled by torch {wanted} and needs it")
    if _minor(found) != _minor(wanted):
        raise IncompatibleArtifact(
            f"{entry.name} was compiled by torch {wanted} and runs with no other minor version; this environment has torch {found}",
            remedy=f"pip install 'torch=={wanted}.*', or export it again here: {_again(entry)}",
        )


def _simd(entry: EngineEntry, wanted: str, device: str) -> None:
    found = processor.instructions()
    missing = sorted(set(wanted.split()) - set(found))
    # Where the system does not name its instruction sets there is nothing to hold against the file's.
    if missing and found:
        raise IncompatibleArtifact(
            f"{entry.name} was compiled for a processor with {', '.join(missing)}, which this one lacks",
            remedy=f"export it again here: {_again(entry)}",
        )


def _isa(entry: EngineEntry, wanted: str, device: str) -> None:
    found = processor.machine()
    if found != wanted:
        raise IncompatibleArtifact(f"{entry.name} was made for {wanted} processors; this one is {found}", remedy=_again(entry))


def _device(entry: EngineEntry, wanted: str, device: str) -> None:
    if device.partition(":")[0] != wanted:
        raise IncompatibleArtifact(
            f"{entry.name} was made for {wanted}; it was to run on {device}", remedy=f"--device {wanted}, or {_again(entry)}"
        )


_CHECKS: dict[str, Callable[[EngineEntry, Any, str], None]] = {
    "torch": _torch,
    "torch_minor": _torch_minor,
    "isa": _isa,
    "simd": _simd,
    "device": _device,
}
"""What an engine may be tied to → how it is judged; `isa` is spelled as Linux does: x86_64, aarch64; `simd` are the names of
instruction sets with spaces between them; `device` is `cpu` or `cuda`; `torch` a lowest version, `torch_minor` the only one."""


def _minor(version: str) -> tuple[int, ...]:
    """`2.15.0+cu132` → (2, 15)."""
    parts = version.partition("+")[0].split(".")[:2]
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in parts)


def _again(entry: EngineEntry) -> str:
    return f"accel export MODEL --to {entry.format}" + ("" if entry.precision == "fp32" else f" --{entry.precision}")
