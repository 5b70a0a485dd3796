"""Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019): an image and its partner's share of it, in pixels and in the target."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from accel.trainers.recipe import Recipe

STREAM = 3
"""Of the seed's random numbers; see affine.STREAM."""


@dataclasses.dataclass(frozen=True)
class Mix:
    """One choice an image, all (N,).

    Attributes:
        share: float32, of the image itself, from Beta(alpha, alpha).
        cut: bool; the partner shows through a box instead of everywhere.
        row, column: float32 in [0, 1), centre of the box.
    """

    share: Tensor
    cut: Tensor
    row: Tensor
    column: Tensor

    def part(self, chosen: slice) -> Mix:
        return Mix(self.share[chosen], self.cut[chosen], self.row[chosen], self.column[chosen])


def wanted(recipe: Recipe) -> bool:
    return bool(recipe.mixup or recipe.cutmix)


def draw_mix(recipe: Recipe, epoch: int, count: int) -> Mix:
    """The choices of one epoch, on the CPU, a function of seed and epoch; with both, a coin decides for each image."""
    import torch

    generator = np.random.default_rng([recipe.seed, epoch, STREAM])
    cut = generator.random(count) < (0.5 if recipe.mixup else 1.0) if recipe.cutmix else np.zeros(count, bool)
    alpha = np.where(cut, recipe.cutmix, recipe.mixup)
    share, row, column = (
        torch.from_numpy(values.astype(np.float32)) for values in (generator.beta(alpha, alpha), *generator.random((2, count)))
    )
    return Mix(share, torch.from_numpy(cut), row, column)


def shares(mix: Mix, height: int, width: int) -> Tensor:
    """float32 N×H×W: how much of each pixel is the image's own.

    A box has sides of √(1 - share) of the picture's, rounded down, and is clipped at the border, as in the paper.
    """
    import torch

    def inside(centre: Tensor, length: int) -> Tensor:
        side = ((1 - mix.share).clamp(min=0).sqrt() * length).floor()
        middle = (centre * length).floor()
        position = torch.arange(length, device=centre.device)
        return (position >= (middle - (side / 2).floor())[:, None]) & (position < (middle - (side / 2).floor() + side)[:, None])

    box = inside(mix.row, height)[:, :, None] & inside(mix.column, width)[:, None, :]
    return torch.where(mix.cut[:, None, None], (~box).float(), mix.share[:, None, None].expand(box.shape))


def mixed(images: Tensor, labels: Tensor, mix: Mix, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mix a shuffled batch with itself in reverse order.

    Args:
        images: N×H×W×C.
        labels: int64 (N,).
        mix: of these images, on any device.

    Returns:
        The images in their dtype, and float32 N×num_classes targets whose weights are the shares of the pixels.
    """
    from torch.nn import functional

    here = Mix(*(getattr(mix, field.name).to(images.device) for field in dataclasses.fields(Mix)))
    own = shares(here, images.shape[1], images.shape[2])
    answers = functional.one_hot(labels, num_classes).float()
    weight = own.mean(dim=(1, 2))[:, None]
    pixels = own[..., None] * images + (1 - own[..., None]) * images.flip(0)
    return pixels.to(images.dtype), weight * answers + (1 - weight) * answers.flip(0)
