"""Student C: nine wider convolutions, the largest of the three; RepVGG's branches while training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accel.trainers.models import repvgg

if TYPE_CHECKING:
    from torch import nn

LAYERS = (
    # kernel, stride, out
    (4, 2, 96),
    (3, 1, 160),
    (3, 1, 160),
    (3, 1, 160),
    (3, 2, 256),
    (3, 1, 256),
    (3, 1, 256),
    (3, 2, 384),
    (3, 1, 384),
)


def build(num_classes: int = 10) -> nn.Module:
    """The student as it is trained, with branches: 16, 8, 4 pixels.

    Takes float32 `batch`×3×32×32, returns logits `batch`×`num_classes`. Weights are drawn from torch's default generator.
    """
    return repvgg.branched(LAYERS, num_classes)


def build_deployed(num_classes: int = 10) -> nn.Module:
    """The student as it is deployed: nine convolutions with ReLU, 4.4 M parameters, 289 M MAC."""
    return repvgg.plain(LAYERS, num_classes)


def deployed(module: nn.Module) -> nn.Module:
    """A trained `build` as a `build_deployed` of the same logits."""
    return repvgg.merged(LAYERS, module)
