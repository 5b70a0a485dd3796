"""bfloat16 in numpy, which has no such dtype: the upper half of a float32, stored as uint16."""

from __future__ import annotations

import numpy as np

from accel.types import Array


def from_float32(array: Array) -> Array:
    """Round float32 (any shape) to bfloat16, to nearest, ties to even; returns uint16 storage of the same shape.

    A NaN stays a NaN: the rounding carry could otherwise turn it into an infinity.
    """
    values = np.ascontiguousarray(array, dtype=np.float32).reshape(np.shape(array))
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x0040)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


def to_float32(storage: Array) -> Array:
    """Widen uint16 storage of bfloat16 (any shape) to float32, exactly."""
    return (storage.astype(np.uint32) << np.uint32(16)).view(np.float32)
