"""RandAugment (Cubuk et al., 2020): `n` random operations an image, each as strong as `magnitude` (0 to 30) says.

All 14 operations of the paper, with torchvision's strengths, run on all images that drew them at once: identity; shear, translation
(along x and y) and rotation, bilinear about the centre; brightness, colour, contrast, sharpness, posterize, solarize, autocontrast
and equalize. Images are float32 N×H×W×3 from 0 to 255.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from accel.trainers.affine import Maps, rotations, shears, warp
from accel.types import Array

if TYPE_CHECKING:
    from torch import Tensor

    from accel.trainers.recipe import Recipe

STREAM = 4
"""Of the seed's random numbers; see affine.STREAM."""
STRONGEST = 30
LUMA = (0.2989, 0.587, 0.114)


def draw_operations(recipe: Recipe, epoch: int, count: int) -> tuple[Array, Array]:
    """Which operations and with which sign: int64 and float32 count×n, a function of seed and epoch."""
    generator = np.random.default_rng([recipe.seed, epoch, STREAM])
    shape = (count, recipe.randaugment)
    return generator.integers(0, len(OPERATIONS), shape), generator.choice(np.array([-1, 1], np.float32), shape)


def augmented(images: Tensor, chosen: Array, signs: Array, magnitude: float, fill: Tensor) -> Tensor:
    """Run the drawn operations one after the other.

    Args:
        images: changed in place.
        chosen, signs: of these images, N×n.
        fill: (3,), the colour of what a geometric operation brings in from beyond the border.
    """
    import torch

    for turn in range(chosen.shape[1]):
        for number, operation in enumerate(OPERATIONS.values()):
            picked = np.flatnonzero(chosen[:, turn] == number)
            if len(picked):
                index = torch.from_numpy(picked).to(images.device)
                level = torch.from_numpy(signs[picked, turn] * np.float32(magnitude / STRONGEST)).to(images.device)
                images[index] = operation(images[index], level, fill)
    return images


def _identity(images: Tensor, level: Tensor, fill: Tensor) -> Tensor:
    return images


def _moved(images: Tensor, maps: Maps, fill: Tensor) -> Tensor:
    return warp(images - fill, maps) + fill


def _still(images: Tensor) -> Tensor:
    return images.new_zeros(len(images), 2)


def _shear_x(images: Tensor, level: Tensor, fill: Tensor) -> Tensor:
    return _moved(images, Maps(shears(0.3 * level, 0 * level), _still(images)), fill)


def _shear_y(images: Tensor, level: Tensor, fill: Tensor) -> Tensor:
    return _moved(images, Maps(shears(0 * level, 0.3 * level), _still(images)), fill)


def _translate(images: Tensor, level: Tensor, fill: Tensor, axis: int) -> Tensor:
    shift = _still(images)
    shift[:, axis] = 150 / 331 * level
    return _moved(images, Maps(rotations(0 * level), shift), fill)


def _rotate(images: Tensor, level: Tensor, fill: Tensor) -> Tensor:
    return _moved(images, Maps(rotations(math.radians(30) * level), _still(images)), fill)


def _between(images: Tensor, other: Tensor, level: Tensor) -> Tensor:
    """Away from `other` for a positive level, towards it for a negative one."""
    factor = (1 + 0.9 * level)[:, None, None, None]
    return (factor * images + (1 - factor) * other).clamp(0, 255)


def _grey(images: Tensor) -> Tensor:
    return (images * images.new_tensor(LUMA)).sum(dim=3, keepdim=True)


def _brightness(images: Tensor, level: Tensor, fill: Tensor) -> Tensor:
    return _between(images, images.new_zeros(()), level)


def _colour(images: Tensor, level: Tensor, fill: Tensor) -> Tensor:
    return _between(images, _grey(images), level)


def _contrast(images: Tensor, level: Tensor, fill: Tensor) -> Tensor:
    return _between(images, _grey(images).mean(dim=(1, 2), keepdim=True), level)


def _sharpness(images: Tensor, level: Tensor, fill: Tensor) -> Tensor:
    from torch.nn import functional

    kernel = images.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]]).expand(3, 1, 3, 3) / 13
    blurred = images.clone()
    blurred[:, 1:-1, 1:-1] = functional.conv2d(images.permute(0, 3, 1, 2), kernel, groups=3).permute(0, 2, 3, 1)
    return _between(images, blurred, level)


def _posterize(images: Tensor, level: Tensor, fill: Tensor) -> Tensor:
    step = 2 ** (level.abs() * 4).round()[:, None, None, None]  # at most the four lower bits go
    return (images.round() / step).floor() * step


def _solarize(images: Tensor, level: Tensor, fill: Tensor) -> Tensor:
    threshold = 255 * (1 - level.abs())[:, None, None, None]
    return images.where(images < threshold, 255 - images)


def _autocontrast(images: Tensor, level: Tensor, fill: Tensor) -> Tensor:
    low, high = images.amin(dim=(1, 2), keepdim=True), images.amax(dim=(1, 2), keepdim=True)
    stretched = ((images - low) * (255 / (high - low))).clamp(0, 255)
    return stretched.where(high > low, images)


def _equalize(images: Tensor, level: Tensor, fill: Tensor) -> Tensor:
    """A histogram and a table of 256 values for each image and channel, as Pillow computes them."""
    count, height, width, channels = images.shape
    values = images.round().long().permute(0, 3, 1, 2).reshape(count * channels, -1)
    histogram = values.new_zeros(count * channels, 256).scatter_add_(1, values, values.new_ones(()).expand_as(values))
    brightest = histogram.gather(1, values.amax(dim=1, keepdim=True))
    step = (height * width - brightest) // 255
    below = histogram.cumsum(dim=1) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp(0, 255)
    spread = table.gather(1, values).where(step > 0, values)
    return spread.view(count, channels, height, width).permute(0, 2, 3, 1).to(images.dtype)


OPERATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "identity": _identity,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": lambda images, level, fill: _translate(images, level, fill, 0),
    "translate_y": lambda images, level, fill: _translate(images, level, fill, 1),
    "rotate": _rotate,
    "brightness": _brightness,
    "colour": _colour,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
"""Name → the operation on N images, given their levels from -1 to 1 (N,) and the fill; those without a sign take the level's amount."""
