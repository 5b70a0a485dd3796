"""Student A: five convolutions, the fewest layers and operations of the three; RepVGG's branches while training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accel.trainers.models import repvgg

if TYPE_CHECKING:
    from torch import nn

LAYERS = (
    # kernel, stride, out
    (4, 2, 48),
    (3, 1, 96),
    (3, 2, 192),
    (3, 1, 192),
    (3, 2, 256),
)


def build(num_classes: int = 10) -> nn.Module:
    """The student as it is trained, with branches: 16, 8, 4 pixels.

    Takes float32 `batch`×3×32×32, returns logits `batch`×`num_classes`. Weights are drawn from torch's default generator.
    """
    return repvgg.branched(LAYERS, num_classes)


def build_deployed(num_classes: int = 10) -> nn.Module:
    """The student as it is deployed: five convolutions with ReLU, 0.99 M parameters, 50 M MAC."""
    return repvgg.plain(LAYERS, num_classes)


def deployed(module: nn.Module) -> nn.Module:
    """A trained `build` as a `build_deployed` of the same logits."""
    return repvgg.merged(LAYERS, module)
