"""A bundle packaged for a system that serves models: what is there, and what all of them have in common."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accel.api.bundles import open_bundle
from accel.api.settings import resolve
from accel.engines import Bundle
from accel.errors import BundleMissing, UnknownName, UsageError
from accel.types import EngineEntry

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclasses.dataclass(frozen=True)
class Target:
    """One system.

    Attributes:
        writer: `module:function`, called with a Request.
        out: the folder that packages go to where none is named.
        options: keywords of `package` that it takes beside the common ones.
    """

    writer: str
    out: str
    options: tuple[str, ...] = ()


TARGETS: dict[str, Target] = {
    "triton": Target(
        "accel.integrations.triton:write",
        "triton",
        ("max_batch_size", "dynamic_batching", "instances", "device", "model_version", "warmup"),
    ),
    "mlflow": Target("accel.integrations.mlflow:write", "mlflow"),
}


@dataclasses.dataclass(frozen=True)
class Request:
    """Attributes:
    bundle: opened.
    engines: chosen by the user, else all of the bundle.
    named: whether the user chose them.
    out: the folder that the package goes into.
    name: of the package: one that a folder may have, and no path.
    force: replace what is there.
    options: of the target, without those that were not given.
    """

    bundle: Bundle
    engines: tuple[EngineEntry, ...]
    named: bool
    out: Path
    name: str
    force: bool
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Package:
    """One folder that was written.

    Attributes:
        name: of the model in the system.
        engine: the bundle's entry; `auto` where the system chooses when it loads.
        platform: what runs it there.
        max_batch: rows of one request at most; 0 where the shape is fixed.
        path: of the folder.
        size: bytes.
    """

    name: str
    engine: str
    platform: str
    max_batch: int | None
    path: Path
    size: int

    def to_row(self) -> dict[str, Any]:
        """As a table shows it; `size_mb` in 10^6 bytes."""
        data = dataclasses.asdict(self)
        return {**data, "path": str(self.path), "size_mb": round(data.pop("size") / 1e6, 3)}


@dataclasses.dataclass(frozen=True)
class Packaged:
    """All that was written; `notes` is what somebody should know of it."""

    packages: tuple[Package, ...]
    notes: tuple[str, ...]


def package(
    bundle: Path | str,
    to: str,
    *,
    out: Path | str | None = None,
    engines: Sequence[str] = (),
    name: str | None = None,
    force: bool = False,
    **options: Any,
) -> Packaged:
    """Write a bundle as `to` wants it; every file is held against its hash, none is run.

    Args:
        bundle: a folder `NAME.accel`, or a model's name in the engines folder.
        to: a key of TARGETS.
        out: the folder for packages; default the target's.
        engines: entries of the bundle (`onnx-fp16`) or formats (`onnx`); default all that the target can take.
        name: of the model there; default the bundle's.
        force: replace what is there.
        options: see the target's writer; None and False mean not given.

    Raises:
        UnknownName: no such target. UsageError: an option of another target, or something is there already.
        BundleMissing: no such bundle or engine. CorruptArtifact: a file is not what accel.json names. DiskFull.

    >>> package("engines/resnet18.accel", "triton", engines=["onnx-fp32"])  # doctest: +SKIP
    """
    if to not in TARGETS:
        raise UnknownName("package target", to, list(TARGETS))
    target = TARGETS[to]
    given = {key: value for key, value in options.items() if value is not None and value is not False}
    for key in given:
        if key not in target.options:
            takers = [other for other, row in TARGETS.items() if key in row.options]
            raise UsageError(f"--{key.replace('_', '-')} does not apply to {to}", remedy=f"leave it out, or use --to {' or '.join(takers)}")
    opened = open_bundle(bundle, resolve({})["engines_dir"])
    chosen = _chosen(opened, engines)
    module, _, function = target.writer.partition(":")
    request = Request(opened, chosen, bool(engines), Path(out or target.out).expanduser(), _checked(name or opened.name), force, given)
    written: Packaged = getattr(importlib.import_module(module), function)(request)
    return written


def folder_size(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _checked(name: str) -> str:
    # The bundle's own name is as its author wrote it: it must not lead anywhere.
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name of a model: it becomes a folder's", remedy="--name with letters, digits, '.', '_' and '-'")
    return name


def _chosen(bundle: Bundle, words: Sequence[str]) -> tuple[EngineEntry, ...]:
    """The entries that the words name, all without words, in the order of the bundle."""
    known = {word for entry in bundle.entries for word in (entry.name, entry.format)}
    if strange := [word for word in words if word not in known]:
        have = ", ".join(entry.name for entry in bundle.entries) or "no engines"
        raise BundleMissing(f"{bundle.path} has no engine {strange[0]!r}; it has {have}", remedy="name one of them, or export it")
    return tuple(entry for entry in bundle.entries if not words or {entry.name, entry.format} & set(words))
