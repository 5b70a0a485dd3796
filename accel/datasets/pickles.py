"""Read the CIFAR pickles without trusting pickle: nothing but a uint8 array, lists, strings and numbers can come out.

A pickle is a program whose only way out of its sandbox is a global name. This unpickler admits the names that an array is pickled
under, and no other, and answers them with stand-ins of its own, so a hostile file ends in an error instead of a shell. The official
files were pickled by Python 2 (`numpy.core.multiarray`); re-pickled ones name `numpy._core` and `_codecs`.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Any

import numpy as np
import numpy.typing as npt

from accel.datasets.arrays import Arrays, to_labels
from accel.datasets.catalog import IMAGE_SHAPE
from accel.errors import CorruptArtifact


def read_batch(data: bytes, label_key: str, where: str) -> Arrays:
    """Decode one CIFAR batch: a dict of `data` (uint8 N×3072, planes of red, green, blue) and a list of N labels.

    Args:
        label_key: `labels` in CIFAR-10, `fine_labels` in CIFAR-100.
        where: the file, for messages.

    Raises:
        CorruptArtifact: not such a pickle, or one that asks for anything else.
    """
    try:
        _refuse_oversized(data)
        batch = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    except CorruptArtifact as error:
        raise CorruptArtifact(f"{where} was refused: {error.message}", remedy=_REMEDY) from error
    except _BROKEN as error:
        raise CorruptArtifact(f"{where} is not a CIFAR batch: {error}", remedy=_REMEDY) from error
    if not isinstance(batch, dict):
        raise CorruptArtifact(f"{where} holds a {type(batch).__name__}, not a dict", remedy=_REMEDY)
    # Python 3 pickles made from `encoding="bytes"` have bytes for keys.
    named = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    named = {key: value.array if isinstance(value, _Pixels) else value for key, value in named.items()}
    pixels = named.get("data")
    if not isinstance(pixels, np.ndarray) or pixels.shape[1:] != (math.prod(IMAGE_SHAPE),):
        raise CorruptArtifact(f"{where} has no uint8 array `data` of N rows", remedy=_REMEDY)
    if label_key not in named:
        raise CorruptArtifact(f"{where} has no `{label_key}`; it has {sorted(map(str, named))}", remedy=_REMEDY)
    labels = to_labels(named[label_key], where)
    if len(labels) != len(pixels):
        raise CorruptArtifact(f"{where} has {len(pixels)} images and {len(labels)} labels", remedy=_REMEDY)
    planes = pixels.reshape(-1, IMAGE_SHAPE[2], *IMAGE_SHAPE[:2])
    return Arrays(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels)


_REMEDY = "fetch the dataset again from another copy"

_MEMO_WRITES = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})

# What a damaged stream raises: pickle's documentation names the first five and says that there are others.
_BROKEN = (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError, ValueError, OverflowError)


def _refuse_oversized(data: bytes) -> None:
    """Walk the opcodes without running them: the unpickler allocates what two of them announce before it looks whether it is there."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "BYTEARRAY8" or (opcode.name in _MEMO_WRITES and int(argument or 0) > len(data)):
            raise CorruptArtifact(f"its pickle uses {opcode.name} in a way that a CIFAR batch has no use for")


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise CorruptArtifact(f"its pickle asks for {module}.{name}, which a CIFAR batch has no use for") from None

    def persistent_load(self, pid: Any) -> Any:
        raise CorruptArtifact("its pickle asks for an object outside the file")


class _ByteType:
    """Stands in for `numpy.dtype`: single bytes alone. numpy's own would let the pickle define what an element is."""

    def __init__(self, code: Any, *_: Any) -> None:
        if code not in ("u1", "|u1", "uint8"):
            raise CorruptArtifact(f"its pickle holds an array of {code!r}, not of uint8")

    def __setstate__(self, state: Any) -> None:
        """Byte order and fields: a byte has neither."""


class _Pixels:
    """Stands in for `numpy.ndarray`, whose own `__setstate__` would be handed whatever the pickle says."""

    array: npt.NDArray[np.uint8] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, raw = state
        if not isinstance(kind, _ByteType):
            raise CorruptArtifact("its pickle holds an array of an unknown type")
        # Python 2 wrote bytes as str; the unpickler has read them as latin1, one character a byte.
        data = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
        self.array = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: Any) -> _Pixels:
    """numpy's `_reconstruct`: an empty array, which `__setstate__` fills."""
    return _Pixels()


def _encode(text: str, encoding: str) -> bytes:
    """`_codecs.encode` for the one codec that protocol 2 writes bytes with; the others include decompressors."""
    if encoding != "latin1":
        raise CorruptArtifact(f"its pickle encodes with {encoding!r}")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Pixels,
    ("numpy", "dtype"): _ByteType,
    ("_codecs", "encode"): _encode,
}
