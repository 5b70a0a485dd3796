"""ShuffleNetV2 ×1.0 (Ma et al., 2018) with the stem that fits 32×32 images.

torchvision's network layer for layer and name for name (a test holds them against each other), written out because importing
torchvision takes as long as importing torch, and every process that opens the checkpoint would pay for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from accel.optional import require

if TYPE_CHECKING:
    from torch import Tensor, nn

FIRST, LAST = 24, 1024
"""Channels of the stem and of the last convolution."""

STAGES = {"stage2": (116, 4), "stage3": (232, 8), "stage4": (464, 4)}
"""Table 5 of the paper: channels and blocks, the first block at stride 2."""


def build(num_classes: int = 10) -> nn.Module:
    """ShuffleNetV2 ×1.0 with a stem at stride 1 and no max-pool: 32, 16, 8, 4 pixels, 1.3 M parameters, 45 M MAC.

    Takes float32 `batch`×3×32×32, returns logits `batch`×`num_classes`. Weights are drawn from torch's default generator.
    """
    torch = require("torch", extra="train")
    from torch import nn

    def layer(channels_in: int, channels: int, kernel: int) -> list[nn.Module]:
        convolution = nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2, bias=False)
        return [convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]

    def depthwise(channels: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False), nn.BatchNorm2d(channels)]

    class InvertedResidual(nn.Module):
        def __init__(self, channels_in: int, channels: int, stride: int) -> None:
            super().__init__()
            half = channels // 2
            self.halves = [half, half]
            self.whole = stride > 1  # both branches see all channels; else each sees one half
            self.branch1 = nn.Sequential(*([*depthwise(channels_in, stride), *layer(channels_in, half, 1)] if self.whole else []))
            into = layer(channels_in if self.whole else half, half, 1)
            self.branch2 = nn.Sequential(*into, *depthwise(half, stride), *layer(half, half, 1))

        def forward(self, x: Tensor) -> Tensor:
            left, right = (x, x) if self.whole else x.split(self.halves, dim=1)  # type: ignore[no-untyped-call]
            # The channel shuffle of two groups, in one copy: a channel of the left, then one of the right.
            mixed: Tensor = torch.stack((self.branch1(left), self.branch2(right)), dim=2).flatten(1, 2)
            return mixed

    def stage(channels_in: int, channels: int, blocks: int) -> nn.Sequential:
        later = (InvertedResidual(channels, channels, 1) for _ in range(blocks - 1))
        return nn.Sequential(InvertedResidual(channels_in, channels, 2), *later)

    class ShuffleNetV2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Sequential(*layer(3, FIRST, 3))
            self.stage2 = stage(FIRST, *STAGES["stage2"])
            self.stage3 = stage(STAGES["stage2"][0], *STAGES["stage3"])
            self.stage4 = stage(STAGES["stage3"][0], *STAGES["stage4"])
            self.conv5 = nn.Sequential(*layer(STAGES["stage4"][0], LAST, 1))
            self.fc = nn.Linear(LAST, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stage4(self.stage3(self.stage2(self.conv1(x))))
            logits: Tensor = self.fc(self.conv5(x).mean((2, 3)))
            return logits

    return ShuffleNetV2()
