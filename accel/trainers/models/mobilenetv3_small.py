"""MobileNetV3-Small (Howard et al., 2019) with the strides that fit 32×32 images.

torchvision's network layer for layer and name for name (a test holds them against each other), written out because importing
torchvision takes as long as importing torch, and every process that opens the checkpoint would pay for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from accel.optional import require

if TYPE_CHECKING:
    from torch import Tensor, nn

BLOCKS = (
    # in, kernel, expanded, out, squeeze-excite, hardswish, stride
    (16, 3, 16, 16, True, False, 1),  # the paper has stride 2 here and in the stem: meant for 224x224
    (16, 3, 72, 24, False, False, 2),
    (24, 3, 88, 24, False, False, 1),
    (24, 5, 96, 40, True, True, 2),
    (40, 5, 240, 40, True, True, 1),
    (40, 5, 240, 40, True, True, 1),
    (40, 5, 120, 48, True, True, 1),
    (48, 5, 144, 48, True, True, 1),
    (48, 5, 288, 96, True, True, 2),
    (96, 5, 576, 96, True, True, 1),
    (96, 5, 576, 96, True, True, 1),
)
"""Table 2 of the paper."""

WIDTH = 1024
"""Of the hidden layer of the classifier."""


def build(num_classes: int = 10) -> nn.Module:
    """MobileNetV3-Small, stem and first block at stride 1: 32, 16, 8, 4 pixels, 1.5 M parameters.

    Takes float32 `batch`×3×32×32, returns logits `batch`×`num_classes`. Weights are drawn from torch's default generator.
    """
    require("torch", extra="train")
    from torch import nn

    def layer(channels_in: int, channels: int, kernel: int, stride: int, groups: int, activation: type[nn.Module] | None) -> nn.Sequential:
        convolution = nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        # torchvision's BatchNorm momentum of 0.01 suits ImageNet's schedules; here the statistics must follow within an epoch.
        parts: list[nn.Module] = [convolution, nn.BatchNorm2d(channels, eps=0.001, momentum=0.1)]
        return nn.Sequential(*parts, *([activation(inplace=True)] if activation else []))

    class SqueezeExcitation(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            squeezed = divisible(channels / 4)
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc1 = nn.Conv2d(channels, squeezed, 1)
            self.fc2 = nn.Conv2d(squeezed, channels, 1)
            self.activation = nn.ReLU()
            self.scale_activation = nn.Hardsigmoid()

        def forward(self, x: Tensor) -> Tensor:
            scale: Tensor = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
            return scale * x

    class InvertedResidual(nn.Module):
        def __init__(self, row: tuple[int, int, int, int, bool, bool, int]) -> None:
            super().__init__()
            channels_in, kernel, expanded, channels, squeeze, hardswish, stride = row
            activation: type[nn.Module] = nn.Hardswish if hardswish else nn.ReLU
            expand = [layer(channels_in, expanded, 1, 1, 1, activation)] if expanded != channels_in else []
            depthwise = layer(expanded, expanded, kernel, stride, expanded, activation)
            excite = [SqueezeExcitation(expanded)] if squeeze else []
            self.block = nn.Sequential(*expand, depthwise, *excite, layer(expanded, channels, 1, 1, 1, None))
            self.residual = stride == 1 and channels_in == channels

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.block(x)
            return out + x if self.residual else out

    class MobileNetV3(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            first, last = BLOCKS[0][0], BLOCKS[-1][3]
            blocks = [InvertedResidual(block) for block in BLOCKS]
            self.features = nn.Sequential(layer(3, first, 3, 1, 1, nn.Hardswish), *blocks, layer(last, 6 * last, 1, 1, 1, nn.Hardswish))
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            hidden = (nn.Linear(6 * last, WIDTH), nn.Hardswish(inplace=True), nn.Dropout(0.2, inplace=True))
            self.classifier = nn.Sequential(*hidden, nn.Linear(WIDTH, num_classes))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
            return logits

    module = MobileNetV3()
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0, 0.01)
            nn.init.zeros_(part.bias)
    return module


def divisible(channels: float, by: int = 8) -> int:
    """The multiple of `by` nearest to `channels`, but no more than a tenth below it."""
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded
