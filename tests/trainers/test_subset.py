from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from trainable_net import TINY

from accel.trainers.subset import split

LABELS = np.array([0] * 100 + [1] * 60 + [2] * 3)


def chosen(**changes) -> tuple[np.ndarray, np.ndarray]:
    return split(LABELS, dataclasses.replace(TINY, **changes))


def test_the_whole_train_set_is_learned_from_unless_asked_otherwise():
    learned, held = chosen()
    assert np.array_equal(learned, np.arange(163))
    assert len(held) == 0
    assert np.array_equal(chosen(limit=20)[0], np.arange(20))


def test_a_held_out_tenth_is_the_same_for_every_seed_and_fraction():
    learned, held = chosen(split="45k/5k")
    assert (len(learned), len(held)) == (147, 16)
    assert sorted([*learned, *held]) == list(range(163))
    assert np.array_equal(chosen(split="45k/5k", seed=5, train_fraction=0.5)[1], held)


@pytest.mark.parametrize(("fraction", "counts"), [(0.25, [25, 15, 1]), (0.1, [10, 6, 1]), (1.0, [100, 60, 3])])
def test_a_fraction_takes_the_same_share_of_every_class_and_at_least_one(fraction, counts):
    learned = chosen(train_fraction=fraction)[0]
    assert np.bincount(LABELS[learned]).tolist() == counts
    assert np.array_equal(learned, np.unique(learned))


def test_a_smaller_fraction_lies_within_a_larger_one_and_the_seed_draws_it():
    small, large = chosen(train_fraction=0.1)[0], chosen(train_fraction=0.5)[0]
    assert set(small) < set(large)
    assert np.array_equal(chosen(train_fraction=0.1)[0], small)
    assert not np.array_equal(chosen(train_fraction=0.1, seed=1)[0], small)


def test_a_limit_of_images_that_are_sorted_by_class_takes_some_of_all_the_same_for_every_seed():
    learned, held = split(LABELS, dataclasses.replace(TINY, limit=80, split="45k/5k"), sorted_by_class=True)
    assert (len(learned), len(held), len(np.intersect1d(learned, held))) == (72, 8, 0)
    assert (np.bincount(LABELS[np.concatenate([learned, held])]) >= [30, 20, 1]).all()
    again, _ = split(LABELS, dataclasses.replace(TINY, limit=80, split="45k/5k", seed=5), sorted_by_class=True)
    assert np.array_equal(learned, again)
