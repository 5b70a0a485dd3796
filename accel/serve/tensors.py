"""Tensors as Open Inference Protocol V2 writes them: lists of numbers in JSON, or little-endian bytes after it."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from accel.serve.reply import Refusal
from accel.types import Array

DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
"""V2's names of the dtypes that an engine may take."""

NAMES = {dtype: name for name, dtype in DATATYPES.items()} | {"bfloat16": "BF16"}

BINARY_ONLY = ("FP16",)
"""V2 has no FP16 in JSON."""

KINDS = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}
"""numpy's kind of a dtype → the kinds of JSON values that it takes: no truncated fractions, no numbers in quotes."""


def decode_binary(raw: memoryview, datatype: str, shape: Sequence[int], name: str) -> Array:
    """An array over `raw` without a copy, C order; raises Refusal (400) if it has not as many bytes as the shape says."""
    dtype = _dtype(datatype, name).newbyteorder("<")
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise Refusal(400, f"input {name!r}: {datatype} of shape {list(shape)} is {expected} bytes; binary_data_size is {len(raw)}")
    if datatype == "BOOL" and (np.frombuffer(raw, np.uint8) > 1).any():
        raise Refusal(400, f"input {name!r}: a byte of a BOOL tensor is 0 or 1")
    return np.frombuffer(raw, dtype).reshape(shape)


def decode_json(data: Any, datatype: str, shape: Sequence[int], name: str) -> Array:
    """An array of `data`, nested or flat, row major; raises Refusal (400) for values that are not of `datatype`, too many or too few."""
    dtype = _dtype(datatype, name)
    if datatype in BINARY_ONLY:
        raise Refusal(400, f"input {name!r}: {datatype} cannot be sent as JSON; send binary data or FP32")
    try:
        values = np.array(data)
    except (ValueError, OverflowError) as error:
        raise Refusal(400, f"input {name!r}: data is no rectangular list of numbers") from error
    if values.size != math.prod(shape):
        raise Refusal(400, f"input {name!r}: shape {list(shape)} is {math.prod(shape)} values; data has {values.size}")
    if values.size and values.dtype.kind not in KINDS[dtype.kind]:
        raise Refusal(400, f"input {name!r}: data has values that are not {datatype}")
    if dtype.kind in "iu" and values.size and not (np.iinfo(dtype).min <= values.min() and values.max() <= np.iinfo(dtype).max):
        raise Refusal(400, f"input {name!r}: data has values outside of {datatype}")
    with np.errstate(over="ignore"):
        array = values.astype(dtype).reshape(shape)
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise Refusal(400, f"input {name!r}: data has values outside of {datatype}")
    return array


def encode_binary(array: Array) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def encode_strings(strings: Iterable[str]) -> bytes:
    """A BYTES tensor: each element as a 4-byte length and its UTF-8."""
    return b"".join(struct.pack("<I", len(raw)) + raw for raw in (text.encode() for text in strings))


def _dtype(datatype: str, name: str) -> np.dtype[Any]:
    if datatype not in DATATYPES:
        raise Refusal(400, f"input {name!r}: datatype {datatype!r} is not supported; it is one of {', '.join(DATATYPES)}")
    return np.dtype(DATATYPES[datatype])
