"""The only normalise and letterbox: uint8 images in, float32 NCHW out, bit for bit the same on every machine.

The arithmetic is `image * scale - offset` in float32, with `scale = 1 / (255 * std)` and `offset = mean / std` computed in float64 and
rounded to float32 once. The product and the difference are two separate IEEE operations, each correctly rounded (numpy never fuses
them), so no instruction set or library version changes a bit. It differs from `(image / 255 - mean) / std` by rounding only, < 1e-6.
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from accel import optional
from accel.errors import UsageError
from accel.types import TensorSpec

RESIZES = ("none", "letterbox")

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Preprocess:
    """What turns a picture into a model's input.

    Attributes:
        mean, std: per channel, of images scaled to 0..1.
        height, width: of the model's input, in pixels.
        resize: `none` refuses images of another size; `letterbox` fits them in. Users' pictures are fitted in either way, by `pictures`.
        fill: RGB of the letterbox bars, 0..255.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    height: int
    width: int
    resize: str = "none"
    fill: tuple[int, int, int] = (128, 128, 128)

    def __post_init__(self) -> None:
        given = (*self._items("mean"), *self._items("std"), *self._items("fill"), self.height, self.width)
        if not all(isinstance(number, numbers.Real) and math.isfinite(number) for number in given):
            raise UsageError(f"preprocess has something else than numbers: {asdict(self)}", remedy="give finite numbers")
        if len(self.mean) != len(self.std) or not self.mean:
            raise UsageError(f"preprocess has {len(self.mean)} means and {len(self.std)} stds", remedy="give one of each per channel")
        if min(self.std) <= 0 or min(self.height, self.width) < 1:
            raise UsageError(f"preprocess has std {self.std} and size {self.height}x{self.width}", remedy="all of them must be positive")
        if self.resize not in RESIZES:
            raise UsageError(f"preprocess has resize {self.resize!r}", remedy=f"choose one of: {', '.join(RESIZES)}")

    def _items(self, name: str) -> tuple[Any, ...]:
        value = getattr(self, name)
        if not isinstance(value, tuple | list):
            raise UsageError(f"preprocess has the {name} {value!r}", remedy="give one number per channel")
        return tuple(value)

    @functools.cached_property
    def scale(self) -> Floats:
        """`1 / (255 * std)`, float32 C×1×1."""
        return (1.0 / (255.0 * np.array(self.std, np.float64))).astype(np.float32).reshape(-1, 1, 1)

    @functools.cached_property
    def offset(self) -> Floats:
        """`mean / std`, float32 C×1×1."""
        return (np.array(self.mean, np.float64) / np.array(self.std, np.float64)).astype(np.float32).reshape(-1, 1, 1)

    def __call__(self, images: Images) -> Floats:
        """Normalise uint8 N×H×W×C images; returns float32 N×C×height×width, C-contiguous and owned by the caller. Raises as `pixels`."""
        images = self.pixels(images)
        output = np.empty((len(images), len(self.mean), self.height, self.width), np.float32)
        output[...] = images.transpose(0, 3, 1, 2)
        output *= self.scale
        output -= self.offset
        return output

    def pixels(self, images: Images) -> Images:
        """As a call without the arithmetic: uint8 N×height×width×C, which may be `images` themselves.

        Raises:
            UsageError: another dtype, number of dimensions, channels, or (with resize `none`) size.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != len(self.mean):
            raise UsageError(
                f"preprocess takes uint8 images of shape (N, H, W, {len(self.mean)}) and was given {images.dtype} {images.shape}",
                remedy="pass uint8 pixels, batch first and channels last; one image is image[None]",
            )
        return images if images.shape[1:3] == (self.height, self.width) else self._fit(images)

    def fit(self, picture: Images) -> Images:
        """A uint8 H×W×3 picture of any size as the model sees it: letterboxed into height×width, grey for a model of one channel.

        Raises:
            UsageError: not a uint8 RGB picture with pixels in it. MissingExtra: Pillow is absent.
        """
        if picture.shape == (self.height, self.width, len(self.mean)):
            return picture
        picture = letterbox(picture, self.height, self.width, self.fill)
        if len(self.mean) == 1:
            pillow = optional.require("PIL.Image", extra="images")
            return np.asarray(pillow.fromarray(picture).convert("L"))[..., None]
        return picture

    def pictures(self, pictures: Images) -> Floats:
        """As a call, for uint8 N×H×W×3 pictures of any size, whatever `resize` says: a user's photograph is never of the model's size.

        Raises:
            UsageError: as `fit` and a call.
        """
        return self(self._fitted(pictures))

    def for_images(self, spec: TensorSpec) -> Callable[[Images], npt.NDArray[Any]]:
        """What turns images of the model's size into its public input `spec`: a call, or `pixels` where the model normalises by itself."""
        return self.pixels if spec.is_pixels else self

    def for_pictures(self, spec: TensorSpec) -> Callable[[Images], npt.NDArray[Any]]:
        """As `for_images`, for pictures of any size."""
        return (lambda pictures: self.pixels(self._fitted(pictures))) if spec.is_pixels else self.pictures

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `Checkpoint.preprocess` and `accel.json` hold it."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocess:
        """Read what `to_dict` wrote.

        Raises:
            UsageError: a key is missing or unknown, or a value is wrong.
        """
        known = {field.name for field in fields(cls)}
        if set(data) - known or {"mean", "std", "height", "width"} - set(data):
            raise UsageError(f"preprocess has the keys {sorted(data)}", remedy=f"its keys are {sorted(known)}")
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        return cls(**values)

    def _fitted(self, pictures: Images) -> Images:
        fits = pictures.shape[1:] == (self.height, self.width, len(self.mean))
        return pictures if fits or not len(pictures) else np.stack([self.fit(picture) for picture in pictures])

    def _fit(self, images: Images) -> Images:
        if self.resize == "none":
            raise UsageError(
                f"preprocess takes images of {self.height}x{self.width} and was given {images.shape[1]}x{images.shape[2]}",
                remedy='resize them, or use a Preprocess with resize="letterbox"',
            )
        fitted = np.empty((len(images), self.height, self.width, 3), np.uint8)
        for index, image in enumerate(images):
            fitted[index] = letterbox(image, self.height, self.width, self.fill)
        return fitted


def letterbox(image: Images, height: int, width: int, fill: tuple[int, int, int] = (128, 128, 128)) -> Images:
    """Fit a uint8 H×W×3 image into height×width with its aspect kept: LANCZOS, centred, bars of `fill`.

    Raises:
        UsageError: not a uint8 RGB image with pixels in it. MissingExtra: Pillow is absent.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UsageError(f"letterbox takes a uint8 image of shape (H, W, 3) and was given {image.dtype} {image.shape}")
    pillow = optional.require("PIL.Image", extra="images")
    ratio = min(height / image.shape[0], width / image.shape[1])
    # An extreme aspect would round a side to zero pixels.
    inner_height, inner_width = (
        max(1, min(limit, round(size * ratio))) for limit, size in zip((height, width), image.shape[:2], strict=True)
    )
    resized = pillow.fromarray(np.ascontiguousarray(image)).resize((inner_width, inner_height), pillow.Resampling.LANCZOS)
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = fill
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    canvas[top : top + inner_height, left : left + inner_width] = np.asarray(resized)
    return canvas


CIFAR10 = Preprocess((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 32, 32)
"""Mean and standard deviation of CIFAR-10's train images."""

CIFAR100 = Preprocess((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), 32, 32)
"""Mean and standard deviation of CIFAR-100's train images."""

PHOTOGRAPHS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation that are customary for photographs (ImageNet's train images), for a set whose own nobody has measured."""
