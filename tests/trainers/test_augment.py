"""The vectorised augmentation against a slow one that goes image by image."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from trainable_net import TINY  # noqa: E402

from accel.preprocess import CIFAR10  # noqa: E402
from accel.trainers import augment  # noqa: E402

COUNT = 40


@pytest.fixture
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(1, 255, (COUNT, 32, 32, 3), dtype=np.uint8))


def generator(seed: int = 0):
    return torch.Generator().manual_seed(seed)


def draws(epoch: int = 0, seed: int = 0, **changes):
    first = augment.first_mirrored(COUNT, generator(7))
    return augment.draw(dataclasses.replace(TINY, **changes), epoch, (32, 32), first, generator(seed))


def slow_crop_and_flip(image: np.ndarray, top: int, left: int, mirrored: bool, padding: int = 4) -> np.ndarray:
    bordered = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
    window = bordered[top + padding : top + padding + 32, left + padding : left + padding + 32]
    return window[:, ::-1] if mirrored else window


def slow_cut_out(image: np.ndarray, row: int, column: int, size: int) -> np.ndarray:
    image = image.copy()
    for y in range(row - size // 2, row - size // 2 + size):
        for x in range(column - size // 2, column - size // 2 + size):
            if 0 <= y < 32 and 0 <= x < 32:
                image[y, x] = 0
    return image


@pytest.mark.parametrize("size", [5, 8])
def test_an_epoch_equals_the_slow_one_image_by_image(images, size):
    drawn = draws(cutout=size)
    moved = augment.crop_and_flip(images, drawn.order, drawn.top, drawn.left, drawn.mirrored)
    got = augment.cut_out(moved, drawn.hole_row, drawn.hole_column, size).numpy()
    for position in range(COUNT):
        picked = images[drawn.order[position]].numpy()
        shifted = slow_crop_and_flip(picked, int(drawn.top[position]), int(drawn.left[position]), bool(drawn.mirrored[position]))
        want = slow_cut_out(shifted, int(drawn.hole_row[position]), int(drawn.hole_column[position]), size)
        np.testing.assert_array_equal(got[position], want)


def test_normalise_is_the_preprocessing_of_the_checkpoint(images):
    got = augment.normalise(images, CIFAR10.mean, CIFAR10.std, torch.float32)
    np.testing.assert_allclose(got.permute(0, 3, 1, 2).numpy(), CIFAR10(images.numpy()), atol=2e-6)


def test_normalise_in_chunks_changes_nothing(images, monkeypatch):
    whole = augment.normalise(images, CIFAR10.mean, CIFAR10.std, torch.bfloat16)
    monkeypatch.setattr(augment, "CHUNK", 7)
    assert torch.equal(augment.normalise(images, CIFAR10.mean, CIFAR10.std, torch.bfloat16), whole)


def test_without_crop_flip_and_cutout_an_epoch_is_a_permutation(images):
    drawn = draws(crop_padding=0, flip="none", cutout=0)
    assert torch.equal(augment.crop_and_flip(images, drawn.order, drawn.top, drawn.left, drawn.mirrored), images[drawn.order])
    assert sorted(drawn.order.tolist()) == list(range(COUNT))


def test_alternating_flip_mirrors_each_image_in_every_second_epoch():
    def by_image(epoch: int):
        drawn = draws(epoch, seed=epoch)
        mirrored = torch.empty(COUNT, dtype=torch.bool)
        mirrored[drawn.order] = drawn.mirrored
        return mirrored

    even, odd, even_again = by_image(0), by_image(1), by_image(2)
    assert torch.equal(even, ~odd)
    assert torch.equal(even, even_again)
    assert 0 < int(even.sum()) < COUNT


def test_random_flip_is_a_coin_and_none_mirrors_nothing():
    assert 0 < int(draws(flip="random").mirrored.sum()) < COUNT
    assert not draws(flip="none").mirrored.any()


def test_shifts_reach_the_whole_border_and_no_further():
    first = augment.first_mirrored(5000, generator())
    drawn = augment.draw(TINY, 0, (32, 32), first, generator())
    for shift in (drawn.top, drawn.left):
        assert (int(shift.min()), int(shift.max())) == (-4, 4)
    for centre in (drawn.hole_row, drawn.hole_column):
        assert (int(centre.min()), int(centre.max())) == (0, 31)


def test_the_same_generator_state_draws_the_same():
    one, same, other = draws(seed=3), draws(seed=3), draws(seed=4)
    assert torch.equal(one.order, same.order)
    assert torch.equal(one.top, same.top)
    assert not torch.equal(one.order, other.order)
