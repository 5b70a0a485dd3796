"""The one normalise and letterbox."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.errors import UsageError
from accel.preprocess import CIFAR10, CIFAR100, Preprocess, letterbox

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)

FIXED_BITS = [[3221137171, 1021063744, 1073856562], [3220925012, 1034302384, 1074204808], [3218514466, 1047032280, 1074227632]]
"""float32 bit patterns, channel by channel, worked out with Python floats and two roundings."""


def test_images_become_float32_nchw_that_the_caller_owns():
    output = CIFAR10(IMAGES)
    assert (output.shape, output.dtype) == ((5, 3, 32, 32), np.float32)
    assert output.flags.c_contiguous
    assert output.flags.owndata


def test_the_result_is_the_textbook_formula_up_to_rounding():
    exact = (IMAGES / 255.0 - CIFAR10.mean) / CIFAR10.std
    assert np.abs(CIFAR10(IMAGES) - exact.transpose(0, 3, 1, 2)).max() < 1e-6


def test_every_bit_is_fixed_by_the_documented_arithmetic():
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    pixels[0, 0, :3] = [[0, 1, 2], [127, 128, 129], [253, 254, 255]]
    found = CIFAR10(pixels)[0, :, 0, :3].view(np.uint32).tolist()
    assert found == FIXED_BITS


def test_a_batch_and_its_images_one_by_one_give_the_same_bits():
    alone = np.concatenate([CIFAR10(image[None]) for image in IMAGES])
    assert np.array_equal(alone.view(np.uint32), CIFAR10(IMAGES).view(np.uint32))


def test_an_image_in_any_memory_order_gives_the_same_bits():
    assert np.array_equal(CIFAR10(np.asfortranarray(IMAGES)), CIFAR10(IMAGES))


def test_an_empty_batch_stays_empty():
    assert CIFAR10(IMAGES[:0]).shape == (0, 3, 32, 32)


def test_one_channel_works_too():
    mnist = Preprocess((0.5,), (0.5,), 28, 28)
    assert mnist(np.full((2, 28, 28, 1), 255, np.uint8)).max() == 1.0


@pytest.mark.parametrize(
    "images",
    [IMAGES[0], IMAGES.astype(np.float32), IMAGES[..., :1], IMAGES.transpose(0, 3, 1, 2), IMAGES[:, :16]],
    ids=["no batch", "float", "one channel", "channels first", "another size"],
)
def test_other_inputs_are_refused_with_what_they_are(images):
    with pytest.raises(UsageError, match=r"preprocess takes .* was given"):
        CIFAR10(images)


def test_with_letterbox_another_size_is_fitted_in():
    boxed = dataclasses.replace(CIFAR10, resize="letterbox")
    output = boxed(np.full((2, 64, 16, 3), 200, np.uint8))
    assert output.shape == (2, 3, 32, 32)
    assert np.array_equal(boxed(IMAGES), CIFAR10(IMAGES))


@pytest.mark.parametrize("preprocess", [CIFAR10, CIFAR100, Preprocess((0.5,), (0.25,), 8, 9, "letterbox", (0, 1, 2))])
def test_it_survives_json(preprocess):
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


@pytest.mark.parametrize("change", [{"gamma": 2.2}, {"std": None}])
def test_unknown_and_missing_keys_are_refused(change):
    data = {key: value for key, value in {**CIFAR10.to_dict(), **change}.items() if value is not None}
    with pytest.raises(UsageError, match="keys"):
        Preprocess.from_dict(data)


@pytest.mark.parametrize("change", [{"std": (1.0, 0.0, 1.0)}, {"mean": (0.5,)}, {"height": 0}, {"resize": "crop"}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(UsageError):
        dataclasses.replace(CIFAR10, **change)


def test_a_wide_picture_gets_bars_above_and_below():
    boxed = letterbox(np.full((10, 40, 3), 7, np.uint8), 32, 32)
    assert (boxed[:12] == 128).all()
    assert (boxed[12:20] == 7).all()
    assert (boxed[20:] == 128).all()


def test_a_tall_picture_gets_bars_left_and_right_in_the_chosen_colour():
    boxed = letterbox(np.full((40, 10, 3), 7, np.uint8), 32, 32, (1, 2, 3))
    assert (boxed[:, :12] == (1, 2, 3)).all()
    assert (boxed[:, 12:20] == 7).all()
    assert (boxed[:, 20:] == (1, 2, 3)).all()


def test_a_picture_of_the_right_size_is_unchanged():
    assert np.array_equal(letterbox(IMAGES[0], 32, 32), IMAGES[0])


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_any_picture_fits_any_box_touching_two_sides(height, width, box_height, box_width):
    boxed = letterbox(np.full((height, width, 3), 7, np.uint8), box_height, box_width)
    inside = np.argwhere((boxed == 7).all(axis=2))
    extent = inside.max(axis=0) - inside.min(axis=0) + 1
    assert boxed.shape == (box_height, box_width, 3)
    assert extent[0] == box_height or extent[1] == box_width


@pytest.mark.parametrize("image", [IMAGES, IMAGES[0, :, :, :1], IMAGES[0].astype(float), IMAGES[0, :0]])
def test_letterbox_takes_one_rgb_picture(image):
    with pytest.raises(UsageError, match="letterbox takes"):
        letterbox(image, 32, 32)


def lanczos(line: np.ndarray, size: int) -> np.ndarray:
    """Resample one line to `size` by the textbook: sinc(x)·sinc(x/3), stretched by the factor of shrinking, in floats."""
    ratio = len(line) / size
    stretch = max(ratio, 1.0)
    output = np.empty(size)
    for place in range(size):
        distance = (np.arange(len(line)) + 0.5 - (place + 0.5) * ratio) / stretch
        weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0.0)
        output[place] = (weights * line).sum() / weights.sum()
    return output


@pytest.mark.parametrize("length", [19, 57, 400])
def test_the_resize_is_lanczos(length):
    line = np.random.default_rng(length).integers(60, 190, length)
    picture = np.repeat(np.repeat(line[None, :, None], length, axis=0), 3, axis=2).astype(np.uint8)
    fitted = letterbox(picture, 24, 24)
    assert np.abs(fitted[12, :, 1] - np.clip(lanczos(line, 24), 0, 255)).max() <= 1
    assert np.array_equal(fitted[0], fitted[23])


PHOTO = np.dstack([np.full((10, 40), colour, np.uint8) for colour in (255, 0, 7)])


def test_a_users_picture_is_fitted_in_though_the_model_takes_one_size_only():
    seen = CIFAR10.fit(PHOTO)
    assert seen.shape == (32, 32, 3)
    assert (seen[12:20] == (255, 0, 7)).all()
    assert (seen[[0, 11, 20, 31]] == 128).all()
    assert np.array_equal(CIFAR10.pictures(PHOTO[None]), CIFAR10(seen[None]))
    with pytest.raises(UsageError, match="was given 10x40"):
        CIFAR10(PHOTO[None])


def test_pictures_of_the_models_size_are_not_touched_and_need_no_pillow(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    assert np.array_equal(CIFAR10.fit(IMAGES[0]), IMAGES[0])
    assert np.array_equal(CIFAR10.pictures(IMAGES), CIFAR10(IMAGES))
    assert CIFAR10.pictures(IMAGES[:0]).shape == (0, 3, 32, 32)


def test_a_model_of_one_channel_sees_a_colour_picture_in_grey():
    mnist = Preprocess((0.5,), (0.5,), 28, 28)
    seen = mnist.fit(PHOTO)
    # Rec. 601: 0.299·255 + 0.587·0 + 0.114·7 = 77.0.
    assert (seen.shape, seen[14, 14, 0], seen[0, 0, 0]) == ((28, 28, 1), 77, 128)
    assert mnist.pictures(PHOTO[None]).shape == (1, 1, 28, 28)
    assert np.array_equal(mnist.pictures(seen[None]), mnist(seen[None]))


@pytest.mark.parametrize(
    "change",
    [{"mean": "abc", "std": "abc"}, {"std": [float("inf")] * 3}, {"height": "8"}, {"fill": 3}, {"mean": [None] * 3}, {"width": [8]}],
)
def test_what_is_no_number_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="preprocess has"):
        Preprocess.from_dict({**CIFAR10.to_dict(), **change})
