"""The intermediate form of an ONNX file, FP32 or FP16, as `accel export --to onnx` writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from accel.errors import UsageError
from accel.exporters.fused.network import INPUT, Array, Network, Node, Pair, Shape, assemble, refused
from accel.optional import require

ACTIVATIONS = {"Relu": "relu", "HardSwish": "hardswish"}
ALIASES = ("Identity", "Cast", "Dropout")
RESHAPES = ("Flatten", "Reshape", "Squeeze")


def read(path: Path) -> Network:
    """Read the graph of `path`, which takes one image N×C×H×W, the batch 1 or dynamic.

    Raises:
        UnsupportedOperator: a node that the format cannot express, named with the reason.
        UsageError: not one image in and one output. MissingExtra: onnx is absent.
    """
    onnx = require("onnx", extra="onnx")
    model = onnx.load(str(path))
    graph = model.graph
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    inputs = [item for item in graph.input if item.name not in constants]
    shape = [item.dim_value for item in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []
    if len(shape) != 4 or min(shape[1:]) < 1 or shape[0] > 1 or len(graph.output) != 1:
        raise UsageError(f"{path.name} does not take one image N×C×H×W and give one answer", remedy="export it with --batch 1")
    nodes = []
    renamed = {inputs[0].name: INPUT}
    for item in graph.node:
        if item.op_type == "Constant":
            constants[item.output[0]] = onnx.numpy_helper.to_array(item.attribute[0].t)
        else:
            nodes.append(_node(onnx, item, constants, renamed))
    return assemble(Shape(*shape[1:]), _silu(nodes), graph.output[0].name)


def _node(onnx: Any, item: Any, constants: dict[str, Any], renamed: dict[str, str]) -> Node:
    name, operator = item.name or item.output[0], item.op_type
    fields = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in item.attribute}

    def node(kind: str, count: int, **of_layer: Any) -> Node:
        for value in item.input[:count]:
            if value in constants:
                raise refused(name, operator, f"it computes with the constant {value!r}")
        return Node(kind, name, operator, tuple(renamed.get(value, value) for value in item.input[:count]), item.output[0], of_layer)

    if operator == "Conv":
        if fields.get("auto_pad", b"NOTSET") != b"NOTSET" or set(fields.get("dilations", [1])) != {1}:
            raise refused(name, operator, "it uses auto_pad or dilations")
        weight, bias = _weights(item, constants, transposed=False)
        padding = _padding(name, operator, fields)
        return node("conv", 1, weight=weight, bias=bias, stride=_pair(fields, "strides"), padding=padding, groups=fields.get("group", 1))
    if operator in ("Gemm", "MatMul"):
        if {fields.get("alpha", 1.0), fields.get("beta", 1.0)} != {1.0} or fields.get("transA", 0):
            raise refused(name, operator, "it scales or transposes what it is given")
        weight, bias = _weights(item, constants, transposed=not fields.get("transB", 0))
        return node("linear", 1, weight=weight, bias=bias)
    if operator in ACTIVATIONS:
        return node("activation", 1, function=ACTIVATIONS[operator])
    if operator == "GlobalAveragePool":
        return node("global_average", 1)
    if operator == "ReduceMean":
        given = constants.get(item.input[1]) if len(item.input) > 1 else None
        axes = fields.get("axes", () if given is None else given)
        if sorted(int(axis) % 4 for axis in axes) == [2, 3]:
            return node("global_average", 1)
    if operator in ("MaxPool", "AveragePool"):
        padding = _padding(name, operator, fields)
        uncounted = operator == "AveragePool" and padding != (0, 0) and not fields.get("count_include_pad", 0)
        odd = fields.get("ceil_mode", 0) or fields.get("auto_pad", b"NOTSET") != b"NOTSET" or set(fields.get("dilations", [1])) != {1}
        if odd or uncounted or len(item.output) > 1:
            raise refused(name, operator, "it uses ceil_mode, auto_pad, dilations, uncounted padding or indices")
        how = "max" if operator == "MaxPool" else "average"
        return node("pool", 1, how=how, kernel=_pair(fields, "kernel_shape"), stride=_pair(fields, "strides"), padding=padding)
    if operator in ("Add", "Mul"):
        return node(operator.lower(), 2)
    if operator == "Sigmoid":
        return node("sigmoid", 1)
    if operator in ALIASES:
        return node("flatten", 1, flattens=False)
    if operator in RESHAPES:
        return node("flatten", 1)
    raise refused(name, operator, "it is not among the operators that this format has")


def _silu(nodes: list[Node]) -> list[Node]:
    """x · Sigmoid(x) as the one activation that it is; ONNX has SiLU only from opset 24."""
    gates = {node.output: node for node in nodes if node.kind == "sigmoid"}
    found = []
    for node in nodes:
        if node.kind == "mul":
            gate = next((gates[value] for value in node.inputs if value in gates), None)
            if gate is None or gate.inputs[0] not in node.inputs or sum(gate.output in other.inputs for other in nodes) != 1:
                raise refused(node.name, node.operator, "only x · Sigmoid(x) may multiply two results")
            found.append(Node("activation", node.name, "SiLU", gate.inputs, node.output, {"function": "silu"}))
        elif node.kind != "sigmoid":
            found.append(node)
    for gate in gates.values():
        if not any(node.kind == "mul" and gate.output in node.inputs for node in nodes):
            raise refused(gate.name, gate.operator, "only x · Sigmoid(x) may use it")
    return found


def _weights(item: Any, constants: dict[str, Any], transposed: bool) -> tuple[Array, Array]:
    for value in item.input[1:]:
        if value not in constants:
            raise refused(item.name or item.output[0], item.op_type, f"its weights {value!r} are computed")
    weight = np.ascontiguousarray(constants[item.input[1]], np.float32)
    weight = np.ascontiguousarray(weight.T) if transposed else weight
    bias = constants[item.input[2]] if len(item.input) > 2 else np.zeros(weight.shape[0])
    return weight, np.ascontiguousarray(bias, np.float32)


def _pair(fields: dict[str, Any], name: str) -> Pair:
    sizes = fields.get(name, [1, 1])
    return int(sizes[0]), int(sizes[1])


def _padding(name: str, operator: str, fields: dict[str, Any]) -> Pair:
    top, left, bottom, right = fields.get("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right):
        raise refused(name, operator, f"it pads {[top, left, bottom, right]}, not the same on both sides")
    return int(top), int(left)
