"""Read back from an ONNX model which dtypes it stores, computes in and talks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from accel.errors import PrecisionError
from accel.exporters.request import DTYPES
from accel.optional import require

COMPUTE_OPS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "BatchNormalization", "Attention"},
)
"""Where the arithmetic is. Elsewhere float32 may be right: statistics of a LayerNorm, softmax, scales of a Resize."""


def prove(model: Any, precision: str) -> dict[str, Any]:
    """Count element types: of initialisers, of what compute nodes read and write, of inputs and outputs.

    Args:
        model: onnx.ModelProto.
        precision: `fp32` or `fp16`.

    Returns:
        `{"initialisers": {"float16": 42}, "compute": {"float16": 21}, "inputs": ["float16"], "outputs": ["float16"]}`.

    Raises:
        PrecisionError: a compute node, input or output is in another floating type, or in one that cannot be found out.
    """
    onnx = require("onnx", extra="onnx")
    graph = onnx.shape_inference.infer_shapes(model).graph
    graphs = list(_walk(graph))
    types = {value.name: value.type.tensor_type.elem_type for part in graphs for value in (*part.input, *part.output, *part.value_info)}
    types.update({tensor.name: tensor.data_type for part in graphs for tensor in part.initializer})
    wanted = DTYPES[precision]
    compute: Counter[str] = Counter()
    for node in (node for part in graphs for node in part.node):
        if node.op_type in COMPUTE_OPS:
            found = {name: _name(types.get(name, 0)) for name in (*node.input, *node.output) if name}
            wrong = {name: dtype for name, dtype in found.items() if _is_float(dtype) and dtype != wanted}
            if wrong:
                tensor, dtype = next(iter(wrong.items()))
                raise PrecisionError(f"{precision} was asked for; {node.op_type} {node.name} has {tensor} in {dtype}")
            compute[wanted] += 1
    talks = {kind: [_name(types[value.name]) for value in values] for kind, values in (("inputs", graph.input), ("outputs", graph.output))}
    for kind, dtypes in talks.items():
        if any(_is_float(dtype) and dtype != wanted for dtype in dtypes):
            raise PrecisionError(f"{precision} was asked for; the {kind} of the ONNX file are {', '.join(dtypes)}")
    initialisers = Counter(_name(tensor.data_type) for part in graphs for tensor in part.initializer)
    return {"initialisers": dict(initialisers), "compute": dict(compute), **talks}


def _walk(graph: Any) -> Iterator[Any]:
    """`graph` and the bodies of its If, Loop and Scan nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _walk(body)


def _name(elem_type: int) -> str:
    """`float16` of TensorProto.FLOAT16; `unknown` where inference found nothing."""
    onnx = require("onnx", extra="onnx")
    if elem_type == onnx.TensorProto.UNDEFINED:
        return "unknown"
    return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type).name)


def _is_float(dtype: str) -> bool:
    return dtype == "unknown" or "float" in dtype
