"""A network small enough to train in a test (`trainable_net:build` is its factory), its recipe and its pictures."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from accel.trainers import Recipe

TINY = Recipe(
    model="tiny",
    epochs=2,
    batch_size=64,
    lr=0.2,
    weight_decay=5e-4,
    warmup_epochs=0.5,
    label_smoothing=0.1,
    cutout=6,
    ema_decay=0.9,
    amp="off",
)


@dataclasses.dataclass(frozen=True)
class Pictures:
    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...] = tuple("abcdefghij")
    sha256: str = "0" * 64


def pictures(count: int, split: str) -> Pictures:
    """Noise whose brightness tells the class, so that a tiny network can learn it."""
    generator = np.random.default_rng(len(split))
    labels = (np.arange(count) % 10).astype(np.uint8)
    images = labels[:, None, None, None] * 20 + generator.integers(0, 60, (count, 32, 32, 3))
    return Pictures("cifar10", split, images.astype(np.uint8), labels)


def build(num_classes: int = 10) -> Any:
    """With BatchNorm and dropout, as the real ones."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(32, num_classes),
    )
