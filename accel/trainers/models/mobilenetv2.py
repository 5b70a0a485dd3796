"""MobileNetV2 (Sandler et al., 2018) with the strides that fit 32×32 images.

torchvision's network layer for layer and name for name (a test holds them against each other), written out because importing
torchvision takes as long as importing torch, and every process that opens the checkpoint would pay for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from accel.optional import require

if TYPE_CHECKING:
    from torch import Tensor, nn

STAGES = (
    # expansion, out, blocks, stride of the first block
    (1, 16, 1, 1),
    (6, 24, 2, 1),  # the paper has stride 2 here and in the stem: meant for 224x224
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Table 2 of the paper."""

FIRST, LAST = 32, 1280
"""Channels of the stem and of the last convolution."""


def build(num_classes: int = 10) -> nn.Module:
    """MobileNetV2, stem and 24-channel stage at stride 1: 32, 16, 8, 4 pixels, 2.2 M parameters, 88 M MAC.

    Takes float32 `batch`×3×32×32, returns logits `batch`×`num_classes`. Weights are drawn from torch's default generator.
    """
    require("torch", extra="train")
    from torch import nn

    def layer(channels_in: int, channels: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
        convolution = nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU6(inplace=True))

    class InvertedResidual(nn.Module):
        def __init__(self, channels_in: int, channels: int, stride: int, expansion: int) -> None:
            super().__init__()
            expanded = channels_in * expansion
            expand = [layer(channels_in, expanded, 1, 1, 1)] if expansion != 1 else []
            depthwise = layer(expanded, expanded, 3, stride, expanded)
            self.conv = nn.Sequential(*expand, depthwise, nn.Conv2d(expanded, channels, 1, bias=False), nn.BatchNorm2d(channels))
            self.residual = stride == 1 and channels_in == channels

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(x)
            return x + out if self.residual else out

    class MobileNetV2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = [layer(3, FIRST, 3, 1, 1)]
            channels_in = FIRST
            for expansion, channels, blocks, stride in STAGES:
                for index in range(blocks):
                    layers.append(InvertedResidual(channels_in, channels, 1 if index else stride, expansion))
                    channels_in = channels
            self.features = nn.Sequential(*layers, layer(channels_in, LAST, 1, 1, 1))
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(LAST, num_classes))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
            return logits

    module = MobileNetV2()
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out")
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0, 0.01)
            nn.init.zeros_(part.bias)
    return module
