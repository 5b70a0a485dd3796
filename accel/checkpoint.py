"""Read and write a checkpoint folder: `weights.safetensors` (data, never pickle) and `checkpoint.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from accel.errors import CorruptArtifact
from accel.files import replacing, sha256_bytes, sha256_file
from accel.types import Array, Checkpoint, TensorSpec

_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("sha256", "name", "factory", "dataset"), (str,)),
    **dict.fromkeys(("num_classes", "seed"), (int,)),
    **dict.fromkeys(("factory_args", "preprocess", "recipe"), (dict,)),
    "top1": (int, float, type(None)),
}
_STORED = [field.name for field in dataclasses.fields(Checkpoint) if field.name != "path"]


def read_checkpoint(folder: Path) -> Checkpoint:
    """Open `folder` and hold its weights against the recorded SHA-256.

    Raises:
        CorruptArtifact: a file is absent, unreadable or edited.
    """
    remedy = f"train it again (accel train), or fetch {folder.name} again from where it came"
    try:
        data = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        values = {key: data[key] for key in _STORED}
        for key in ("input", "output"):
            values[key] = TensorSpec.from_dict(values[key])
        values["labels"] = tuple(values["labels"])
        wrong = [key for key, kinds in _KINDS.items() if not isinstance(values[key], kinds)]
        if wrong:
            raise TypeError(f"{wrong[0]} is a {type(values[wrong[0]]).__name__}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptArtifact(f"{folder} is not a checkpoint: checkpoint.json cannot be read ({error!r})", remedy=remedy) from error
    checkpoint = Checkpoint(path=folder, **values)
    if not checkpoint.weights.is_file():
        raise CorruptArtifact(f"{checkpoint.weights} is missing", remedy=remedy)
    found = sha256_file(checkpoint.weights)
    if found != checkpoint.sha256:
        raise CorruptArtifact(f"{checkpoint.weights} has SHA-256 {found}; checkpoint.json says {checkpoint.sha256}", remedy=remedy)
    return checkpoint


def write_checkpoint(checkpoint: Checkpoint, tensors: Mapping[str, Array]) -> Checkpoint:
    """Write `tensors` and their description into `checkpoint.path`, each atomically; returns it with its SHA-256.

    Raises:
        DiskFull: no space is left; what was there before is as it was.
    """
    from safetensors.numpy import save

    # Into memory first: safetensors' own writer hides a full disk behind an error of its own.
    data = save(dict(tensors))
    written = dataclasses.replace(checkpoint, sha256=sha256_bytes(data))
    with replacing(checkpoint.path / "checkpoint.json") as description:
        description.write_text(json.dumps(_plain(written), indent=2) + "\n", encoding="utf-8")
        # Once it is written, not before: new weights under the old description would be no checkpoint, and the old one gone.
        with replacing(checkpoint.weights) as weights:
            weights.write_bytes(data)
    return written


def exported_sha256(tensors: Mapping[str, Array]) -> str:
    """SHA-256 of the weights of a bundle that is exported from `tensors`: the same in float32, by which a set's rows name their model."""
    from safetensors.numpy import save

    return sha256_bytes(save({name: array.astype(np.float32) if array.dtype.kind == "f" else array for name, array in tensors.items()}))


def _plain(checkpoint: Checkpoint) -> dict[str, Any]:
    data = {name: getattr(checkpoint, name) for name in _STORED}
    data["input"], data["output"] = checkpoint.input.to_dict(), checkpoint.output.to_dict()
    return data
