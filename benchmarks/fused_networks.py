"""Networks of the fused engine's intermediate form with random weights, by numpy alone: the shipped ones, and one a class of shapes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from accel.exporters.fused.network import INPUT, Activation, Convolution, Layer, Linear, Network, Pool, Shape
from accel.trainers.models import student_a, student_b

IMAGE = Shape(3, 32, 32)
CLASSES = 10


class Builder:
    """Layers one after another; each reads the last unless told otherwise. Weights keep the size of activations (He et al., 2015)."""

    def __init__(self, image: Shape, seed: int) -> None:
        self.image, self.layers = image, list[Layer]()
        self._draw = np.random.default_rng(seed)

    def shape(self, name: str) -> Shape:
        return next((layer.output for layer in self.layers if layer.name == name), self.image)

    @property
    def last(self) -> str:
        return self.layers[-1].name if self.layers else INPUT

    def conv(
        self,
        channels: int,
        kernel: int = 3,
        stride: int = 1,
        padding: int = 1,
        activation: Activation = "relu",
        source: str | None = None,
        residual: str | None = None,
        depthwise: bool = False,
    ) -> str:
        name, source = f"conv{len(self.layers)}", source or self.last
        given = self.shape(source)
        inside = 1 if depthwise else given.channels
        scale = np.sqrt(2 / (inside * kernel * kernel)) * (0.7 if residual else 1.0)
        weight = (self._draw.standard_normal((channels, inside, kernel, kernel)) * scale).astype(np.float32)
        bias = (self._draw.standard_normal(channels) * 0.1).astype(np.float32)
        height, width = ((size + 2 * padding - kernel) // stride + 1 for size in (given.height, given.width))
        groups = given.channels if depthwise else 1
        shape, steps, pads = Shape(channels, height, width), (stride, stride), (padding, padding)
        self.layers.append(Convolution(name, source, given, shape, weight, bias, steps, pads, groups, activation, residual))
        return name

    def pool(self, how: str, kernel: int = 2, stride: int = 2, padding: int = 0) -> str:
        name, given = f"pool{len(self.layers)}", self.shape(self.last)
        height, width = ((size + 2 * padding - kernel) // stride + 1 for size in (given.height, given.width))
        shape = Shape(given.channels, height, width)
        self.layers.append(Pool(name, self.last, given, shape, how, (kernel,) * 2, (stride,) * 2, (padding,) * 2))  # type: ignore[arg-type]
        return name

    def head(self, classes: int = CLASSES) -> Network:
        given = self.shape(self.last)
        window = (given.height, given.width)
        self.layers.append(Pool("mean", self.last, given, Shape(given.channels, 1, 1), "average", window, window))
        weight = (self._draw.standard_normal((classes, given.channels)) / np.sqrt(given.channels)).astype(np.float32)
        bias = (self._draw.standard_normal(classes) * 0.1).astype(np.float32)
        self.layers.append(Linear("fc", "mean", Shape(given.channels, 1, 1), Shape(classes, 1, 1), weight, bias))
        return Network(self.image, tuple(self.layers))


def student(rows: tuple[tuple[int, int, int], ...]) -> Network:
    """As accel.trainers.models.student_a and student_b are deployed."""
    build = Builder(IMAGE, 0)
    for kernel, stride, channels in rows:
        build.conv(channels, kernel, stride)
    return build.head()


def resnet18() -> Network:
    """As accel.trainers.models.resnet18 with BatchNorm folded: shortcuts of 1×1 are layers of their own."""
    build = Builder(IMAGE, 0)
    x = build.conv(64)
    for channels, first in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for stride in (first, 1):
            shortcut = x
            inner = build.conv(channels, stride=stride, source=x)
            if stride != 1 or build.shape(x).channels != channels:
                shortcut = build.conv(channels, 1, stride, 0, "none", source=x)
            x = build.conv(channels, source=inner, residual=shortcut)
    return build.head()


def kernels() -> Network:
    """Kernels of 1, 3, 4 and 5 at strides 1 and 2, odd sizes, channels that fill no tile."""
    build = Builder(Shape(3, 31, 29), 1)
    for channels, kernel, stride, padding in ((20, 5, 1, 2), (24, 1, 1, 0), (40, 4, 2, 1), (17, 3, 1, 1), (33, 1, 2, 0), (48, 3, 2, 1)):
        build.conv(channels, kernel, stride, padding)
    return build.head(7)


def functions() -> Network:
    """Every activation, with and without an addition; the added one from several layers back."""
    build = Builder(Shape(3, 16, 16), 2)
    first = build.conv(32, activation="hardswish")
    build.conv(32, activation="silu")
    build.conv(32, activation="none", residual=first)
    build.conv(32, activation="silu", residual=first)
    build.conv(32, 1, padding=0, activation="hardswish", residual=first)
    return build.head()


def depthwise() -> Network:
    """Depthwise convolutions between 1×1 ones."""
    build = Builder(Shape(3, 32, 32), 3)
    build.conv(16, stride=2, activation="hardswish")
    for channels, kernel, stride in ((16, 3, 1), (40, 5, 2)):
        build.conv(channels, 1, padding=0)
        build.conv(channels, kernel, stride, kernel // 2, depthwise=True)
        build.conv(channels, 1, padding=0, activation="none")
    return build.head()


def pools() -> Network:
    """Largest and mean of windows, with and without padding."""
    build = Builder(Shape(3, 32, 32), 4)
    build.conv(24)
    build.pool("max")
    build.conv(48)
    build.pool("max", 3, 2, 1)
    build.conv(48)
    build.pool("average")
    return build.head()


def wide() -> Network:
    """A picture of another size than CIFAR's, and more classes than a CTA has rows."""
    build = Builder(Shape(3, 64, 48), 5)
    build.conv(32, stride=2)
    build.conv(64, stride=2)
    build.conv(64)
    return build.head(100)


NETWORKS: dict[str, Callable[[], Network]] = {
    "student_b": lambda: student(student_b.LAYERS),
    "student_a": lambda: student(student_a.LAYERS),
    "resnet18": resnet18,
    "kernels": kernels,
    "functions": functions,
    "depthwise": depthwise,
    "pools": pools,
    "wide": wide,
}
SHIPPED = ("student_b", "student_a", "resnet18")
