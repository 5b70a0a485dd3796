"""One hash for all that decides what a variant answers: a result is looked up by it, never by a name."""

from __future__ import annotations

from typing import Any

from accel.engines import strict
from accel.engines.module import source_sha256
from accel.errors import UsageError
from accel.files import sha256_bytes
from accel.types import Checkpoint, EngineSource


def variant_identity(source: EngineSource, checkpoint: Checkpoint | None, runtime_version: str, device_name: str) -> str:
    """SHA-256 (hex) over canonical JSON: runtime and version, precision, options, batch, device, and the engine's bytes
    or, where there is none, the weights with the factory, its arguments and its source file.

    The number of CPU threads is left out: it changes the time, not the answer.

    Raises:
        UsageError: neither an engine nor a checkpoint.
    """
    facts = {
        "runtime": source.variant.runtime,
        "runtime_version": runtime_version,
        "precision": source.variant.precision,
        "options": sorted(source.variant.options),
        "batch": source.batch,
        "device": device_name,
        "model": _model(source, checkpoint),
    }
    return sha256_bytes(strict.canonical(facts))


def _model(source: EngineSource, checkpoint: Checkpoint | None) -> dict[str, Any]:
    if source.entry is not None:
        return {"format": source.entry.format, "files": sorted(source.entry.files.values())}
    if checkpoint is None:
        raise UsageError(f"{source.variant} has neither an engine file nor a checkpoint, so nothing identifies it")
    return {
        "weights": checkpoint.sha256,
        "factory": checkpoint.factory,
        "factory_args": dict(checkpoint.factory_args),
        "source": source_sha256(checkpoint.factory),
        # Only where it is a part of the model, so that what is on record of all others is found again.
        **({"embedded": dict(checkpoint.preprocess)} if checkpoint.input.is_pixels else {}),
    }
