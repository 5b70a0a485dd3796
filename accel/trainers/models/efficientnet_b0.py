"""EfficientNet-B0 (Tan & Le, 2019) with the strides that fit 32×32 images, without stochastic depth.

torchvision's network layer for layer and name for name (a test holds them against each other), written out because importing
torchvision takes as long as importing torch, and every process that opens the checkpoint would pay for it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from accel.optional import require

if TYPE_CHECKING:
    from torch import Tensor, nn

STAGES = (
    # expansion, kernel, stride of the first block, out, blocks
    (1, 3, 1, 16, 1),
    (6, 3, 1, 24, 2),  # the paper has stride 2 here and in the stem: meant for 224x224
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
"""Table 1 of the paper."""

FIRST, LAST = 32, 1280
"""Channels of the stem and of the last convolution."""


def build(num_classes: int = 10) -> nn.Module:
    """EfficientNet-B0, stem and 24-channel stage at stride 1: 32, 16, 8, 4 pixels, 4.0 M parameters, 116 M MAC.

    Takes float32 `batch`×3×32×32, returns logits `batch`×`num_classes`. Weights are drawn from torch's default generator.
    """
    require("torch", extra="train")
    from torch import nn

    def layer(channels_in: int, channels: int, kernel: int, stride: int, groups: int, activation: bool = True) -> nn.Sequential:
        convolution = nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(channels), *([nn.SiLU(inplace=True)] if activation else []))

    class SqueezeExcitation(nn.Module):
        def __init__(self, channels: int, squeezed: int) -> None:
            super().__init__()
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc1 = nn.Conv2d(channels, squeezed, 1)
            self.fc2 = nn.Conv2d(squeezed, channels, 1)
            self.activation = nn.SiLU(inplace=True)
            self.scale_activation = nn.Sigmoid()

        def forward(self, x: Tensor) -> Tensor:
            scale: Tensor = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
            return scale * x

    class MBConv(nn.Module):
        def __init__(self, channels_in: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
            super().__init__()
            expanded = channels_in * expansion
            expand = [layer(channels_in, expanded, 1, 1, 1)] if expansion != 1 else []
            depthwise = layer(expanded, expanded, kernel, stride, expanded)
            # The squeeze is a quarter of the block's input, not of the expanded channels as in MobileNetV3.
            excite = SqueezeExcitation(expanded, channels_in // 4)
            self.block = nn.Sequential(*expand, depthwise, excite, layer(expanded, channels, 1, 1, 1, activation=False))
            self.residual = stride == 1 and channels_in == channels

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.block(x)
            return out + x if self.residual else out

    def stage(channels_in: int, channels: int, kernel: int, stride: int, expansion: int, blocks: int) -> nn.Sequential:
        later = (MBConv(channels, channels, kernel, 1, expansion) for _ in range(blocks - 1))
        return nn.Sequential(MBConv(channels_in, channels, kernel, stride, expansion), *later)

    class EfficientNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = [layer(3, FIRST, 3, 1, 1)]
            channels_in = FIRST
            for expansion, kernel, stride, channels, blocks in STAGES:
                layers.append(stage(channels_in, channels, kernel, stride, expansion, blocks))
                channels_in = channels
            self.features = nn.Sequential(*layers, layer(channels_in, LAST, 1, 1, 1))
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Sequential(nn.Dropout(0.2, inplace=True), nn.Linear(LAST, num_classes))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
            return logits

    module = EfficientNet()
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Linear):
            reach = 1 / math.sqrt(part.out_features)
            nn.init.uniform_(part.weight, -reach, reach)
            nn.init.zeros_(part.bias)
    return module
