"""A small ONNX file made by hand: convolution, ReLU, pooling, classifier; no torch needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

NUMPY = {"fp32": np.float32, "fp16": np.float16}


def write(path: Path, *, opset: int = 17, precision: str = "fp32", batch: int | str = 1, seed: int = 0, **changes: Any) -> Path:
    """`x` batch×3×8×8 → `y` batch×4; `changes`: `operator` in the place of Relu, `external` weights beside the file."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(seed)
    kind = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}[precision]
    weights = {
        name: (0.2 * draw.standard_normal(shape)).astype(NUMPY[precision])
        for name, shape in (("conv.w", (8, 3, 3, 3)), ("conv.b", (8,)), ("fc.w", (4, 8)), ("fc.b", (4,)))
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv.w", "conv.b"], ["a"], "/conv/Conv", pads=[1, 1, 1, 1]),
        helper.make_node(changes.get("operator", "Relu"), ["a"], ["b"], "/relu/Relu"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], "/pool/GlobalAveragePool"),
        helper.make_node("Flatten", ["c"], ["d"], "/flatten/Flatten"),
        helper.make_node("Gemm", ["d", "fc.w", "fc.b"], ["y"], "/fc/Gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "sample",
        [helper.make_tensor_value_info("x", kind, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", kind, [batch, 4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    if changes.get("external"):
        onnx.save_model(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    else:
        onnx.save_model(model, str(path))
    return path
