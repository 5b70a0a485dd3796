"""The intermediate form: an ordered list of layers that a kernel each (or a step of one kernel) can compute, for one image.

`assemble` makes it from the primitive operators that a reader found, by drawing additions and activations into the layer before them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from accel.errors import UnsupportedOperator

Array = NDArray[np.float32]
Pair = tuple[int, int]
Activation = Literal["none", "relu", "hardswish", "silu"]

INPUT = "input"
"""What a layer that reads the image names as its source."""
ACTIVATIONS: tuple[Activation, ...] = ("none", "relu", "hardswish", "silu")


@dataclasses.dataclass(frozen=True)
class Shape:
    """Channels, height and width of one image's activations; a vector has height and width 1."""

    channels: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        return self.height * self.width


@dataclasses.dataclass(frozen=True, eq=False)
class Convolution:
    """activation(conv(source) + bias [+ residual]).

    Attributes:
        source, residual: names of earlier layers, or INPUT; residual is None where nothing is added.
        weight: float32, out × in/groups × kernel height × kernel width. bias: float32, out.
    """

    name: str
    source: str
    input: Shape
    output: Shape
    weight: Array
    bias: Array
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    groups: int = 1
    activation: Activation = "none"
    residual: str | None = None

    @property
    def kernel(self) -> Pair:
        return int(self.weight.shape[2]), int(self.weight.shape[3])

    @property
    def macs(self) -> int:
        return self.weight.size * self.output.pixels


@dataclasses.dataclass(frozen=True)
class Pool:
    """The largest or the mean value of each window; an average counts padding as zeros. Global: the window is the whole image."""

    name: str
    source: str
    input: Shape
    output: Shape
    how: Literal["max", "average"]
    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)

    @property
    def is_global(self) -> bool:
        return self.padding == (0, 0) and self.kernel == (self.input.height, self.input.width)

    @property
    def macs(self) -> int:
        return 0


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """activation(weight · source + bias) of a vector; weight: float32, out × in."""

    name: str
    source: str
    input: Shape
    output: Shape
    weight: Array
    bias: Array
    activation: Activation = "none"

    @property
    def macs(self) -> int:
        return self.weight.size


Layer = Convolution | Pool | Linear


@dataclasses.dataclass(frozen=True)
class Network:
    """Layers in an order in which each reads only the image and earlier ones; the last is the output."""

    input: Shape
    layers: tuple[Layer, ...]

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)


@dataclasses.dataclass(frozen=True)
class Node:
    """One primitive operator, as a reader found it.

    Attributes:
        kind: `conv`, `linear`, `pool`, `global_average`, `add`, `activation`, or `flatten`.
        name: for messages, and of the layer that it becomes: the module's path, or the ONNX node's name.
        operator: as its framework calls it.
        inputs, output: names of values; INPUT is the image.
        fields: of the layer.
    """

    kind: str
    name: str
    operator: str
    inputs: tuple[str, ...]
    output: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def refused(name: str, operator: str, reason: str) -> UnsupportedOperator:
    """The error for a layer that this format cannot express."""
    return UnsupportedOperator(
        f"layer {name!r} ({operator}) cannot be exported to fused: {reason}",
        remedy="replace it in the model, or use another format, as --to tensorrt or --to onnx",
    )


def assemble(input: Shape, nodes: Sequence[Node], output: str) -> Network:
    """Make layers of `nodes`, which are in an order of execution; `output` names the value that the network answers with.

    Raises:
        UnsupportedOperator: an addition or activation that no layer can take in, a shape that does not fit, or an unused result.
    """
    state = _Assembly(input, Counter(name for node in nodes for name in node.inputs), output)
    for node in nodes:
        _TAKERS[node.kind](state, node)
    if not state.layers or state.producer.get(output) != len(state.layers) - 1:
        last = nodes[-1] if nodes else Node("", "output", "output", (), "")
        raise refused(last.name, last.operator, "the network's answer is not the result of its last layer")
    return Network(input, tuple(state.layers))


@dataclasses.dataclass
class _Assembly:
    """What is known halfway: `producer` maps a value to the index of its layer, -1 for the image."""

    input: Shape
    uses: Counter[str]
    answer: str
    layers: list[Layer] = dataclasses.field(default_factory=list)
    producer: dict[str, int] = dataclasses.field(default_factory=lambda: {INPUT: -1})

    def source(self, node: Node, position: int = 0) -> tuple[str, Shape]:
        """Name and shape of what `node` reads."""
        index = self.index(node, position)
        return (INPUT, self.input) if index < 0 else (self.layers[index].name, self.layers[index].output)

    def index(self, node: Node, position: int = 0) -> int:
        value = node.inputs[position]
        if value not in self.producer:
            raise refused(node.name, node.operator, f"it reads {value!r}, which no layer produces")
        return self.producer[value]

    def append(self, node: Node, layer: Layer) -> None:
        self.layers.append(layer)
        self.producer[node.output] = len(self.layers) - 1

    def unique(self, name: str) -> str:
        taken = {layer.name for layer in self.layers}
        return name if name not in taken else next(new for i in range(2, len(taken) + 3) if (new := f"{name}.{i}") not in taken)

    def alone(self, value: str) -> bool:
        """Whether one operator reads `value`, so that it may vanish into a layer."""
        return self.uses[value] == 1 and value != self.answer


def _convolution(state: _Assembly, node: Node) -> None:
    name, shape = state.source(node)
    weight, stride, padding = node.fields["weight"], node.fields["stride"], node.fields["padding"]
    groups = node.fields["groups"]
    if weight.shape[1] * groups != shape.channels:
        raise refused(node.name, node.operator, f"its weights take {weight.shape[1] * groups} channels and it is given {shape.channels}")
    output = Shape(int(weight.shape[0]), *_sizes(shape, weight.shape[2:], stride, padding))
    state.append(node, Convolution(state.unique(node.name), name, shape, output, **node.fields))


def _linear(state: _Assembly, node: Node) -> None:
    name, shape = state.source(node)
    weight = node.fields["weight"]
    if shape.pixels != 1 or weight.shape[1] != shape.channels:
        raise refused(node.name, node.operator, f"it takes {weight.shape[1]} features and is given {shape}; pool to one pixel before it")
    state.append(node, Linear(state.unique(node.name), name, shape, Shape(int(weight.shape[0]), 1, 1), **node.fields))


def _pool(state: _Assembly, node: Node) -> None:
    name, shape = state.source(node)
    output = Shape(shape.channels, *_sizes(shape, node.fields["kernel"], node.fields["stride"], node.fields["padding"]))
    state.append(node, Pool(state.unique(node.name), name, shape, output, **node.fields))


def _global_average(state: _Assembly, node: Node) -> None:
    name, shape = state.source(node)
    window = (shape.height, shape.width)
    state.append(node, Pool(state.unique(node.name), name, shape, Shape(shape.channels, 1, 1), "average", window, window))


def _add(state: _Assembly, node: Node) -> None:
    """Into the later of the two convolutions, whose result nobody else may have read."""
    positions = sorted((0, 1), key=lambda position: state.index(node, position), reverse=True)
    if state.source(node, 0)[1] != state.source(node, 1)[1]:
        raise refused(node.name, node.operator, f"the shapes {state.source(node, 0)[1]} and {state.source(node, 1)[1]} differ")
    for taker, other in (positions, positions[::-1]):
        index, residual = state.index(node, taker), state.index(node, other)
        layer = state.layers[index] if index >= 0 else None
        if not isinstance(layer, Convolution) or layer.activation != "none" or layer.residual is not None:
            continue
        if residual < index and state.alone(node.inputs[taker]):
            state.layers[index] = dataclasses.replace(layer, residual=state.source(node, other)[0])
            state.producer[node.output] = index
            return
    raise refused(node.name, node.operator, "an addition must take the result of a convolution without an activation as its later summand")


def _activation(state: _Assembly, node: Node) -> None:
    index, function = state.index(node), node.fields["function"]
    layer = state.layers[index] if index >= 0 else None
    if isinstance(layer, Convolution | Linear) and layer.activation == "none" and state.alone(node.inputs[0]):
        state.layers[index] = dataclasses.replace(layer, activation=function)
        state.producer[node.output] = index
        return
    raise refused(node.name, node.operator, "an activation must follow a convolution, addition or linear layer whose result it alone reads")


def _flatten(state: _Assembly, node: Node) -> None:
    shape = state.source(node)[1]
    if shape.pixels != 1 and node.fields.get("flattens", True):
        raise refused(node.name, node.operator, f"it flattens {shape}; only a pooled vector can be flattened")
    value = node.inputs[0]
    state.producer[node.output] = state.index(node)
    # Who else reads the value reads this one, so that no activation vanishes into a layer behind its back.
    state.uses[node.output] += state.uses[value] - 1 + (value == state.answer)


_TAKERS = {
    "conv": _convolution,
    "linear": _linear,
    "pool": _pool,
    "global_average": _global_average,
    "add": _add,
    "activation": _activation,
    "flatten": _flatten,
}


def _sizes(shape: Shape, kernel: Sequence[int], stride: Pair, padding: Pair) -> tuple[int, int]:
    """Height and width after a window: ⌊(size + 2·padding - kernel) / stride⌋ + 1."""
    sizes = zip((shape.height, shape.width), kernel, stride, padding, strict=True)
    height, width = ((size + 2 * pad - window) // step + 1 for size, window, step, pad in sizes)
    return int(height), int(width)
