"""The labelled samples of a verification and the preprocessing that its bundle recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from accel.types import Array

if TYPE_CHECKING:
    from accel.datasets import Samples as Samples  # for rooms that may not import datasets
    from accel.engines import Bundle

Prepare = Callable[[Array], Array]
"""uint8 N×H×W×3 → the public input: float32 N×3×H×W, or the pixels themselves where the model normalises by itself."""


def open_data(spec: str) -> Samples:
    """Open `cifar10`, `cifar100`, `imagefolder:DIR`, `npz:FILE` or `pkg.mod:iterable`.

    Raises:
        DatasetMissing: the images are not here; the remedy fetches them.
    """
    from accel import datasets

    return datasets.open_samples(spec)


def preparation(bundle: Bundle) -> Prepare | None:
    """The bundle's preprocessing, or None if it takes no images."""
    from accel.preprocess import Preprocess

    return Preprocess.from_dict(bundle.preprocess).for_images(bundle.inputs[0]) if bundle.preprocess else None


def labels_of(samples: Samples) -> Array | None:
    """The labels as int64, or None."""
    return None if samples.labels is None else np.asarray(samples.labels, dtype=np.int64)
