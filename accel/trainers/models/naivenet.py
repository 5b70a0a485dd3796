"""NaiveNet: depthwise-separable convolutions, squeeze-and-excitation and residual blocks on the image enlarged to 128×128.

The enlargement is the module's first layer, so that every engine takes 3×32×32 as those of the other models do. It enlarges to a size
and not by a factor: a picture that already has 128×128 passes it unchanged, bit for bit, so training may augment enlarged ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from accel.optional import require

if TYPE_CHECKING:
    from torch import Tensor, nn

SIDE = 128
"""Pixels that the first layer enlarges to."""

FIRST = 32
"""Channels of the stem, which is at stride 2."""

STAGES = ((64, 2), (128, 5), (192, 3))
"""Channels and blocks, the first block at stride 2."""

SQUEEZE = 4
"""Channels of a block to one of its squeeze."""


def build(num_classes: int = 10) -> nn.Module:
    """NaiveNet: 128, 64, 32, 16, 8 pixels, 0.30 M parameters (0.32 M for 100 classes), 38 M MAC.

    Takes float32 `batch`×3×32×32, returns logits `batch`×`num_classes`. Weights are drawn from torch's default generator.
    """
    require("torch", extra="train")
    from torch import nn

    def layer(channels_in: int, channels: int, kernel: int, stride: int, groups: int, activation: bool = True) -> nn.Sequential:
        convolution = nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(channels), *([nn.ReLU(inplace=True)] if activation else []))

    class SqueezeExcitation(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.reduce = nn.Conv2d(channels, channels // SQUEEZE, 1)
            self.relu = nn.ReLU(inplace=True)
            self.expand = nn.Conv2d(channels // SQUEEZE, channels, 1)
            self.gate = nn.Sigmoid()

        def forward(self, x: Tensor) -> Tensor:
            scale: Tensor = self.gate(self.expand(self.relu(self.reduce(self.pool(x)))))
            return scale * x

    class Block(nn.Module):
        def __init__(self, channels_in: int, channels: int, stride: int) -> None:
            super().__init__()
            self.depthwise = layer(channels_in, channels_in, 3, stride, channels_in)
            self.pointwise = layer(channels_in, channels, 1, 1, 1, activation=False)
            self.excite = SqueezeExcitation(channels)
            self.relu = nn.ReLU(inplace=True)
            self.residual = stride == 1 and channels_in == channels

        def forward(self, x: Tensor) -> Tensor:
            branch = self.excite(self.pointwise(self.depthwise(x)))
            out: Tensor = self.relu(branch + x if self.residual else branch)
            return out

    class NaiveNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enlarge = nn.Upsample(size=(SIDE, SIDE), mode="bilinear", align_corners=False)
            layers: list[nn.Module] = [layer(3, FIRST, 3, 2, 1)]
            channels_in = FIRST
            for channels, blocks in STAGES:
                for index in range(blocks):
                    layers.append(Block(channels_in, channels, 1 if index else 2))
                    channels_in = channels
            self.features = nn.Sequential(*layers)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(channels_in, num_classes))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.classifier(self.pool(self.features(self.enlarge(x))).flatten(1))
            return logits

    module = NaiveNet()
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return module
