"""What a row says about the model and the engine's file, read without torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from accel.engines import Bundle

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Tensors of a state dict that BatchNorm keeps and training does not learn: no parameters."""


def parameters(weights: Path) -> int:
    """Learned numbers in a safetensors file, counted from its header."""
    with open(weights, "rb") as stream:
        header: dict[str, Any] = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    tensors = {name: item for name, item in header.items() if name != "__metadata__" and not name.endswith(_BUFFERS)}
    return sum(math.prod(item["shape"]) for item in tensors.values())


def columns(bundle: Bundle, entry_name: str | None) -> dict[str, Any]:
    """The workload and variant columns of the engine `entry_name`, or of the module where that is None."""
    checkpoint = bundle.checkpoint if bundle.has_checkpoint else None
    entry = next((item for item in bundle.entries if item.name == entry_name), None)
    files = [bundle.path / name for name in entry.files] if entry else [checkpoint.weights] if checkpoint else []
    sha256 = next(iter(entry.files.values())) if entry else checkpoint.sha256 if checkpoint else None
    return {
        "model": bundle.name,
        "weights_sha256": checkpoint.sha256 if checkpoint else None,
        "engine": entry_name,
        "engine_sha256": sha256,
        # An ONNX file that was made elsewhere says 0.
        "export_s": entry.built_s or None if entry else None,
        "size_mb": round(sum(path.stat().st_size for path in files) / 1e6, 3),
        "params": parameters(checkpoint.weights) if checkpoint else None,
    }
