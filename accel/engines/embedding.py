"""A model that takes pixels: the arithmetic of `accel.preprocess` as the first step of the module, for every exporter and runtime alike."""

from __future__ import annotations

import dataclasses
from typing import Any

from accel.errors import UsageError
from accel.optional import require
from accel.preprocess import Preprocess
from accel.types import Checkpoint, TensorSpec

BUFFERS = ("pixel_scale", "pixel_offset")
"""Names of the two constants of the normalisation: float32 whatever the precision, since the model's own begins behind them."""


def embed(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` with the pixels themselves as its input: uint8 N×height×width×C. `build_module` puts the arithmetic before the model.

    Raises:
        UsageError: it has no preprocessing, or one that does not make its input.
    """
    if checkpoint.input.is_pixels:
        return checkpoint
    if not checkpoint.preprocess:
        raise UsageError(
            f"{checkpoint.name} says nothing of how a picture becomes its input, so there is no preprocessing to embed",
            remedy="leave --embed-preprocess out, or export a checkpoint that accel train wrote",
        )
    ready = Preprocess.from_dict(checkpoint.preprocess)
    channels = len(ready.mean)
    if checkpoint.input.dtype != "float32" or not checkpoint.input.accepts((1, channels, ready.height, ready.width)):
        raise UsageError(
            f"{checkpoint.name} preprocesses pictures to {(channels, ready.height, ready.width)}, and its input is "
            f"{checkpoint.input.dtype} {checkpoint.input.shape}",
            remedy="leave --embed-preprocess out",
        )
    shape = (checkpoint.input.shape[0], ready.height, ready.width, channels)
    return dataclasses.replace(checkpoint, input=TensorSpec(checkpoint.input.name, shape, "uint8", "NHWC"))


def with_pixels(module: Any, preprocess: Preprocess) -> Any:
    """`module` behind the normalisation: uint8 N×H×W×C in, `pixels · scale - offset` in float32 as numpy computes it, then the module.

    Product and difference are two operations, so that eager FP32 gives the bits of `Preprocess`; an engine may fuse them. What comes out
    is cast to the dtype of the module's weights, so that FP16 begins behind the normalisation.
    """
    torch = require("torch", extra="train")

    class WithPixels(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = module
            for name, values in zip(BUFFERS, (preprocess.scale, preprocess.offset), strict=True):
                self.register_buffer(name, torch.from_numpy(values.copy()), persistent=False)

        def forward(self, pixels: Any) -> Any:
            # Cast before anything is moved: TensorRT takes uint8 as far as a cast.
            planes = pixels.to(torch.float32).permute(0, 3, 1, 2).contiguous()
            ready = planes * self.pixel_scale - self.pixel_offset
            weight = next(self.model.parameters(), None)
            return self.model(ready if weight is None else ready.to(weight.dtype))

        def _apply(self, fn: Any, recurse: bool = True) -> Any:
            # half() and its like are for the model; by the time they have rounded the constants it is too late to cast them back.
            kept = {name: getattr(self, name) for name in BUFFERS}
            super()._apply(fn, recurse)
            for name, exact in kept.items():
                setattr(self, name, exact.to(getattr(self, name).device))
            return self

    return WithPixels().eval()


def is_constant(name: str) -> bool:
    """Whether a tensor of an exported file is one of BUFFERS, which are float32 in every precision."""
    return name.rpartition(".")[2] in BUFFERS
