"""A convolutional net small enough to export and bench in a test, and a bundle of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from accel.checkpoint import write_checkpoint
from accel.engines import Bundle, create, golden
from accel.engines.module import build_module
from accel.preprocess import Preprocess
from accel.types import Checkpoint, TensorSpec

CLASSES, SIZE = 5, 8
PREPROCESS = Preprocess((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), SIZE, SIZE)


def build() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


def build_branching() -> Any:
    """Ones, which runtimes warm up on, go one way and images another: torch.compile meets the other while it is timed."""
    import torch

    class Branching(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(3 * SIZE * SIZE, CLASSES)

        def forward(self, x: Any) -> Any:
            logits = self.fc(x.flatten(1))
            return logits + 0.0 if x.min() < 0 else logits

    return Branching()


def make_bundle(folder: Path, factory: str = "build") -> Bundle:
    import torch

    torch.manual_seed(0)
    module = globals()[factory]()
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    checkpoint = Checkpoint(
        folder / "checkpoint",
        "",
        "convnet",
        f"bench_convnet:{factory}",
        CLASSES,
        TensorSpec("input", ("batch", 3, SIZE, SIZE), "float32", "NCHW"),
        TensorSpec("logits", ("batch", CLASSES), "float32", "NC"),
        preprocess=PREPROCESS.to_dict(),
        labels=tuple("abcde"),
    )
    checkpoint = write_checkpoint(checkpoint, state)
    images = np.random.default_rng(1).integers(0, 256, (16, SIZE, SIZE, 3), dtype=np.uint8)
    return create(folder / "convnet.accel", checkpoint, golden.make(checkpoint, build_module(checkpoint), images, PREPROCESS))


def write_data(bundle: Bundle, path: Path, count: int = 64) -> str:
    """Images labelled by the model itself, so that its accuracy is 100 %."""
    from accel.engines.running import run_module

    images = np.random.default_rng(2).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    (logits,) = run_module(build_module(bundle.checkpoint), [PREPROCESS(images)])
    np.savez(path, images=images, labels=logits.argmax(1).astype(np.int64))
    return f"npz:{path}"
