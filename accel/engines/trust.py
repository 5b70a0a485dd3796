"""Who may execute what: plans, TorchScript and a module's factory are code; ONNX and safetensors are data.

The per-user file `trusted.json` in the cache folder names the bundles that this user exported, by the SHA-256 of accel.json,
which covers the hash of every engine. A bundle that is changed or comes from elsewhere is not in it.
"""

from __future__ import annotations

import re
from pathlib import Path

from accel.engines import strict
from accel.engines.bundle import Bundle
from accel.errors import CorruptArtifact, UntrustedArtifact
from accel.files import cache_dir, write_text
from accel.locking import held
from accel.types import EngineEntry

DATA_FORMATS = frozenset({"onnx"})
"""Formats that a runtime interprets without executing code of the file's author; every other needs trust."""

_OUR_FACTORY = re.compile(r"accel\.trainers\.models(\.\w+)*:build\w*")
_KEPT = 1000


def is_trusted(bundle: Bundle) -> bool:
    """Whether this user exported exactly this bundle."""
    return bundle.manifest_sha256 in _read()


def record(bundle: Bundle) -> None:
    """Remember that this user exported `bundle`, in place of what was remembered for the same folder."""
    with held(_file().with_suffix(".lock"), "its note of trusted bundles"):
        where = str(bundle.path.resolve())
        known = {digest: folder for digest, folder in _read().items() if folder != where}
        known[bundle.manifest_sha256] = where
        write_text(_file(), strict.pretty(dict(list(known.items())[-_KEPT:])))


def demand_engine(bundle: Bundle, entry: EngineEntry, trusted: bool = False) -> None:
    """Refuse to hand a file of code to a runtime.

    Args:
        trusted: the caller vouches for it (`load(trusted=True)`).

    Raises:
        UntrustedArtifact: the engine is code and neither the caller nor this user's record vouches for it.
    """
    if entry.format not in DATA_FORMATS:
        _demand(bundle, f"{entry.name} is code ({entry.format})", trusted)


def demand_module(bundle: Bundle, trusted: bool = False) -> None:
    """Refuse to call a factory that an unknown bundle names; those of `accel.trainers.models` are our own.

    Raises:
        UntrustedArtifact: as demand_engine.
    """
    factory = bundle.checkpoint.factory
    if not _OUR_FACTORY.fullmatch(factory):
        _demand(bundle, f"its model is built by calling {factory}", trusted)


def _demand(bundle: Bundle, why: str, trusted: bool) -> None:
    if not trusted and not is_trusted(bundle):
        raise UntrustedArtifact(
            f"{bundle.path} was not exported by this user, and {why}",
            remedy="if you trust where it came from, pass trusted=True (--trusted); or use its ONNX engine, which is data",
        )


def _file() -> Path:
    return cache_dir() / "trusted.json"


def _read() -> dict[str, str]:
    if not _file().is_file():
        return {}
    data = strict.read_object(_file(), f"delete {_file()} and export again")
    if not strict.is_text_map(data):
        raise CorruptArtifact(f"{_file()} is no record of trusted bundles", remedy=f"delete {_file()} and export again")
    return data
