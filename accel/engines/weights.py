"""Read safetensors as numpy, everything floating upcast to FP32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from accel.errors import CorruptArtifact
from accel.types import Array

_STORED = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}


def read_weights(path: Path) -> dict[str, Array]:
    """Tensors by name; FP16, BF16 and FP64 become float32, integers and booleans stay.

    Raises:
        CorruptArtifact: truncated, not safetensors, or of a dtype that no checkpoint of ours has.
    """
    # Here, because a worker in a foreign environment opens bundles and has only numpy and its runtime.
    from safetensors import SafetensorError, deserialize

    remedy = f"copy {path.name} again from where it came, or train the model again"
    try:
        tensors: Any = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except (OSError, SafetensorError) as error:
        raise CorruptArtifact(f"{path} cannot be read: {error}", remedy=remedy) from error
    weights = {}
    for name, tensor in tensors:
        if tensor["dtype"] not in _STORED:
            raise CorruptArtifact(f"{path}: {name} has the dtype {tensor['dtype']}, which accel does not read", remedy=remedy)
        weights[name] = _upcast(np.frombuffer(tensor["data"], _STORED[tensor["dtype"]]), tensor["dtype"]).reshape(tensor["shape"])
    return weights


def _upcast(values: Array, stored: str) -> Array:
    if stored == "BF16":
        # bfloat16 is the upper half of a float32.
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32) if stored in ("F64", "F16") else values.copy()
