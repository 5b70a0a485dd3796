"""`config.pbtxt`: what Triton is told of an engine, written as protobuf's text format without protobuf.

The messages are those of Triton's `model_config.proto`; `tests/integrations/test_triton.py` reads the files back with that schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from accel.types import TensorSpec

DTYPES = {
    "float64": "TYPE_FP64",
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}
"""Every dtype of a TensorSpec → Triton's DataType."""

LABELS_FILE = "labels.txt"


class Word(str):
    """The name of an enumerator, which stands in the file without quotes."""


def tensors(specs: Sequence[TensorSpec], names: Sequence[str], batched: bool) -> list[dict[str, Any]]:
    """ModelInput or ModelOutput of each spec.

    Args:
        names: as the backend knows them.
        batched: the first dimension is Triton's own and is left out of `dims`; else it is there, and -1 where it is dynamic.
    """
    return [
        {"name": name, "data_type": Word(DTYPES[spec.dtype]), "dims": dims(spec, batched)} for spec, name in zip(specs, names, strict=True)
    ]


def dims(spec: TensorSpec, batched: bool) -> list[int]:
    """The shape as Triton writes it: -1 for a dynamic size, without the batch where that is Triton's own."""
    return [-1 if isinstance(size, str) else size for size in spec.shape[1 if batched else 0 :]]


def parameter(key: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of `parameters`, which backends pass over where they do not know it: plain data as JSON."""
    return {"key": key, "value": {"string_value": json.dumps(value, sort_keys=True)}}


def to_text(message: Mapping[str, Any], indent: str = "") -> str:
    """A message in protobuf's text format: a mapping is a message, a list a repeated field, a Word an enumerator."""
    lines = []
    for key, value in message.items():
        if isinstance(value, list) and all(type(item) is int for item in value):
            lines.append(f"{indent}{key}: [ {', '.join(map(str, value))} ]\n")
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                lines.append(f"{indent}{key} {{\n{to_text(item, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{key}: {_scalar(item)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Word | int):
        return str(value)
    # As protobuf's own printer writes strings: octal for every byte that is not printable ASCII.
    plain = {byte: chr(byte) for byte in range(0x20, 0x7F)} | {ord('"'): '\\"', ord("\\"): "\\\\"}
    return '"' + "".join(plain.get(byte) or f"\\{byte:03o}" for byte in value.encode("utf-8")) + '"'
