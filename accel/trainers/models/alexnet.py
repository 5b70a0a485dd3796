"""AlexNet (Krizhevsky et al., 2012) for 32×32 images: its five convolutions and three overlapping max-pools, with BatchNorm.

The stem is 3×3 at stride 1 where the paper has 11×11 at stride 4, and one linear layer stands for the three of 4,096, which would
hold nine tenths of the parameters. It is nobody else's network: torchvision's is for 224×224 and has no BatchNorm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from accel.optional import require

if TYPE_CHECKING:
    from torch import Tensor, nn

LAYERS = (
    # kernel, out, max-pool behind it
    (3, 64, True),
    (5, 192, True),
    (3, 384, False),
    (3, 256, False),
    (3, 256, True),
)

SIDE = 4
"""Of the map behind the last max-pool, in pixels."""


def build(num_classes: int = 10) -> nn.Module:
    """AlexNet with BatchNorm: 32, 16, 8, 4 pixels, 2.5 M parameters, 217 M MAC.

    Takes float32 `batch`×3×32×32, returns logits `batch`×`num_classes`. Weights are drawn from torch's default generator.
    """
    require("torch", extra="train")
    from torch import nn

    class AlexNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = []
            channels_in = 3
            for kernel, channels, pooled in LAYERS:
                layers += [nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(channels)]
                layers += [nn.ReLU(inplace=True), *([nn.MaxPool2d(3, 2, padding=1)] if pooled else [])]
                channels_in = channels
            self.features = nn.Sequential(*layers)
            self.classifier = nn.Sequential(nn.Dropout(0.5), nn.Linear(channels_in * SIDE * SIDE, num_classes))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.classifier(self.features(x).flatten(1))
            return logits

    module = AlexNet()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return module
