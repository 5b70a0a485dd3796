"""The intermediate form of an nn.Module, through torch.export."""

from __future__ import annotations

from typing import Any

import numpy as np

from accel.exporters.fused.network import INPUT, Array, Network, Node, Pair, Shape, assemble, refused
from accel.exporters.preparing import tracing
from accel.optional import require

ACTIVATIONS = {"relu": "relu", "hardswish": "hardswish", "silu": "silu"}
ALIASES = ("dropout", "clone", "contiguous", "alias", "detach")
"""Operators that hand on what they are given, in eval mode."""
RESHAPES = ("flatten", "view", "reshape", "squeeze")


def read(module: Any, input: Shape) -> Network:
    """Read `module`: nn.Module in eval mode, FP32, on the CPU, BatchNorm folded (engines.folding), which takes 1×C×H×W.

    Raises:
        UnsupportedOperator: a layer that the format cannot express, named with the reason; or torch.export cannot trace it.
    """
    torch = require("torch", extra="train")
    with tracing("fused"):
        program = torch.export.export(module, (torch.zeros(1, input.channels, input.height, input.width),))
    graph, signature = program.graph, program.graph_signature
    constants = {
        **{name: program.state_dict[target] for name, target in signature.inputs_to_parameters.items()},
        **{name: _buffer(program, target) for name, target in signature.inputs_to_buffers.items()},
    }
    # An operator that works in place changes what later ones find under the old name.
    renamed = dict.fromkeys(signature.user_inputs, INPUT)
    nodes = []
    for item in graph.nodes:
        if item.op == "call_function":
            nodes.append(_node(item, constants, renamed))
            if _operator(item).endswith("_"):
                renamed[item.args[0].name] = item.name
    answer = str(signature.user_outputs[0])
    return assemble(input, nodes, renamed.get(answer, answer))


def _buffer(program: Any, target: str) -> Any:
    return program.state_dict[target] if target in program.state_dict else program.constants[target]


def _operator(item: Any) -> str:
    """`conv2d` of `aten.conv2d.default`; what works in place keeps its underscore."""
    return str(item.target).split(".")[1] if str(item.target).count(".") else str(item.target)


def _node(item: Any, constants: dict[str, Any], renamed: dict[str, str]) -> Node:
    operator = _operator(item)
    modules = list((item.meta.get("nn_module_stack") or {}).values())
    name = (modules[-1][0] if modules else "") or item.name
    label = str(item.target).removesuffix(".default")
    argument = _arguments(item)

    def node(kind: str, *inputs: Any, **fields: Any) -> Node:
        for value in inputs:
            if not hasattr(value, "name") or value.name in constants:
                raise refused(name, label, f"it computes with the constant {value}")
        return Node(kind, name, label, tuple(renamed.get(value.name, value.name) for value in inputs), item.name, fields)

    def weights() -> dict[str, Array]:
        bias = argument.get("bias")
        found = {"weight": argument["weight"], "bias": bias}
        missing = [value for value in found.values() if value is not None and getattr(value, "name", None) not in constants]
        if missing:
            raise refused(name, label, f"its weights {missing[0]} are computed")
        weight = _numpy(constants[argument["weight"].name])
        return {"weight": weight, "bias": np.zeros(weight.shape[0], np.float32) if bias is None else _numpy(constants[bias.name])}

    kind = operator.rstrip("_")
    if kind == "conv2d":
        if _pair(argument.get("dilation", 1)) != (1, 1):
            raise refused(name, label, f"its dilation is {argument['dilation']}")
        if isinstance(argument.get("padding", 0), str):
            raise refused(name, label, f"its padding is {argument['padding']!r}; give it as numbers")
        sizes = {"stride": _pair(argument.get("stride", 1)), "padding": _pair(argument.get("padding", 0))}
        return node("conv", argument["input"], **weights(), **sizes, groups=int(argument.get("groups", 1)))
    if kind == "linear":
        return node("linear", argument["input"], **weights())
    if kind == "add" and argument.get("alpha", 1) == 1:
        return node("add", argument["self"], argument["other"])
    if kind in ACTIVATIONS:
        return node("activation", item.args[0], function=ACTIVATIONS[kind])
    if kind == "adaptive_avg_pool2d" and _pair(argument["output_size"]) == (1, 1):
        return node("global_average", item.args[0])
    if kind == "mean" and sorted(axis % 4 for axis in argument.get("dim") or ()) == [2, 3]:
        return node("global_average", item.args[0])
    if kind in ("max_pool2d", "avg_pool2d"):
        return node("pool", item.args[0], **_pool(name, label, kind, argument))
    if kind in ALIASES and not (kind == "dropout" and argument.get("train")):
        return node("flatten", item.args[0], flattens=False)
    if kind in RESHAPES:
        return node("flatten", item.args[0])
    raise refused(name, label, "it is not among the operators that this format has")


def _pool(name: str, label: str, kind: str, argument: dict[str, Any]) -> dict[str, Any]:
    odd = [key for key in ("ceil_mode", "divisor_override") if argument.get(key)]
    if kind == "max_pool2d" and _pair(argument.get("dilation", 1)) != (1, 1):
        odd.append("dilation")
    padding = _pair(argument.get("padding", 0))
    if kind == "avg_pool2d" and padding != (0, 0) and not argument.get("count_include_pad", True):
        odd.append("count_include_pad=False")
    if odd:
        raise refused(name, label, f"it uses {', '.join(odd)}")
    kernel = _pair(argument["kernel_size"])
    how = "max" if kind == "max_pool2d" else "average"
    return {"how": how, "kernel": kernel, "stride": _pair(argument.get("stride") or kernel), "padding": padding}


def _arguments(item: Any) -> dict[str, Any]:
    """Arguments by the name that the operator's schema gives them."""
    schema = getattr(item.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    return {**dict(zip(names, item.args, strict=False)), **item.kwargs}


def _pair(value: Any) -> Pair:
    if isinstance(value, int):
        return value, value
    sizes = [int(size) for size in value]
    return sizes[0], sizes[-1]


def _numpy(tensor: Any) -> Array:
    return np.ascontiguousarray(tensor.detach().cpu().float().numpy())
