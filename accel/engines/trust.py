"""Who may execute what: plans, TorchScript and a module's factory are code; ONNX and safetensors are data.

Code runs for whoever says `trusted=True`, for the user who exported it, and under a signature by a key of `ACCEL_TRUSTED_KEYS`
(see `signing`). The per-user file `trusted.json` in the cache folder names the bundles that this user exported, by the SHA-256 of
accel.json, which covers the hash of every engine. A bundle that is changed or comes from elsewhere is not in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from accel.engines import onnx_data, signing, strict
from accel.engines.bundle import Bundle
from accel.errors import CorruptArtifact, UntrustedArtifact
from accel.files import cache_dir, write_text
from accel.locking import held
from accel.types import Checkpoint, EngineEntry

DATA_FORMATS: Mapping[str, Callable[[Path, EngineEntry], None]] = {"onnx": onnx_data.check}
"""Formats that a runtime interprets without executing code of the file's author → what holds a file to that; every other needs trust."""

_OUR_FACTORY = re.compile(r"accel\.trainers\.models(\.\w+)*:build\w*")
_PLAIN_DATA = re.compile(r"(imagefolder|npz):.*|[^:]*", re.DOTALL)
"""Test data that is read; every other spelling is imported and called (`accel.datasets.samples.open_samples`)."""
_KEPT = 10_000


def is_trusted(bundle: Bundle) -> bool:
    """Whether this user exported exactly this bundle."""
    return bundle.manifest_sha256 in _read()


def vouched_by(bundle: Bundle) -> str | None:
    """Why the code of `bundle` may run: `exported by this user`, or `signed by` a trusted key and which; None if nobody vouches for it.

    Raises:
        CorruptArtifact: it has a signature that is not of this accel.json. ConfigError: ACCEL_TRUSTED_KEYS cannot be read.
        MissingExtra: keys are trusted, and the package that checks signatures is absent.
    """
    if is_trusted(bundle):
        return "exported by this user"
    key = signing.trusted_signer(bundle.path, bundle.manifest_sha256)
    return None if key is None else f"signed by {key}"


def record(bundle: Bundle) -> None:
    """Remember that this user exported `bundle`.

    What the same folder was before stays known: a copy of it elsewhere may still be that, and both are named by their content alone.
    """
    with held(_file().with_suffix(".lock"), "its note of trusted bundles"):
        known = {digest: folder for digest, folder in _read().items() if digest != bundle.manifest_sha256}
        known[bundle.manifest_sha256] = str(bundle.path.resolve())
        write_text(_file(), strict.pretty(dict(list(known.items())[-_KEPT:])))


def demand_engine(bundle: Bundle, entry: EngineEntry, trusted: bool = False) -> None:
    """Refuse to hand a file of code to a runtime.

    Args:
        trusted: the caller vouches for it (`load(trusted=True)`).

    Raises:
        UntrustedArtifact: the engine is code, and neither the caller nor this user's record nor a trusted signature vouches for it.
        CorruptArtifact, ConfigError, MissingExtra: as `vouched_by`.
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


def demand_checkpoint(checkpoint: Checkpoint, trusted: bool, registered: Collection[str] = ()) -> None:
    """Refuse a checkpoint folder whose code is not accel's: a factory of its own to call, or test data to import.

    `accel train` writes none of these. Nobody signs a checkpoint, and which are this user's is not on record: the caller alone vouches.

    Args:
        registered: further factories that count as accel's: those of the models that can be trained here.

    Raises:
        UntrustedArtifact: there is such code, and the caller does not vouch for it.
    """
    said = []
    if not _OUR_FACTORY.fullmatch(checkpoint.factory) and checkpoint.factory not in registered:
        said.append(f"its model is built by calling {checkpoint.factory}")
    if not _PLAIN_DATA.fullmatch(checkpoint.dataset):
        said.append(f"its test data is code, {checkpoint.dataset}")
    if said and not trusted:
        raise UntrustedArtifact(
            f"the checkpoint {checkpoint.path} names code that is not accel's: {'; '.join(said)}",
            remedy="if you trust where it came from, pass trusted=True (--trusted), or type the code: "
            "accel export package.module:factory --weights FILE --input SHAPE",
        )


def demand_test_data(bundle: Bundle) -> None:
    """Refuse to import what an unknown bundle names as its test data.

    Raises:
        UntrustedArtifact: it is `package.module:iterable`, and neither this user's record nor a trusted signature vouches for it.
        CorruptArtifact, ConfigError, MissingExtra: as `vouched_by`.
    """
    if not bundle.has_checkpoint or _PLAIN_DATA.fullmatch(bundle.checkpoint.dataset) or vouched_by(bundle) is not None:
        return
    spec = bundle.checkpoint.dataset
    raise UntrustedArtifact(
        f"{bundle.path} was not exported by this user, {signing.standing(bundle.path)}, and its test data is code ({spec})",
        remedy=f"name the data: --data {spec} if you trust it, or another",
    )


def checked_file(bundle: Bundle, entry: EngineEntry) -> Path:
    """The file of `entry` that a runtime opens: whole, and if it is of a format that needs no trust, held to being data.

    Raises:
        CorruptArtifact: as `Bundle.file`, and of data as the format's own check. UntrustedArtifact: data that carries code.
    """
    file = bundle.file(entry)
    if entry.format in DATA_FORMATS:
        DATA_FORMATS[entry.format](file, entry)
    return file


def _demand(bundle: Bundle, why: str, trusted: bool) -> None:
    if not trusted and vouched_by(bundle) is None:
        raise UntrustedArtifact(
            f"{bundle.path} was not exported by this user, {signing.standing(bundle.path)}, and {why}",
            remedy=f"if you trust where it came from, pass trusted=True (--trusted), or name its signer's key in {signing.KEYS}; "
            "or use its ONNX engine, which is data",
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
