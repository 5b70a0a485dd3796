"""Random affine maps of a batch of images, each with its own matrix, resampled once (bilinear)."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from accel.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from accel.trainers.recipe import Recipe

STREAM = 2
"""Of the seed's random numbers; each augmentation that is drawn on the host has its own."""


@dataclasses.dataclass(frozen=True)
class Maps:
    """One map an image: `matrix` (float32 N×2×2) on (x, y) about the centre, then `shift` (N×2), a share of the width and the height."""

    matrix: Tensor
    shift: Tensor

    def part(self, chosen: slice) -> Maps:
        return Maps(self.matrix[chosen], self.shift[chosen])


def wanted(recipe: Recipe) -> bool:
    """Whether the recipe moves images at all."""
    return any((recipe.rotation, recipe.translation, recipe.scaling, recipe.shear))


def draw_maps(recipe: Recipe, epoch: int, count: int) -> Maps:
    """The maps of one epoch, on the CPU: every amount uniform between plus and minus the recipe's, a function of seed and epoch."""
    import torch

    generator = np.random.default_rng([recipe.seed, epoch, STREAM])

    def uniform(reach: float, *shape: int) -> Tensor:
        return torch.from_numpy(generator.uniform(-reach, reach, (count, *shape)).astype(np.float32))

    angle, slant = uniform(math.radians(recipe.rotation)), uniform(math.radians(recipe.shear), 2)
    size = 1 + uniform(recipe.scaling)
    return Maps(size[:, None, None] * rotations(angle) @ shears(slant[:, 0].tan(), slant[:, 1].tan()), uniform(recipe.translation, 2))


def rotations(angle: Tensor) -> Tensor:
    """N×2×2, clockwise on the screen, where y points down; `angle` (N,) in radians."""
    import torch

    cosine, sine = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)


def shears(across: Tensor, down: Tensor) -> Tensor:
    """N×2×2: x grows by `across` · y, and y by `down` · x."""
    import torch

    one = torch.ones_like(across)
    return torch.stack([torch.stack([one, across], 1), torch.stack([down, one], 1)], 1)


def warp(images: Tensor, maps: Maps) -> Tensor:
    """Move N×H×W×C images; what comes from beyond the border is 0, the mean colour once normalised.

    Computed in float32, whatever the dtype of `images`: a coordinate of 16 bits would be off by half a pixel.
    """
    import torch
    from torch.nn import functional

    height, width = images.shape[1:3]
    # grid_sample asks where each pixel comes from, in units of half the height and half the width.
    half = torch.tensor([width / 2, height / 2], device=images.device)
    back = torch.linalg.inv(maps.matrix.to(images.device))
    origin = -(back @ (maps.shift.to(images.device) * 2 * half)[:, :, None])
    theta = torch.cat([back * half / half[:, None], origin / half[:, None]], dim=2)
    grid = functional.affine_grid(theta, [len(images), 1, height, width], align_corners=False)
    moved = functional.grid_sample(images.permute(0, 3, 1, 2).float(), grid, align_corners=False)
    return moved.permute(0, 2, 3, 1).to(images.dtype).contiguous()


def upscaled(images: Tensor, side: int) -> Tensor:
    """N×H×W×C to N×side×side×C, bilinear as torch's interpolate, half-pixel centres."""
    from torch.nn import functional

    larger = functional.interpolate(images.permute(0, 3, 1, 2), size=(side, side), mode="bilinear", align_corners=False)
    return larger.permute(0, 2, 3, 1).contiguous()


def demand_enlarging(module: nn.Module, side: int, images: Tensor) -> None:
    """Refuse to train on enlarged images a module that does not enlarge what it is given: it would be tested and deployed on small ones.

    Args:
        images: float32 N×H×W×3, as the deployed module will get them, on its device.

    Raises:
        ConfigError: the module, fresh and in eval mode, answers otherwise to enlarged images than to small ones.
    """
    import torch

    module.eval()
    with torch.inference_mode():
        small, large = (module(pixels.permute(0, 3, 1, 2)) for pixels in (images, upscaled(images, side)))
    module.train()
    if not torch.allclose(small, large, rtol=1e-2, atol=1e-4):
        raise ConfigError(
            f"upscale = {side} was asked for a model that does not enlarge images to {side}×{side} itself and would be tested small",
            remedy="leave upscale out, or choose a model that enlarges what it is given",
        )
