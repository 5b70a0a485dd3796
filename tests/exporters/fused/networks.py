"""Small networks in the intermediate form, with random weights: between them every kind of layer and shape that the fused engine takes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from accel.exporters.fused.network import INPUT, Convolution, Layer, Linear, Network, Pair, Pool, Shape


class Build:
    """Appends layers, each of which reads the one before unless told otherwise."""

    def __init__(self, channels: int, height: int, width: int, seed: int = 0) -> None:
        self.input = Shape(channels, height, width)
        self.layers: list[Layer] = []
        self._random = np.random.default_rng(seed)

    def conv(
        self, name: str, out: int, kernel: Any, stride: Any = 1, padding: Any = 0, *, source: str | None = None, **fields: Any
    ) -> Build:
        name_of, given = self._source(source)
        kernel, stride, padding = _pair(kernel), _pair(stride), _pair(padding)
        inside = given.channels // fields.get("groups", 1)
        weight = self._random.standard_normal((out, inside, *kernel)) * (2 / (inside * kernel[0] * kernel[1])) ** 0.5
        shape = Shape(out, *_sizes(given, kernel, stride, padding))
        bias = self._random.standard_normal(out) * 0.3
        self.layers.append(Convolution(name, name_of, given, shape, _half(weight), bias.astype(np.float32), stride, padding, **fields))
        return self

    def pool(self, name: str, how: Any, kernel: Any = None, stride: Any = None, padding: Any = 0, *, source: str | None = None) -> Build:
        """Without a kernel: global."""
        name_of, given = self._source(source)
        kernel = (given.height, given.width) if kernel is None else _pair(kernel)
        stride, padding = kernel if stride is None else _pair(stride), _pair(padding)
        shape = Shape(given.channels, *_sizes(given, kernel, stride, padding))
        self.layers.append(Pool(name, name_of, given, shape, how, kernel, stride, padding))
        return self

    def linear(self, name: str, out: int, **fields: Any) -> Build:
        name_of, given = self._source(None)
        weight = self._random.standard_normal((out, given.channels)) / given.channels**0.5
        bias = self._random.standard_normal(out).astype(np.float32)
        self.layers.append(Linear(name, name_of, given, Shape(out, 1, 1), _half(weight), bias, **fields))
        return self

    def network(self) -> Network:
        return Network(self.input, tuple(self.layers))

    def _source(self, name: str | None) -> tuple[str, Shape]:
        if name is None and self.layers:
            name = self.layers[-1].name
        if name in (None, INPUT):
            return INPUT, self.input
        return str(name), next(layer.output for layer in self.layers if layer.name == name)


def _sizes(given: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Pair:
    height, width = given.height + 2 * padding[0] - kernel[0], given.width + 2 * padding[1] - kernel[1]
    return height // stride[0] + 1, width // stride[1] + 1


def _half(weight: Any) -> Any:
    """Rounded to FP16, so that a reference with these weights has no other than the engine's."""
    return weight.astype(np.float16).astype(np.float32)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def plain() -> Network:
    """A small students' like: 3×3 convolutions with strides, a residual, global average and linear."""
    return (
        Build(3, 12, 12)
        .conv("stem", 24, 4, 2, 1, activation="relu")
        .conv("wide", 40, 3, 1, 1, activation="relu")
        .conv("again", 40, 3, 1, 1, activation="relu", residual="wide")
        .conv("down", 64, 3, 2, 1, activation="relu")
        .pool("pool", "average")
        .linear("classifier", 10)
        .network()
    )


def odd() -> Network:
    """Odd sizes, rectangular windows, every activation, depthwise, every pooling, a hidden linear layer."""
    return (
        Build(3, 23, 17, seed=1)
        .conv("stem", 20, 3, 1, 1, activation="silu")
        .pool("halved", "max", 3, 2, 1)
        .conv("depth", 20, 3, 1, 1, groups=20, activation="hardswish")
        .conv("shortcut", 48, 1, 2, source="halved")
        .conv("five", 48, 5, 2, 2, source="depth", activation="hardswish", residual="shortcut")
        .conv("tall", 56, (3, 1), (1, 2), (1, 0), activation="silu")
        .conv("broad", 56, (1, 3), 1, (0, 1), activation="none")
        .conv("alone", 56, 3, 1, 1, groups=56, residual="broad")
        .pool("averaged", "average", 2, 2, 1)
        .conv("point", 72, 1, activation="relu")
        .pool("global", "average")
        .linear("hidden", 30, activation="relu")
        .linear("classifier", 19)
        .network()
    )


def convolutional() -> Network:
    """Ends with a convolution and a global average in the place of a linear layer; strides of three."""
    return (
        Build(4, 14, 14, seed=2)
        .conv("stem", 16, 3, 1, 1, activation="relu")
        .conv("third", 32, 5, 3, 1, activation="relu")
        .conv("classes", 7, 1)
        .pool("mean", "average")
        .network()
    )


def last_is_a_convolution() -> Network:
    return Build(3, 6, 6, seed=3).conv("stem", 16, 3, 2, 1, activation="relu").conv("answer", 11, 3).network()


def straight() -> Network:
    """What the schedule cluster takes, of odd sizes: a chain of convolutions with rectangular windows, every activation, more logits than
    half a CTA has threads."""
    return (
        Build(3, 23, 17, seed=4)
        .conv("stem", 20, 3, 1, 1, activation="silu")
        .conv("tall", 40, (3, 1), (2, 1), (1, 0), activation="hardswish")
        .conv("point", 24, 1, activation="none")
        .conv("broad", 72, (1, 4), (1, 2), (0, 1), activation="relu")
        .conv("down", 56, 3, 2, 1, activation="silu")
        .pool("global", "average")
        .linear("classifier", 139, activation="relu")
        .network()
    )


def short() -> Network:
    """Two convolutions, the second of stride 1 on a large picture: the pushes of the first step end the network."""
    return (
        Build(1, 20, 20, seed=5)
        .conv("stem", 16, 5, 1, 2, activation="relu")
        .conv("last", 32, 3, 1, 1, activation="relu")
        .pool("pool", "average")
        .linear("classifier", 5)
        .network()
    )


def shortcut() -> Network:
    """Two blocks with a 1×1 shortcut, as ResNet has them: it stands behind the first block's first convolution and before the second's."""
    build = Build(3, 12, 12).conv("stem", 32, 3, 1, 1, activation="relu")
    build.conv("first", 48, 3, 2, 1, activation="relu").conv("short", 48, 1, 2, 0, source="stem")
    build.conv("second", 48, 3, 1, 1, source="first", residual="short", activation="relu")
    build.conv("aside", 80, 1, 2, 0).conv("third", 80, 3, 2, 1, source="second", activation="relu")
    build.conv("fourth", 80, 3, 1, 1, residual="aside", activation="relu")
    return build.pool("pool", "average").linear("classifier", 10).network()


def student(name: str) -> Network:
    """A shipped student's shapes, with random weights; nothing of torch."""
    build = Build(3, 32, 32)
    for index, (kernel, stride, out) in enumerate(importlib.import_module(f"accel.trainers.models.{name}").LAYERS):
        build.conv(f"features.{2 * index}", out, kernel, stride, 1, activation="relu")
    return build.pool("pool", "average").linear("classifier", 10).network()


def names(networks: Sequence[Any]) -> list[str]:
    return [network.__name__ for network in networks]
