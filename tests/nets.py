"""A network small enough to export in a second: convolution, BatchNorm with moved statistics, ReLU, a classifier of ten classes."""

from __future__ import annotations

from typing import Any

SIZE = 8


def build() -> Any:
    """The network as a user's factory would build it, untrained."""
    import torch

    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(32, 10),
    )


def trained() -> Any:
    """The same network with seeded weights and BatchNorm statistics that matter, in eval mode."""
    import torch

    torch.manual_seed(0)
    net = build()
    net[1].running_mean.uniform_(-0.5, 0.5)
    net[1].running_var.uniform_(0.5, 1.5)
    return net.eval()
