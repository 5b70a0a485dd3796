"""The inputs that are rotated while timing: real, seeded, distinct, and the same for every variant of a set."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from accel.errors import UsageError
from accel.types import Array

if TYPE_CHECKING:
    from accel.engines import Golden


def rotated(golden: Golden, count: int, batch: int, seed: int) -> list[dict[str, Array]]:
    """`count` batches of the golden inputs (float32, by public name), drawn without a repeat until the samples run out.

    The golden noise inputs come after the images and are left out where there are images: users send images.

    Raises:
        UsageError: there are too few samples, or two batches are the same or one all zero, which caches or branches may make faster.
    """
    rows = _rows(golden)
    if rows < count:
        raise UsageError(f"golden.npz holds {rows} samples and {count} distinct inputs are rotated", remedy="export the model again")
    generator = np.random.default_rng(seed)
    drawn: list[int] = []
    while len(drawn) < count * batch:
        drawn.extend(generator.permutation(rows).tolist())
    picks = np.array(drawn[: count * batch]).reshape(count, batch)
    batches = [{name: np.ascontiguousarray(array[pick]) for name, array in golden.inputs.items()} for pick in picks]
    distinct = {tuple(array.tobytes() for array in given.values()) for given in batches if any(array.any() for array in given.values())}
    if len(distinct) < count:
        what = f"{count} distinct inputs are rotated, and of those drawn from golden.npz {len(distinct)} differ and are not all zero"
        raise UsageError(what, remedy="choose another seed, or export the model again with samples that differ")
    return batches


def input_sha256(golden: Golden, count: int, batch: int, seed: int) -> str:
    """Over the canonical uint8 images, before any conversion (over the float32 inputs of a model that takes no images), and the draw."""
    digest = hashlib.sha256(f"{count}/{batch}/{seed}".encode())
    arrays = [golden.images] if golden.images is not None else [golden.inputs[name] for name in sorted(golden.inputs)]
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _rows(golden: Golden) -> int:
    inputs = min(len(array) for array in golden.inputs.values())
    return inputs if golden.images is None else min(inputs, len(golden.images))
