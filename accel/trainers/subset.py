"""Which images of the train set a run learns from, and which it holds back."""

from __future__ import annotations

import numpy as np

from accel.trainers.recipe import Recipe
from accel.types import Array

HELD_OUT_SEED = 0
"""Of the 45k/5k split, which must be the same for every run that is compared."""


def split(labels: Array, recipe: Recipe, *, sorted_by_class: bool = False) -> tuple[Array, Array]:
    """Indices to learn from and to hold back, both ascending.

    `limit` caps the images before the split, `train_fraction` thins out what is learned from after it.

    Args:
        sorted_by_class: the first images are of few classes: `limit` takes some of all, the same in every run.
    """
    count = min(len(labels), recipe.limit or len(labels))
    generator = np.random.default_rng(HELD_OUT_SEED)
    learned, held = np.arange(count), np.arange(0)
    if sorted_by_class and count < len(labels):
        learned = np.sort(generator.permutation(len(labels))[:count])
    if recipe.split != "full":
        order = generator.permutation(learned)
        learned, held = np.sort(order[count // 10 :]), np.sort(order[: count // 10])
    return balanced(learned, labels, recipe.train_fraction, recipe.seed), held


def balanced(indices: Array, labels: Array, fraction: float, seed: int) -> Array:
    """The same `fraction` of every class, rounded, at least one image: drawn by `seed`, ascending.

    Of the same seed a smaller fraction's images are among those of a larger one.
    """
    if fraction == 1:
        return indices
    generator = np.random.default_rng(seed)
    classes = np.asarray(labels)[indices]
    kept = []
    for name in np.unique(classes):
        members = generator.permutation(indices[classes == name])
        kept.append(members[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(kept))
