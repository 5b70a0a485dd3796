"""Labelled test inputs by a short specification: what `accel verify --data` takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from accel.datasets import catalog, iterables, store
from accel.datasets.imagefolder import ImageFolder
from accel.errors import UsageError

REMEDY = f"spell it {', '.join(catalog.DATASETS)}, imagefolder:DIR, npz:FILE or package.module:iterable"


class Samples(Protocol):
    """Inputs in a fixed order, with labels where there are any.

    `[i]` is a uint8 H×W×3 image, still to be preprocessed, or a float32 C×H×W input that already is. `sha256` covers data and labels.
    """

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the labels' numbers; empty where the source gives none."""

    @property
    def labels(self) -> npt.NDArray[np.int64] | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> npt.NDArray[Any]: ...


def open_samples(spec: str) -> Samples:
    """Open what `spec` names.

    * `cifar10`, `cifar100`: the test split, from the cache.
    * `imagefolder:DIR`: one folder per class, sorted by name; images decoded by Pillow as they are asked for.
    * `npz:FILE`: `images` (uint8 N×H×W×3 or float32 N×C×H×W), and `labels` and `classes` if it has them.
    * `package.module:iterable`: an iterable, or a callable without arguments that returns one, of (input, label).

    Raises:
        UsageError: none of these, or what it names has not the form. DatasetMissing: not in the cache, or no such path.
        CorruptArtifact: a file that cannot be read. MissingExtra: Pillow is absent.
    """
    if spec in catalog.DATASETS:
        return _from_dataset(store.load(spec, "test"))
    kind, colon, rest = spec.partition(":")
    if not colon or not rest or not all(part.isidentifier() for part in kind.split(".")):
        raise UsageError(f"{spec!r} names no test data", remedy=REMEDY)
    opener = _OPENERS.get(kind)
    return opener(rest) if opener else iterables.open_iterable(kind, rest)


def _from_dataset(dataset: store.Dataset) -> Samples:
    # asarray drops the memmap subclass, whose views cost microseconds each.
    return iterables.ArraySamples(
        dataset.name, np.asarray(dataset.images), dataset.labels.astype(np.int64), dataset.classes, dataset.sha256
    )


_OPENERS: dict[str, Callable[[str], Samples]] = {
    "imagefolder": lambda text: ImageFolder(Path(text).expanduser()),
    "npz": lambda text: iterables.open_npz(Path(text).expanduser()),
}
