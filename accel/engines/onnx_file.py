"""What an ONNX file says of itself, read from the protobuf's bytes: the `onnx` package is not needed where TensorRT builds.

Field numbers are those of onnx.proto (ONNX 1.x); fields that are not asked for are skipped unread.
"""

from __future__ import annotations

import dataclasses
import mmap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from accel.engines.protobuf import fields, messages, text
from accel.errors import CorruptArtifact

ELEMENT_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    16: "bfloat16",
}
"""TensorProto.DataType → key of types.ITEMSIZE; other types are named `type 17`."""

DEFAULT_DOMAIN = ("", "ai.onnx")


@dataclasses.dataclass(frozen=True)
class OnnxTensor:
    """An input or output of the graph.

    Attributes:
        dtype: a value of ELEMENT_TYPES.
        shape: sizes; a dynamic one is its name, or `?` where it has none; None where the file gives no shape.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None


@dataclasses.dataclass(frozen=True)
class OnnxFile:
    """Attributes:
    opset: of the default domain.
    inputs, outputs: of the graph; initialisers are left out of the inputs.
    nodes: (name, operator) in the file's order.
    weights: dtype → how many initialisers and constants have it.
    external: files beside this one that hold weights, as the file names them.
    operators: of every node, in bodies and functions too, as `Conv` or `com.microsoft.FusedConv`.
    """

    path: Path
    ir_version: int
    opset: int
    inputs: tuple[OnnxTensor, ...]
    outputs: tuple[OnnxTensor, ...]
    nodes: tuple[tuple[str, str], ...]
    weights: Mapping[str, int]
    external: tuple[str, ...]
    operators: frozenset[str]

    @property
    def precision(self) -> str:
        """`fp16` if any weight is float16, else `fp32`: what a strongly typed network computes its layers in."""
        return "fp16" if self.weights.get("float16") else "fp32"


def read(path: Path) -> OnnxFile:
    """Read the file at `path`; its weights are not looked at.

    Raises:
        CorruptArtifact: absent, truncated, or no ONNX model.
    """
    try:
        with open(path, "rb") as stream:
            return _model(path, memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)))
    except OSError as error:
        raise CorruptArtifact(f"{path} cannot be read: {error.strerror}", remedy="name an ONNX file that exists") from error
    except (ValueError, IndexError, RecursionError) as error:  # an empty file cannot be mapped; a text read as protobuf breaks off
        raise CorruptArtifact(f"{path} is no ONNX model: {error}", remedy="export it again, or name another file") from error


def _model(path: Path, data: memoryview) -> OnnxFile:
    ir_version, opset, has_graph = 0, 0, False
    reading = _Graph()
    for number, value in fields(data):
        if number == 1 and isinstance(value, int):
            ir_version = value
        elif number == 7 and isinstance(value, memoryview):
            # A message that is there twice is one message to protobuf, with the parts of both.
            reading.read(value)
            has_graph = True
        elif number == 8 and isinstance(value, memoryview):
            domain, version = _opset(value)
            opset = version if domain in DEFAULT_DOMAIN else opset
        elif number in (20, 25) and isinstance(value, memoryview):
            (reading.training if number == 20 else reading.function)(value)
    if not has_graph or not opset:
        raise ValueError("it has no graph or no opset")
    if not reading.outputs:
        raise ValueError("its graph has no output")
    return OnnxFile(
        path=path,
        ir_version=ir_version,
        opset=opset,
        inputs=tuple(tensor for tensor in reading.inputs if tensor.name not in reading.initialisers),
        outputs=tuple(reading.outputs),
        nodes=tuple(reading.nodes),
        weights=dict(reading.weights),
        external=tuple(dict.fromkeys(reading.external)),
        operators=frozenset(reading.operators),
    )


class _Graph:
    def __init__(self) -> None:
        self.inputs: list[OnnxTensor] = []
        self.outputs: list[OnnxTensor] = []
        self.nodes: list[tuple[str, str]] = []
        self.initialisers: set[str] = set()
        self.weights: Counter[str] = Counter()
        self.external: list[str] = []
        self.operators: set[str] = set()

    def read(self, data: memoryview) -> None:
        for number, value in messages(data):
            if number == 1:
                self._node(value, listed=True)
            elif number == 5:
                self.initialisers.add(self._tensor(value))
            elif number == 11:
                self.inputs.append(_value_info(value))
            elif number == 12:
                self.outputs.append(_value_info(value))
            elif number == 15:
                self._sparse(value)

    def function(self, data: memoryview) -> None:
        """A local function of the model: what it runs counts, its nodes are not the graph's."""
        for number, value in messages(data):
            if number == 7:
                self._node(value, listed=False)
            elif number == 11:  # default values of its attributes
                self._attribute(value)

    def training(self, data: memoryview) -> None:
        for number, value in messages(data):
            if number in (1, 2):  # graphs that initialise and train
                self._body(value)

    def _node(self, data: memoryview, *, listed: bool) -> None:
        name = operator = domain = ""
        for number, value in messages(data):
            if number == 3:
                name = text(value)
            elif number == 4:
                operator = text(value)
            elif number == 5:
                self._attribute(value)
            elif number == 7:
                domain = text(value)
        self.operators.add(operator if domain in DEFAULT_DOMAIN else f"{domain}.{operator}")
        if listed:
            self.nodes.append((name, operator))

    def _attribute(self, data: memoryview) -> None:
        for number, value in messages(data):
            if number in (5, 10):
                self._tensor(value)
            elif number in (6, 11):
                self._body(value)
            elif number in (22, 23):
                self._sparse(value)

    def _body(self, data: memoryview) -> None:
        """Of an If, Loop or Scan: its weights count, its inputs are not the file's."""
        for number, value in messages(data):
            if number == 1:
                self._node(value, listed=False)
            elif number == 5:
                self._tensor(value)
            elif number == 15:
                self._sparse(value)

    def _sparse(self, data: memoryview) -> None:
        for number, value in messages(data):
            if number in (1, 2):  # values and indices
                self._tensor(value)

    def _tensor(self, data: memoryview) -> str:
        """Count the tensor's type; returns its name."""
        name, dtype = "", ""
        for number, value in fields(data):
            if number == 2 and isinstance(value, int):
                dtype = _dtype(value)
            elif number == 8 and isinstance(value, memoryview):
                name = text(value)
            elif number == 13 and isinstance(value, memoryview):
                # Whether the tensor says that it is external may stand in another part of it: a place that is named counts.
                entry = {key: text(part) for key, part in messages(value)}
                if entry.get(1) == "location":
                    self.external.append(entry.get(2, ""))
        self.weights[dtype] += 1
        return name


def _value_info(data: memoryview) -> OnnxTensor:
    name, dtype, shape = "", "", None
    for number, value in messages(data):
        if number == 1:
            name = text(value)
        elif number == 2:
            for kind, tensor in messages(value):
                if kind != 1:
                    raise ValueError(f"{name} is no tensor")
                dtype, shape = _tensor_type(tensor)
    return OnnxTensor(name, dtype, shape)


def _tensor_type(data: memoryview) -> tuple[str, tuple[int | str, ...] | None]:
    dtype: str = ""
    shape: tuple[int | str, ...] | None = None
    for number, value in fields(data):
        if number == 1 and isinstance(value, int):
            dtype = _dtype(value)
        elif number == 2 and isinstance(value, memoryview):
            shape = tuple(_size(dim) for inner, dim in messages(value) if inner == 1)
    return dtype, shape


def _size(data: memoryview) -> int | str:
    size: int | str = "?"
    for number, value in fields(data):
        if number == 1 and isinstance(value, int):
            # Some exporters write -1, which a varint carries as a number of 64 bits, or 0 for "any size".
            size = value if 1 <= value < 2**63 else "?"
        elif number == 2 and isinstance(value, memoryview):
            size = text(value) or "?"
    return size


def _opset(data: memoryview) -> tuple[str, int]:
    domain, version = "", 0
    for number, value in fields(data):
        if number == 1 and isinstance(value, memoryview):
            domain = text(value)
        elif number == 2 and isinstance(value, int):
            version = value
    return domain, version


def _dtype(number: int) -> str:
    return ELEMENT_TYPES.get(number, f"type {number}")
