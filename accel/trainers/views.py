"""The train set as a run sees it: shuffled and augmented anew every epoch, in batches, on the device that holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accel.trainers import affine, mixing, randaugment
from accel.trainers.augment import CHUNK, crop_and_flip, cut_out, draw, first_mirrored, normalise

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from accel.trainers.recipe import Recipe

    Colours = tuple[tuple[float, ...], tuple[float, ...]]


class Views:
    """Batches of augmented images and their targets.

    In this order: crop and flip, RandAugment, normalise and cutout of the whole epoch at once; enlargement, affine map and mixing by batch.

    Args:
        pixels: uint8 N×H×W×3.
        labels: int64 (N,), on the same device.
        colours: mean and standard deviation of the channels, of images scaled to 0..1.
        dtype: of the batches.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, recipe: Recipe, *, colours: Colours, dtype: torch.dtype, num_classes: int) -> None:
        import torch

        self.device = pixels.device
        self._labels, self._recipe, self._colours, self._dtype, self._num_classes = labels, recipe, colours, dtype, num_classes
        # Without RandAugment, which wants whole pixels, they are normalised once for all epochs.
        self._images = pixels if recipe.randaugment else normalise(pixels, *colours, dtype)
        self._generator = torch.Generator(self.device).manual_seed(recipe.seed)
        self._first = first_mirrored(len(pixels), self._generator)
        self._inputs, self._targets = self._images, labels
        self._maps: affine.Maps | None = None
        self._mix: mixing.Mix | None = None

    def __len__(self) -> int:
        return len(self._images)

    def begin(self, epoch: int) -> None:
        """Draw and make the views of `epoch`, counted from 0; to be called for one epoch after the other."""
        recipe, images = self._recipe, self._images
        draws = draw(recipe, epoch, (images.shape[1], images.shape[2]), self._first, self._generator)
        inputs = crop_and_flip(images, draws.order, draws.top, draws.left, draws.mirrored)
        if recipe.randaugment:
            inputs = self._randaugmented(inputs, epoch)
        self._inputs = cut_out(inputs, draws.hole_row, draws.hole_column, recipe.cutout) if recipe.cutout else inputs
        self._targets = self._labels[draws.order]
        self._maps = affine.draw_maps(recipe, epoch, len(self)) if affine.wanted(recipe) else None
        self._mix = mixing.draw_mix(recipe, epoch, len(self)) if mixing.wanted(recipe) else None

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Batch `index` of the epoch: B×H×W×3, and int64 (B,) labels, or float32 B×classes where images are mixed."""
        part = slice(index * self._recipe.batch_size, (index + 1) * self._recipe.batch_size)
        images, targets = self._inputs[part], self._targets[part]
        if self._recipe.upscale:
            images = affine.upscaled(images, self._recipe.upscale)
        if self._maps is not None:
            images = affine.warp(images, self._maps.part(part))
        if self._mix is not None:
            return mixing.mixed(images, targets, self._mix.part(part), self._num_classes)
        return images, targets

    def example(self) -> tuple[Tensor, Tensor]:
        """A batch as those to come; leaves no trace."""
        state = self._generator.get_state()
        self.begin(0)
        batch = self.batch(0)
        self._generator.set_state(state)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """What the next epoch's draws depend on beside the recipe."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"])

    def _randaugmented(self, images: Tensor, epoch: int) -> Tensor:
        import torch

        chosen, signs = randaugment.draw_operations(self._recipe, epoch, len(images))
        fill = 255 * torch.tensor(self._colours[0], device=self.device)
        parts: list[Any] = []
        for start in range(0, len(images), CHUNK):
            part = slice(start, start + CHUNK)
            pixels = randaugment.augmented(images[part].float(), chosen[part], signs[part], self._recipe.randaugment_magnitude, fill)
            parts.append(normalise(pixels, *self._colours, self._dtype))
        return torch.cat(parts)
