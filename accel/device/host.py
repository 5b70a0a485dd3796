"""Between numpy arrays and the dtypes of a TensorSpec, on the host."""

from __future__ import annotations

import numpy as np

from accel.device import bfloat16
from accel.types import Array


def storage_dtype(dtype: str) -> np.dtype[np.generic]:
    """The numpy dtype that holds `dtype` (a key of types.ITEMSIZE): uint16 for bfloat16, else its own."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def convert_into(target: Array, values: Array, dtype: str) -> None:
    """Write `values` (any strides) into `target`, whose storage means `dtype`, rounding to nearest even."""
    if dtype == "bfloat16" and values.dtype != np.uint16:
        target[...] = bfloat16.from_float32(values)
    else:
        np.copyto(target, values, casting="unsafe")


def public_copy(storage: Array, dtype: str) -> Array:
    """An owned array of public dtype: every floating dtype becomes float32, all else stays as it is."""
    if dtype == "bfloat16":
        return bfloat16.to_float32(storage)
    if storage.dtype.kind == "f":
        return storage.astype(np.float32)
    return storage.copy()


def owned_copy(storage: Array, dtype: str) -> Array:
    """An owned array of the same dtype; bfloat16, which numpy lacks, becomes float32 (exactly)."""
    return bfloat16.to_float32(storage) if dtype == "bfloat16" else storage.copy()
