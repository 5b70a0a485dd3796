"""Where the arithmetic of a parsed network is: multiply-accumulates of each convolution and matrix product, and the types around it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from accel.trt import Library

_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


@dataclasses.dataclass(frozen=True)
class Work:
    """One layer that multiplies.

    Attributes:
        names: the layer's own, and those of the ONNX nodes that it was made from where the network tells them.
        kind: `CONVOLUTION`, `MATRIX_MULTIPLY`, …
        macs: at the batch that was asked for.
        dtypes: of its floating inputs and outputs in the network, as `HALF`.
    """

    name: str
    names: frozenset[str]
    kind: str
    macs: int
    dtypes: tuple[str, ...]


def onnx_nodes(metadata: str) -> list[str]:
    """The ONNX nodes that a layer's metadata names."""
    return _NODE.findall(metadata)


def multiplies(layer: Any) -> bool:
    """Whether a layer of a network is one that `measure` counts."""
    return _kind(layer) in _KINDS


def measure(library: Library, network: Any, batch: int) -> list[Work]:
    """Every layer that multiplies; a dynamic batch dimension counts as `batch`."""
    return [work for index in range(network.num_layers) for work in _work(library, network.get_layer(index), batch)]


def _work(library: Library, layer: Any, batch: int) -> Iterator[Work]:
    if not multiplies(layer):
        return
    kind = _kind(layer)
    class_name, count = _KINDS[kind]
    tensors = [layer.get_input(index) for index in range(layer.num_inputs)]
    results = [layer.get_output(index) for index in range(layer.num_outputs)]
    dtypes = tuple(str(tensor.dtype).rpartition(".")[2] for tensor in (*tensors, *results) if tensor is not None)
    shapes = [_shape(tensor, batch) for tensor in (*tensors[:1], *results[:1])]
    metadata = str(getattr(layer, "metadata", "") or "")
    name = str(layer.name)
    # The bindings hand out the base class; its own one has the parameters.
    layer.__class__ = getattr(library.trt, class_name)
    macs = count(layer, shapes, [_shape(tensor, batch) for tensor in tensors if tensor is not None])
    yield Work(name, frozenset([name, *onnx_nodes(metadata)]), kind, macs, dtypes)


def _kind(layer: Any) -> str:
    return str(layer.type).rpartition(".")[2]


def _shape(tensor: Any, batch: int) -> tuple[int, ...]:
    return tuple(batch if int(size) == -1 else int(size) for size in tensor.shape)


def _convolution(convolution: Any, shapes: list[tuple[int, ...]], inputs: list[tuple[int, ...]]) -> int:
    source, result = shapes
    return math.prod((*result, *map(int, convolution.kernel_size_nd), source[1])) // int(convolution.num_groups)


def _deconvolution(deconvolution: Any, shapes: list[tuple[int, ...]], inputs: list[tuple[int, ...]]) -> int:
    source, result = shapes
    return math.prod((*source, *map(int, deconvolution.kernel_size_nd), result[1])) // int(deconvolution.num_groups)


def _product(product: Any, shapes: list[tuple[int, ...]], inputs: list[tuple[int, ...]]) -> int:
    source, result = shapes
    transposed = str(product.op0).rpartition(".")[2] == "TRANSPOSE"
    return math.prod(result) * (source[-2] if transposed and len(source) > 1 else source[-1])


def _connected(connected: Any, shapes: list[tuple[int, ...]], inputs: list[tuple[int, ...]]) -> int:
    source, _ = shapes
    return math.prod(source) * int(connected.num_output_channels)


def _einsum(einsum: Any, shapes: list[tuple[int, ...]], inputs: list[tuple[int, ...]]) -> int:
    terms = einsum.equation.replace(" ", "").partition("->")[0].split(",")
    sizes = {letter: size for term, shape in zip(terms, inputs, strict=True) for letter, size in zip(term, shape, strict=False)}
    return math.prod(sizes.values())


_Count = Callable[[Any, list[tuple[int, ...]], list[tuple[int, ...]]], int]

_KINDS: dict[str, tuple[str, _Count]] = {
    "CONVOLUTION": ("IConvolutionLayer", _convolution),
    "DECONVOLUTION": ("IDeconvolutionLayer", _deconvolution),
    "MATRIX_MULTIPLY": ("IMatrixMultiplyLayer", _product),
    "FULLY_CONNECTED": ("IFullyConnectedLayer", _connected),  # 8.6 alone
    "EINSUM": ("IEinsumLayer", _einsum),
}
"""LayerType → its class, and how its multiply-accumulates are counted from (first input, first output) and all inputs."""
