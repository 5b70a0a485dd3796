"""A tiny model, its checkpoint, its golden samples and an engine made of plain bytes, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from accel.checkpoint import write_checkpoint
from accel.engines import Golden
from accel.files import sha256_file
from accel.types import Checkpoint, EngineEntry, TensorSpec

INPUT = TensorSpec("input", ("batch", 3, 8, 8), "float32", "NCHW")
OUTPUT = TensorSpec("logits", ("batch", 4), "float32", "NC")


def build(num_classes: int = 4) -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6, eps=1e-3),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, num_classes),
    )


def build_number() -> int:
    return 3


def checkpoint_of(folder: Path, dtype: str = "float16", seed: int = 0, **fields: Any) -> Checkpoint:
    """A checkpoint of `build` with random weights, stored as `dtype`; torch is not needed."""
    draw = np.random.default_rng(seed)
    shapes = {"0.weight": (6, 3, 3, 3), "1.bias": (6,), "1.running_mean": (6,), "5.weight": (4, 6), "5.bias": (4,)}
    tensors = {name: draw.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    tensors |= {name: draw.uniform(0.5, 2, 6).astype(dtype) for name in ("1.weight", "1.running_var")}
    tensors["1.num_batches_tracked"] = np.array(7, dtype=np.int64)
    values: dict[str, Any] = {
        "name": "tiny",
        "factory": "engine_samples:build",
        "num_classes": 4,
        "input": INPUT,
        "output": OUTPUT,
        "labels": ("a", "b", "c", "d"),
        "preprocess": {"mean": [0.5, 0.5, 0.5]},
    }
    return write_checkpoint(Checkpoint(path=folder, sha256="", **{**values, **fields}), tensors)


def golden_of(seed: int = 0) -> Golden:
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    return Golden(images, {"input": draw.standard_normal((4, 3, 8, 8), np.float32)}, {"logits": draw.standard_normal((4, 4), np.float32)})


def entry_of(folder: Path, data: bytes = b"engine", name: str = "onnx-fp32", **fields: Any) -> EngineEntry:
    """Write `folder/model.onnx` and describe it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(data)
    format, precision = name.split("-")[:2]
    values: dict[str, Any] = {
        "inputs": (TensorSpec("input", (1, 3, 8, 8), "float32", "NCHW"),),
        "outputs": (TensorSpec("logits", (1, 4), "float32", "NC"),),
        "toolchain": {"exporter": "hand"},
        "built_s": 0.5,
        "opset": 17,
        "parity": {"status": "passed"},
    }
    files = {f"{name}/model.onnx": sha256_file(folder / "model.onnx")}
    return EngineEntry(name=name, format=format, precision=precision, files=files, **{**values, **fields})
