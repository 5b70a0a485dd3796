"""Samples that lie in memory: from an .npz file, or from any iterable that Python code can name."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from accel.datasets.arrays import read_npz
from accel.errors import AccelError, CorruptArtifact, DatasetMissing, UsageError, of_users_code

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ArraySamples:
    """Samples over one array, or over a list of arrays that may differ in size."""

    name: str
    inputs: Sequence[npt.NDArray[Any]] | npt.NDArray[Any]
    labels: Labels | None
    classes: tuple[str, ...]
    sha256: str

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        return self.inputs[index]


def open_npz(path: Path) -> ArraySamples:
    """Read `images` and, if there are any, `labels` (whole numbers) and `classes` (text).

    Raises:
        DatasetMissing: no such file. CorruptArtifact: no .npz. UsageError: not the arrays that it should hold.
    """
    name = f"npz:{path}"
    if not path.is_file():
        raise DatasetMissing(f"{name} is not a file", remedy="name an .npz file with `images` and `labels`")
    try:
        arrays = read_npz(path, ("images", "labels", "classes"))
    except CorruptArtifact as error:
        raise CorruptArtifact(error.message, remedy="write it with numpy.savez(FILE, images=..., labels=...)") from error
    images = arrays.get("images")
    if images is None or images.ndim != 4 or not len(images) or not _is_input(images[0]):
        found = "no `images`" if images is None else f"`images` of {images.dtype} {images.shape}"
        raise UsageError(f"{name} has {found}", remedy="give uint8 N×H×W×3 pixels, or float32 N×C×H×W preprocessed inputs")
    images = np.ascontiguousarray(images)
    labels = _to_labels(arrays["labels"], len(images), name) if "labels" in arrays else None
    classes = tuple(str(label) for label in arrays["classes"]) if "classes" in arrays else ()
    return ArraySamples(name, images, labels, classes, _digest(images, labels))


def open_iterable(module: str, attribute: str) -> ArraySamples:
    """Import `module` and read `attribute` to its end.

    Raises:
        UsageError: it cannot be imported, is no iterable of (input, label), fails, or is empty.
    """
    name = f"{module}:{attribute}"
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"{name!r} names no test data: {error}",
            remedy="check the spelling and PYTHONPATH; other forms are cifar10, cifar100, imagefolder:DIR and npz:FILE",
        ) from error
    except Exception as error:
        raise of_users_code(f"{name} cannot be imported", error) from error
    try:
        inputs, labels = _read(found, name)
    except AccelError:
        raise
    except Exception as error:
        raise of_users_code(f"{name} failed", error) from error
    return ArraySamples(name, inputs, labels, (), _digest(inputs, labels))


def _read(found: Any, name: str) -> tuple[list[npt.NDArray[Any]], Labels | None]:
    if callable(found) and not isinstance(found, Iterable):
        found = _call(found, name)
    if not isinstance(found, Iterable):
        raise UsageError(f"{name} is a {type(found).__name__}", remedy="name an iterable of (input, label), or a callable that returns one")
    return _read_pairs(found, name)


def _call(function: Callable[..., Any], name: str) -> Any:
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise UsageError(f"{name} cannot be called without arguments: {error}", remedy="name a callable that needs none") from error
    return function()


def _read_pairs(pairs: Iterable[Any], name: str) -> tuple[list[npt.NDArray[Any]], Labels | None]:
    inputs: list[npt.NDArray[Any]] = []
    labels: list[Any] = []
    for index, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise UsageError(f"{name} gave a {type(pair).__name__} at position {index}", remedy="yield (input, label); label may be None")
        value = _to_array(pair[0], name)
        if not _is_input(value):
            raise UsageError(
                f"{name} gave an input of {value.dtype} {value.shape} at position {index}",
                remedy="yield uint8 H×W×3 pixels, or float32 C×H×W preprocessed inputs, without a batch dimension",
            )
        inputs.append(value)
        labels.append(pair[1])
    if not inputs:
        raise UsageError(f"{name} is empty", remedy="yield at least one (input, label); a generator object can be read only once")
    if all(label is None for label in labels):
        return inputs, None
    return inputs, _to_labels([-1 if label is None else label for label in labels], len(inputs), name)


def _to_array(value: Any, name: str) -> npt.NDArray[Any]:
    try:
        return np.ascontiguousarray(value)
    except (TypeError, ValueError) as error:  # a tensor on a GPU, or a ragged list
        raise UsageError(f"{name} gave a {type(value).__name__} that is no array: {error}", remedy="yield numpy arrays") from error


def _is_input(value: npt.NDArray[Any]) -> bool:
    pixels = value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3
    return value.size > 0 and (pixels or (value.dtype == np.float32 and value.ndim == 3))


def _to_labels(values: Any, count: int, name: str) -> Labels:
    labels = np.asarray(values)
    if labels.dtype.kind not in "iu" or labels.shape != (count,) or labels.min() < 0:
        raise UsageError(
            f"{name} has labels of {labels.dtype} {labels.shape} for {count} inputs", remedy="give one whole number, 0 or more, per input"
        )
    return labels.astype(np.int64)


def _digest(inputs: Iterable[npt.NDArray[Any]], labels: Labels | None) -> str:
    digest = hashlib.sha256()
    for value in inputs:
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        digest.update(value.data.cast("B"))
    if labels is not None:
        digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()
