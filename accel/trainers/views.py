"""The train set as a run sees it: shuffled and augmented anew every epoch, in batches, on the device that trains."""

from __future__ import annotations

import abc
import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from accel.trainers import affine, augment, mixing, randaugment
from accel.trainers.ranks import ALONE, Ranks
from accel.types import Array

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from accel.trainers.recipe import Recipe

    Colours = tuple[tuple[float, ...], tuple[float, ...]]

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Operations:
    """RandAugment's choices: which operations and with which sign, N×n each."""

    chosen: Array
    signs: Array


@dataclasses.dataclass(frozen=True)
class Choices:
    """All that is random of an epoch, one entry an image, in the order of the batches; None for what the recipe leaves out."""

    draws: augment.Draws
    operations: Operations | None
    maps: affine.Maps | None
    mix: mixing.Mix | None

    def each(self, change: Callable[[Any], Any]) -> Choices:
        """With `change` applied to every tensor and array."""

        def changed(choices: Any) -> Any:
            if choices is None:
                return None
            return type(choices)(*(change(getattr(choices, field.name)) for field in dataclasses.fields(choices)))

        return Choices(*(changed(getattr(self, field.name)) for field in dataclasses.fields(self)))


class Source(abc.ABC):
    """What the loop draws its batches from; a kind of it says where the images are, and when they are augmented.

    In this order: crop and flip, RandAugment, normalise and cutout (`augmented`); enlargement, affine map and mixing (`finished`).

    Args:
        labels: int64 (N,), on the device that the batches are for.
        size: height and width in pixels.
        generator: draws order, crop, flip and cutout.
        ranks: each takes its own part of every batch.

    Attributes:
        waited_s: for how long this process has waited since `begin` for images to be read; 0 where all of them lie on the device. What
            is done to them afterwards is not in it. A GPU may still be at work on earlier batches meanwhile.
    """

    waited_s = 0.0

    def __init__(self, labels: Tensor, recipe: Recipe, *, size: tuple[int, int], generator: torch.Generator, ranks: Ranks) -> None:
        self.device = labels.device
        self._labels, self._recipe, self._size, self._ranks = labels, recipe, size, ranks
        self._share = ranks.share(recipe.batch_size)
        self._generator = generator.manual_seed(recipe.seed)
        self._first = augment.first_mirrored(len(labels), generator)

    def __len__(self) -> int:
        """Images of all ranks together."""
        return len(self._labels)

    @abc.abstractmethod
    def begin(self, epoch: int) -> None:
        """Draw the views of `epoch`, counted from 0; to be called for one epoch after the other."""

    @abc.abstractmethod
    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """This rank's part of batch `index` of the epoch: B×H×W×3, and int64 (B,) labels, or float32 B×classes where images are mixed."""

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

    def _chosen(self, epoch: int) -> Choices:
        """The choices for this rank's images."""
        recipe, count = self._recipe, len(self)
        whole = Choices(
            augment.draw(recipe, epoch, self._size, self._first, self._generator),
            Operations(*randaugment.draw_operations(recipe, epoch, count)) if recipe.randaugment else None,
            affine.draw_maps(recipe, epoch, count) if affine.wanted(recipe) else None,
            mixing.draw_mix(recipe, epoch, count) if mixing.wanted(recipe) else None,
        )
        return whole.each(lambda values: self._ranks.part(values, recipe.batch_size))

    def _waited_for(self, read: Callable[[], T]) -> T:
        """What `read` gives; how long it takes counts as waiting."""
        started = time.monotonic()
        try:
            return read()
        finally:
            self.waited_s += time.monotonic() - started

    def _of_batch(self, index: int) -> slice:
        return slice(index * self._share, (index + 1) * self._share)


class Views(Source):
    """Of a train set that lies on the device: an epoch's images are cropped, flipped and cut out at once.

    Args:
        pixels: uint8 N×H×W×3.
        labels: int64 (N,), on the same device.
        colours: mean and standard deviation of the channels, of images scaled to 0..1.
        dtype: of the batches.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        recipe: Recipe,
        *,
        colours: Colours,
        dtype: torch.dtype,
        num_classes: int,
        ranks: Ranks = ALONE,
    ) -> None:
        import torch

        size = (pixels.shape[1], pixels.shape[2])
        super().__init__(labels, recipe, size=size, generator=torch.Generator(pixels.device), ranks=ranks)
        self._colours, self._dtype, self._num_classes = colours, dtype, num_classes
        # Without RandAugment, which wants whole pixels, they are normalised once for all epochs.
        self._images = pixels if recipe.randaugment else augment.normalise(pixels, *colours, dtype)

    def begin(self, epoch: int) -> None:
        self._choices = self._chosen(epoch)
        self._inputs = augmented(self._images, self._choices, self._recipe, self._colours, self._dtype)
        self._targets = self._labels[self._choices.draws.order]

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        part = self._of_batch(index)
        return finished(self._inputs[part], self._targets[part], self._choices, part, self._recipe, self._num_classes)


def augmented(images: Tensor, choices: Choices, recipe: Recipe, colours: Colours, dtype: torch.dtype) -> Tensor:
    """Image `choices.draws.order[i]` for every i, cropped, flipped, changed by RandAugment, normalised and cut out.

    Args:
        images: N×H×W×3, on the device of the draws; uint8, or, without RandAugment, already normalised.

    Returns:
        M×H×W×3 of `dtype`, for the M entries of `choices`.
    """
    import torch

    draws, operations = choices.draws, choices.operations
    inputs = augment.crop_and_flip(images, draws.order, draws.top, draws.left, draws.mirrored)
    if operations is not None:
        fill = 255 * torch.tensor(colours[0], device=images.device)
        parts: list[Any] = []
        for start in range(0, len(inputs), augment.CHUNK):
            part = slice(start, start + augment.CHUNK)
            chosen, signs = operations.chosen[part], operations.signs[part]
            pixels = randaugment.augmented(inputs[part].float(), chosen, signs, recipe.randaugment_magnitude, fill)
            parts.append(augment.normalise(pixels, *colours, dtype))
        inputs = torch.cat(parts)
    elif inputs.dtype == torch.uint8:
        inputs = augment.normalise(inputs, *colours, dtype)
    return augment.cut_out(inputs, draws.hole_row, draws.hole_column, recipe.cutout) if recipe.cutout else inputs


def finished(images: Tensor, labels: Tensor, choices: Choices, part: slice, recipe: Recipe, num_classes: int) -> tuple[Tensor, Tensor]:
    """A batch of augmented images, enlarged, moved and mixed by the entries `part` of `choices`, and its targets."""
    if recipe.upscale:
        images = affine.upscaled(images, recipe.upscale)
    if choices.maps is not None:
        images = affine.warp(images, choices.maps.part(part))
    if choices.mix is not None:
        return mixing.mixed(images, labels, choices.mix.part(part), num_classes)
    return images, labels
