"""A tiny network in every format, its inputs and its right answers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel import exporters
from accel.exporters import ExportRequest
from accel.types import TensorSpec

SHAPE = (3, 8, 8)
INPUTS = (TensorSpec("images", ("batch", *SHAPE), "float32", "NCHW"),)
OUTPUTS = (TensorSpec("logits", ("batch", 5), "float32", "NC"),)
FORMATS = {"torchscript": "torchscript", "onnxruntime": "onnx", "aoti": "aoti"}
FILES = {"aoti": "model.pt2"}
"""Names of files that torch does not open under another one."""


def build_net() -> Any:
    """Convolution, BatchNorm and a classifier, the same weights each time and from any thread, FP32, eval."""
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 9, 5),
    )
    # Not torch's generator: it belongs to the whole process, and some tests build nets in several threads.
    draw = np.random.default_rng(0)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                low = 0.5 if name.endswith("running_var") else -0.5
                tensor.copy_(torch.from_numpy(draw.uniform(low, low + 1, tuple(tensor.shape))))
    return net.eval()


def expected(images: np.ndarray) -> np.ndarray:
    """FP32 logits (N, 5) of the network on the CPU, without any of our code."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return build_net()(torch.from_numpy(images)).numpy()


def some_images(batch: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, *SHAPE), dtype=np.float32)


def export(format: str, precision: str, batch: int, path: Path, device: str = "cpu") -> None:
    """Write the network as the exporters would: traced, I/O in the engine's own precision; AOTInductor's exporter is itself the way."""
    torch = pytest.importorskip("torch")
    if format == "aoti":
        exporters.export("aoti", ExportRequest(build_net(), INPUTS, OUTPUTS, precision, path.parent, batch=batch, device=device))
        return
    net = build_net()
    example = torch.zeros(batch, *SHAPE)
    if precision == "fp16":
        net, example = net.half(), example.half()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if format == "torchscript":
            torch.jit.freeze(torch.jit.trace(net, example)).save(str(path))
        else:
            pytest.importorskip("onnx")
            torch.onnx.export(net, (example,), str(path), dynamo=False, opset_version=17, input_names=["images"], output_names=["logits"])
