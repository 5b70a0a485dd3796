"""MobileNetV3-Small (Howard et al., 2019) with the strides that fit 32×32 images."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from accel.optional import require

if TYPE_CHECKING:
    from torch import nn

BLOCKS = (
    # in, kernel, expanded, out, squeeze-excite, activation, stride
    (16, 3, 16, 16, True, "RE", 1),  # the paper has stride 2 here and in the stem: meant for 224x224
    (16, 3, 72, 24, False, "RE", 2),
    (24, 3, 88, 24, False, "RE", 1),
    (24, 5, 96, 40, True, "HS", 2),
    (40, 5, 240, 40, True, "HS", 1),
    (40, 5, 240, 40, True, "HS", 1),
    (40, 5, 120, 48, True, "HS", 1),
    (48, 5, 144, 48, True, "HS", 1),
    (48, 5, 288, 96, True, "HS", 2),
    (96, 5, 576, 96, True, "HS", 1),
    (96, 5, 576, 96, True, "HS", 1),
)
"""Table 2 of the paper."""


def build(num_classes: int = 10) -> nn.Module:
    """torchvision's MobileNetV3-Small, stem and first block at stride 1: 32, 16, 8, 4 pixels, 1.5 M parameters.

    Takes float32 `batch`×3×32×32, returns logits `batch`×`num_classes`. Weights are drawn from torch's default generator.
    """
    require("torch", extra="train")
    mobilenetv3 = require("torchvision.models.mobilenetv3", extra="train")
    from torch import nn

    settings = [mobilenetv3.InvertedResidualConfig(*block, dilation=1, width_mult=1.0) for block in BLOCKS]
    # torchvision's BatchNorm momentum of 0.01 suits ImageNet's schedules; here the statistics must follow within an epoch.
    norm = functools.partial(nn.BatchNorm2d, eps=0.001, momentum=0.1)
    module: nn.Module = mobilenetv3.MobileNetV3(settings, last_channel=1024, num_classes=num_classes, norm_layer=norm, dropout=0.2)
    stem: Any = module.get_submodule("features.0.0")
    stem.stride = (1, 1)
    return module
