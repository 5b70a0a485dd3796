"""Crop, flip and cutout of a whole train set at once, on the device that holds it; images are N×H×W×3 (channels last in memory).

What is random is drawn from an explicit generator by `draw`; what is done with it are pure functions of the draws, so that a test
can hold them against a slow version that goes image by image.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from accel.trainers.recipe import Recipe

CHUNK = 8192
"""Images normalised at a time, so that the FP32 intermediate stays small."""


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """(x / 255 - mean) / std of N×H×W×3 from 0 to 255, computed in float32 and returned as `dtype`."""
    import torch

    centre = torch.tensor(mean, device=images.device)
    scale = torch.tensor(std, device=images.device)
    return torch.cat([((part.float() / 255 - centre) / scale).to(dtype) for part in torch.split(images, CHUNK)])


def crop_and_flip(images: Tensor, order: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
    """Image `order[i]`, shifted by (`top[i]`, `left[i]`) pixels over a border of its own reflection, then mirrored if asked.

    Args:
        images: N×H×W×3.
        order: int64 (M,), indices of images.
        top, left: int64 (M,), shift of the window against the image; beyond the border the image is reflected (edge not repeated).
        mirrored: bool (M,), left and right exchanged.

    Returns:
        M×H×W×3, a gather in one pass without a padded copy.
    """
    import torch

    height, width = images.shape[1:3]
    rows = _reflected(top[:, None] + torch.arange(height, device=images.device), height)
    across = torch.arange(width, device=images.device)
    columns = _reflected(left[:, None] + torch.where(mirrored[:, None], width - 1 - across, across), width)
    return images[order[:, None, None], rows[:, :, None], columns[:, None, :]]


def cut_out(images: Tensor, row: Tensor, column: Tensor, size: int) -> Tensor:
    """Set the square of `size` pixels that is centred at (`row[i]`, `column[i]`) and clipped at the border to 0, in place.

    The square covers rows `row - size // 2` to `row - size // 2 + size - 1` (DeVries & Taylor, 2017). 0 is the mean colour once normalised.
    """
    import torch

    def inside(start: Tensor, length: int) -> Tensor:
        position = torch.arange(length, device=images.device)
        return (position >= start[:, None]) & (position < start[:, None] + size)

    height, width = images.shape[1:3]
    hole = inside(row - size // 2, height)[:, :, None] & inside(column - size // 2, width)[:, None, :]
    return images.masked_fill_(hole[..., None], 0)


def first_mirrored(count: int, generator: torch.Generator) -> Tensor:
    """bool (count,): which images an alternating flip mirrors in its first epoch."""
    import torch

    return torch.rand(count, generator=generator, device=generator.device) < 0.5


@dataclasses.dataclass(frozen=True)
class Draws:
    """One epoch's random choices; position i of the shuffled epoch has image `order[i]`. All but `mirrored` (bool) are int64 (N,)."""

    order: Tensor
    top: Tensor
    left: Tensor
    mirrored: Tensor
    hole_row: Tensor
    hole_column: Tensor


def draw(recipe: Recipe, epoch: int, size: tuple[int, int], first: Tensor, generator: torch.Generator) -> Draws:
    """Draw the choices of one epoch.

    Args:
        epoch: counted from 0.
        size: height and width in pixels.
        first: what `first_mirrored` drew, by image.
    """
    import torch

    device, count = generator.device, len(first)

    def integers(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (count,), generator=generator, device=device)

    order = torch.randperm(count, generator=generator, device=device)
    flips = {
        "alternating": lambda: first[order] ^ bool(epoch % 2),
        "random": lambda: first_mirrored(count, generator),
        "none": lambda: torch.zeros(count, dtype=torch.bool, device=device),
    }
    reach = recipe.crop_padding
    return Draws(
        order,
        integers(-reach, reach),
        integers(-reach, reach),
        flips[recipe.flip](),
        integers(0, size[0] - 1),
        integers(0, size[1] - 1),
    )


def _reflected(index: Tensor, length: int) -> Tensor:
    return length - 1 - (length - 1 - index.abs()).abs()
