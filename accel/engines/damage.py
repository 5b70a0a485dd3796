"""What became of a file whose hash is wrong, as far as its own bytes tell: for the message, not for a decision."""

from __future__ import annotations

import json
import mmap
import zipfile
from collections.abc import Callable
from pathlib import Path

from accel.engines import protobuf

_HEADER = 8
"""Bytes at the head of a safetensors file that say how long its JSON is, least significant first."""


def described(path: Path) -> str:
    """`it was cut short` where the file breaks off before its own contents say; else what can be said."""
    breaks_off = _BREAKS_OFF.get(path.suffix)
    try:
        if path.stat().st_size == 0 or (breaks_off is not None and breaks_off(path)):
            return "it was cut short"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "it was edited or damaged"
    return "it was edited, damaged or cut short" if breaks_off is None else "it was edited or damaged"


def _onnx(path: Path) -> bool:
    with open(path, "rb") as stream:
        data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        for _ in protobuf.fields(data):
            pass
    except (protobuf.BreaksOff, IndexError):
        return True
    return False


def _zip(path: Path) -> bool:
    """The table of contents stands at the end."""
    with open(path, "rb") as stream:
        return stream.read(4) == b"PK\x03\x04" and not zipfile.is_zipfile(stream)


def _safetensors(path: Path) -> bool:
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(_HEADER), "little")
        if length > path.stat().st_size:
            return True
        described = json.loads(stream.read(length))
    ends = [item["data_offsets"][1] for name, item in described.items() if name != "__metadata__"]
    return path.stat().st_size < _HEADER + length + max(ends, default=0)


_BREAKS_OFF: dict[str, Callable[[Path], bool]] = {
    ".onnx": _onnx,
    ".ts": _zip,
    ".pt2": _zip,
    ".npz": _zip,
    ".safetensors": _safetensors,
}
"""Suffix → whether such a file breaks off; plans do not say how long they are."""
