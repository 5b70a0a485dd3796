"""What is in a bundle, as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accel import exporters
from accel.api import bundles
from accel.api.settings import resolve
from accel.engines import Bundle, measured, signing, trust, tuned, verified
from accel.errors import ArtifactError, ConfigError, CorruptArtifact, MissingError
from accel.types import EngineEntry


def describe(bundle: Path | str = "resnet18") -> dict[str, Any]:
    """All that the bundle says of itself, each file held against its hash; needs no runtime.

    Returns:
        JSON-ready: `model`, `path`, `checkpoint`, `inputs`, `outputs`, `preprocess`, `labels`, `engines`, `golden`, `reference`,
        `verified`, `measured`, `tuned`, `trusted` (exported by this user), `vouched_by` (why its code may run), `signed_by` (the key's
        name, unchecked). An engine of a format that has a plan has its rows under `details`. Sizes are in MB (10^6 bytes). A file that is
        missing or edited is said in its place, not raised.

    Raises:
        BundleMissing: there is none. CorruptArtifact, IncompatibleArtifact: accel.json cannot be read.
    """
    opened = bundles.open_bundle(bundle, resolve({})["engines_dir"])
    return {
        "model": opened.name,
        "path": str(opened.path),
        "accel_json_sha256": opened.manifest_sha256,
        "trusted": trust.is_trusted(opened),
        "vouched_by": _vouched_by(opened),
        "signed_by": _or_error(lambda: "" if (found := signing.read(opened.path)) is None else found.key_id),
        "inputs": [spec.to_dict() for spec in opened.inputs],
        "outputs": [spec.to_dict() for spec in opened.outputs],
        "preprocess": dict(opened.preprocess),
        "labels": list(opened.labels),
        "checkpoint": _checkpoint(opened),
        "engines": [_engine(opened, entry) for entry in opened.entries],
        "golden": _or_error(lambda: _golden(opened)),
        "reference": _or_error(lambda: "absent" if (found := opened.reference()) is None else f"{len(found.logits)} samples"),
        "verified": list(verified.read(opened.path).values()),
        "measured": list(measured.read(opened.path).values()),
        "tuned": list(tuned.read(opened.path).values()),
    }


def _golden(bundle: Bundle) -> str:
    samples = bundle.golden()
    # Parity with what the file itself answered says that a runtime runs it, and nothing of the model that it was made from.
    by = "" if bundle.has_checkpoint else ", answered by the ONNX file itself" if samples.outputs else ", without answers"
    return f"{len(samples)} samples{by}"


def _vouched_by(bundle: Bundle) -> str:
    try:
        return trust.vouched_by(bundle) or ""
    except (ArtifactError, MissingError, ConfigError):
        # What is wrong with a signature, or with the keys, is told by whoever asks for trust, and by `accel bundle verify`.
        return ""


def _checkpoint(bundle: Bundle) -> dict[str, Any] | str:
    if not bundle.has_checkpoint:
        return "absent: the bundle was made from an engine file"
    try:
        found = bundle.checkpoint
    except CorruptArtifact as error:
        return error.message
    facts = {name: getattr(found, name) for name in ("factory", "dataset", "num_classes", "top1", "seed", "sha256")}
    return {**facts, "size_mb": found.weights.stat().st_size / 1e6}


def _engine(bundle: Bundle, entry: EngineEntry) -> dict[str, Any]:
    sizes = [(bundle.path / file).stat().st_size for file in entry.files if (bundle.path / file).is_file()]
    state = _or_error(lambda: "whole" if bundle.file(entry) else "")
    details: list[dict[str, Any]] = []
    if state == "whole":
        try:
            details = exporters.details(entry, bundle.path / next(iter(entry.files)))
        except CorruptArtifact as error:
            state = error.message
    return {**entry.to_dict(), "size_mb": sum(sizes) / 1e6, "state": state, **({"details": details} if details else {})}


def _or_error(read: Any) -> str:
    try:
        return str(read())
    except CorruptArtifact as error:
        return error.message
