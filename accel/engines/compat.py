"""Can this machine run this engine, and if not, why not: asked before a runtime sees the file."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from accel.engines import processor, strict
from accel.errors import AccelError, ArtifactError, CorruptArtifact, IncompatibleArtifact, MissingError, MissingExtra
from accel.optional import version_of
from accel.types import EngineEntry

_TO = {"tensorrt": "trt", "tensorrt-rtx": "trt --flavor rtx"}
"""Format → how `accel export --to` spells it, where that is not its name."""

_TYPED = (
    "workspace",
    "optimization_level",
    "version_compatible",
    "hardware_compatible",
    "tactic_sources",
    "allow_mixed",
    "min_batch",
    "opt_batch",
    "max_batch",
)
"""Build options that an engine keeps when it is made anew; GPUs, files of timings and the number of builds are another machine's."""

_WORD = re.compile(r"[a-z0-9][a-z0-9-]*")


@dataclasses.dataclass(frozen=True)
class Machine:
    """What an engine may be tied to; whoever may ask the driver fills it in.

    Attributes:
        gpu: the model of the GPU that the engine is to run on, as `NVIDIA H200`; empty on a CPU.
        compute_capability: of that GPU, as `9.0`.
        libraries: target key (`tensorrt`, `tensorrt-rtx`) → installed version; None where it is not installed.
    """

    gpu: str = ""
    compute_capability: str = ""
    libraries: Mapping[str, str | None] = dataclasses.field(default_factory=dict)


def unknown_machine() -> Machine:
    """For engines that are tied to no GPU.

    Raises:
        AccelError: always; the caller of `check` did not say how the machine is looked at.
    """
    raise AccelError("the engine is tied to a GPU, and nobody said which one is here", remedy="pass `machine` to compat.check")


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where an engine is to run: the device, the machine (looked at once, and only if the target names it), and the bundle."""

    device: str
    look: Callable[[], Machine]
    bundle: Path | None

    @functools.cached_property
    def machine(self) -> Machine:
        return self.look()


def check(entry: EngineEntry, device: str, machine: Callable[[], Machine] = unknown_machine, bundle: Path | None = None) -> None:
    """Hold `entry.target` against this machine.

    Args:
        device: `cpu` or `cuda:N`, where it is to run.
        machine: looks at the machine; called once, and only for an engine that is tied to a GPU or its libraries.
        bundle: the folder that the command in an error names; `MODEL` where none is given.

    Raises:
        IncompatibleArtifact: what was expected, what was found and the command that mends it.
        CorruptArtifact: the target is none that an exporter wrote.
        MissingExtra: the engine needs a package that is not installed at all.
    """
    place = _Place(device, machine, bundle)
    for key, wanted in entry.target.items():
        if key not in _CHECKS:
            raise IncompatibleArtifact(
                f"{entry.name} was made for a certain {key} ({wanted}), which this accel cannot judge",
                remedy="pip install --upgrade accel-engines, or export it again on this machine",
            )
        if not _KINDS[key](wanted):
            raise CorruptArtifact(
                f"{entry.name} says that it was made for the {key} {str(wanted)[:60]!r}, which is none",
                remedy=f"copy the whole folder again from where it came, or {again(entry, place.bundle)}",
            )
    for key, wanted in entry.target.items():
        _CHECKS[key](entry, wanted, place)


def fits(entry: EngineEntry, device: str, machine: Callable[[], Machine] = unknown_machine) -> bool:
    """Whether `check` has nothing to say."""
    try:
        check(entry, device, machine)
    except (ArtifactError, MissingError):
        return False
    return True


def again(entry: EngineEntry, bundle: Path | None = None) -> str:
    """The command that makes `entry` anew, from what the bundle has, for this machine: of its batch, with its options."""
    precision = "" if entry.precision == "fp32" else f" --{entry.precision}"
    batch = "" if batch_of(entry) == 1 else f" --batch {batch_of(entry)}"
    flags = "".join(f" {flag}" for flag in _flags(entry.toolchain.get("options", "{}")))
    return f"accel export {bundle or 'MODEL'} --to {_TO.get(entry.format, entry.format)}{precision}{batch}{flags}"


def batch_of(entry: EngineEntry) -> int | str:
    """The batch size that the engine was built for, or `dynamic`."""
    size = entry.inputs[0].shape[0] if entry.inputs[0].shape else 1
    return "dynamic" if isinstance(size, str) else size


def _flags(options: str) -> Iterator[str]:
    """Recorded options as they are typed; accel.json may be anybody's, so what no exporter writes is left out."""
    try:
        given = json.loads(options)
    except ValueError:
        return
    for name in _TYPED if isinstance(given, dict) else ():
        value, flag = given.get(name), "--" + name.replace("_", "-")
        if value is True:
            yield flag
        elif isinstance(value, int) and value is not False:
            yield f"{flag} {value}"
        elif isinstance(value, list) and value and all(isinstance(word, str) and _WORD.fullmatch(word) for word in value):
            yield f"{flag} {','.join(value)}"


def _torch(entry: EngineEntry, wanted: str, place: _Place) -> None:
    found = version_of("torch")
    if found is None:
        raise MissingExtra("torch", extra="train", why=f"is not installed; {entry.name} was made with {wanted} and needs it")
    if _minor(found) < _minor(wanted):
        series = ".".join(map(str, _minor(wanted)))
        raise IncompatibleArtifact(
            f"{entry.name} was made with torch {wanted}; this environment has torch {found}, which is older",
            remedy=f"pip install 'torch>={series}', or export it again here: {again(entry, place.bundle)}",
        )


def _torch_minor(entry: EngineEntry, wanted: str, place: _Place) -> None:
    found = version_of("torch")
    if found is None:
        raise MissingExtra("torch", extra="train", why=f"is not installed; {entry.name} was compiled by torch {wanted} and needs it")
    if _minor(found) != _minor(wanted):
        raise IncompatibleArtifact(
            f"{entry.name} was compiled by torch {wanted} and runs with no other minor version; this environment has torch {found}",
            remedy=f"pip install 'torch=={wanted}.*', or export it again here: {again(entry, place.bundle)}",
        )


def _simd(entry: EngineEntry, wanted: str, place: _Place) -> None:
    found = processor.instructions()
    missing = sorted(set(wanted.split()) - set(found))
    # Where the system does not name its instruction sets there is nothing to hold against the file's.
    if missing and found:
        raise IncompatibleArtifact(
            f"{entry.name} was compiled for a processor with {', '.join(missing)}, which this one lacks",
            remedy=f"export it again here: {again(entry, place.bundle)}",
        )


def _isa(entry: EngineEntry, wanted: str, place: _Place) -> None:
    found = processor.machine()
    if found != wanted:
        raise IncompatibleArtifact(f"{entry.name} was made for {wanted} processors; this one is {found}", remedy=again(entry, place.bundle))


def _device(entry: EngineEntry, wanted: str, place: _Place) -> None:
    if place.device.partition(":")[0] != wanted:
        raise IncompatibleArtifact(
            f"{entry.name} was made for {wanted}; it was to run on {place.device}",
            remedy=f"--device {wanted}, or {again(entry, place.bundle)}",
        )


def _library(key: str, title: str, extra: str, entry: EngineEntry, wanted: str, place: _Place) -> None:
    """The library's version: the same, or with version compatibility the same major or a newer one."""
    found = place.machine.libraries.get(key)
    if found is None:
        raise MissingExtra(title, extra=extra, why=f"is not installed; {entry.name} was made with {wanted} and needs it")
    ours, theirs = numbers(found), numbers(wanted)
    newer_is_well = bool(entry.target.get("version_compatible"))
    if ours[0] >= theirs[0] if newer_is_well else same_version(ours, theirs):
        return
    rule = f"{theirs[0]} or newer" if newer_is_well else f"exactly {wanted}"
    raise IncompatibleArtifact(
        f"{entry.name} was made with {title} {wanted} and needs {rule}; this environment has {found}",
        remedy=f"install {title} {wanted}, or build it again here: {again(entry, place.bundle)}",
    )


def _gpu(entry: EngineEntry, wanted: str, place: _Place) -> None:
    """The model of the GPU, which tactics are chosen for; a level of hardware compatibility asks for less."""
    found = place.machine.gpu
    if entry.target.get("hardware_compatible", "NONE") in ("", "NONE") and found != wanted:
        raise IncompatibleArtifact(
            f"{entry.name} was made for {wanted}; {place.device} is {found or 'no GPU'}",
            remedy=f"run it on {wanted}, or build it again here: {again(entry, place.bundle)}",
        )


def _compute_capability(entry: EngineEntry, wanted: str, place: _Place) -> None:
    found, level = place.machine.compute_capability, entry.target.get("hardware_compatible", "NONE")
    fit, rule = _LEVELS.get(level, _LEVELS["NONE"])
    if not found or not fit(numbers(found), numbers(wanted)):
        raise IncompatibleArtifact(
            f"{entry.name} was made for compute capability {rule.format(wanted)}; {place.device} has {found or 'none'}",
            remedy=f"run it on another GPU, or build it again here: {again(entry, place.bundle)}",
        )


def _least_compute_capability(entry: EngineEntry, wanted: str, place: _Place) -> None:
    found = place.machine.compute_capability
    if not found or numbers(found) < numbers(wanted):
        raise IncompatibleArtifact(
            f"{entry.name} needs compute capability {wanted} or newer; {place.device} has {found or 'none'}",
            remedy="run it on another GPU, or use another runtime of the bundle",
        )


def _compute_capabilities(entry: EngineEntry, wanted: list[str], place: _Place) -> None:
    found = place.machine.compute_capability
    if found not in wanted:
        raise IncompatibleArtifact(
            f"{entry.name} was made for the compute capabilities {', '.join(wanted)}; {place.device} has {found or 'none'}",
            remedy=f"build it for this GPU, if {entry.format} knows it: {again(entry, place.bundle)} --compute-capability {found or 'X.Y'}",
        )


def _hardware_compatible(entry: EngineEntry, wanted: str, place: _Place) -> None:
    """A level that we do not know cannot be held against anything; the GPU itself is judged where its key is."""
    if wanted and wanted not in _LEVELS:
        raise IncompatibleArtifact(
            f"{entry.name} was made for the hardware compatibility {wanted}, which this accel cannot judge",
            remedy="pip install --upgrade accel-engines, or export it again on this machine",
        )
    if wanted and "compute_capability" not in entry.target:
        _compute_capability(entry, "8.0", place)


def _judged_with_another_key(entry: EngineEntry, wanted: Any, place: _Place) -> None:
    """`version_compatible` only changes how the library's version is read."""


def same_version(ours: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    """Whether two versions agree in as many components as both have."""
    return all(one == other for one, other in zip(ours, theirs, strict=False))


def numbers(version: str) -> tuple[int, ...]:
    """`10.13.0.35` → (10, 13, 0, 35); what follows a `+` or is no number is left out."""
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdecimal()) or (0,)


_LEVELS: dict[str, tuple[Callable[[tuple[int, ...], tuple[int, ...]], bool], str]] = {
    "NONE": (lambda ours, theirs: ours == theirs, "{}"),
    "SAME_COMPUTE_CAPABILITY": (lambda ours, theirs: ours == theirs, "{}, any GPU of it"),
    "AMPERE_PLUS": (lambda ours, theirs: ours >= (8, 0), "8.0 or newer"),
}
"""TensorRT's HardwareCompatibilityLevel → whether a compute capability will do, given the builder's, and how that is said."""


def _is_version(value: Any) -> bool:
    return strict.is_text(value) and len(value) <= _LONGEST_VERSION and value.isascii()


_LONGEST_VERSION = 60
_KINDS: dict[str, strict.Kind] = {
    "torch": _is_version,
    "torch_minor": _is_version,
    "isa": strict.is_text,
    "simd": strict.is_any_text,
    "device": strict.is_text,
    "tensorrt": _is_version,
    "tensorrt-rtx": _is_version,
    "version_compatible": strict.is_bool,
    "hardware_compatible": strict.is_any_text,
    "gpu": strict.is_any_text,
    "compute_capability": _is_version,
    "compute_capabilities": strict.is_texts,
    "least_compute_capability": _is_version,
}
"""What an engine may be tied to → what its value must be."""

_CHECKS: dict[str, Callable[[EngineEntry, Any, _Place], None]] = {
    "torch": _torch,
    "torch_minor": _torch_minor,
    "isa": _isa,
    "simd": _simd,
    "device": _device,
    "tensorrt": functools.partial(_library, "tensorrt", "TensorRT", "trt"),
    "tensorrt-rtx": functools.partial(_library, "tensorrt-rtx", "TensorRT-RTX", "rtx"),
    "version_compatible": _judged_with_another_key,
    "hardware_compatible": _hardware_compatible,
    "gpu": _gpu,
    "compute_capability": _compute_capability,
    "compute_capabilities": _compute_capabilities,
    "least_compute_capability": _least_compute_capability,
}
"""What an engine may be tied to → how it is judged; `isa` is spelled as Linux does: x86_64, aarch64; `simd` are the names of
instruction sets with spaces between them; `device` is `cpu` or `cuda`; `torch` a lowest version, `torch_minor` the only one."""


def _minor(version: str) -> tuple[int, ...]:
    """`2.15.0+cu132` → (2, 15)."""
    parts = version.partition("+")[0].split(".")[:2]
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in parts)
