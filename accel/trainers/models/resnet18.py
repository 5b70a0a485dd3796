"""ResNet-18 (He et al., 2015) with the stem that fits 32×32 images.

torchvision's network layer for layer and name for name (a test holds them against each other), written out because importing
torchvision takes as long as importing torch, and every process that opens the checkpoint would pay for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accel.optional import require

if TYPE_CHECKING:
    from torch import Tensor, nn


def build(num_classes: int = 10) -> nn.Module:
    """ResNet-18 with a 3×3 stem at stride 1 and no max-pool: 32, 16, 8, 4 pixels, 11.2 M parameters, 0.56 G MAC.

    Takes float32 `batch`×3×32×32, returns logits `batch`×`num_classes`. Weights are drawn from torch's default generator.
    """
    require("torch", extra="train")
    from torch import nn

    def convolution(channels_in: int, channels: int, kernel: int, stride: int) -> nn.Conv2d:
        return nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, bias=False)

    class BasicBlock(nn.Module):
        def __init__(self, channels_in: int, channels: int, stride: int) -> None:
            super().__init__()
            self.conv1 = convolution(channels_in, channels, 3, stride)
            self.bn1 = nn.BatchNorm2d(channels)
            self.relu = nn.ReLU(inplace=True)
            self.conv2 = convolution(channels, channels, 3, 1)
            self.bn2 = nn.BatchNorm2d(channels)
            self.downsample: Any = None
            if stride != 1 or channels_in != channels:
                self.downsample = nn.Sequential(convolution(channels_in, channels, 1, stride), nn.BatchNorm2d(channels))

        def forward(self, x: Tensor) -> Tensor:
            shortcut = x if self.downsample is None else self.downsample(x)
            x = self.relu(self.bn1(self.conv1(x)))
            out: Tensor = self.relu(self.bn2(self.conv2(x)) + shortcut)
            return out

    def stage(channels_in: int, channels: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(channels_in, channels, stride), BasicBlock(channels, channels, 1))

    class ResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = convolution(3, 64, 3, 1)
            self.bn1 = nn.BatchNorm2d(64)
            self.relu = nn.ReLU(inplace=True)
            self.layer1 = stage(64, 64, 1)
            self.layer2 = stage(64, 128, 2)
            self.layer3 = stage(128, 256, 2)
            self.layer4 = stage(256, 512, 2)
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(512, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.bn1(self.conv1(x)))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            logits: Tensor = self.fc(self.avgpool(x).flatten(1))
            return logits

    module = ResNet()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return module
