"""RepVGG's blocks (Ding et al., 2021), of which the students are made: branches while training, one convolution when deployed.

A block is K×K + 1×1 (but on the image) + identity (where shapes allow), each with its BatchNorm, then ReLU. Once training is over all of
it is linear up to the ReLU, so it is one K×K convolution with a bias: `merged` computes it in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from accel.optional import require

if TYPE_CHECKING:
    from torch import Tensor, nn

    Row = tuple[int, int, int]

PADDING = 1
"""Of every K×K convolution: 3×3 keeps the size at stride 1; 3×3 and 4×4 halve an even one at stride 2."""


IMAGE = 3
"""Channels that the first layer takes."""


def branched(rows: Sequence[Row], num_classes: int) -> nn.Module:
    """The network as it is trained.

    Args:
        rows: kernel, stride and output channels of each layer; the first takes 3 channels. Global average pooling and a linear map follow.
    """
    require("torch", extra="train")
    from torch import nn

    class Branched(nn.Module):
        def __init__(self, channels_in: int, kernel: int, stride: int, channels: int) -> None:
            super().__init__()
            wide = nn.Conv2d(channels_in, channels, kernel, stride, padding=PADDING, bias=False)
            self.wide = nn.Sequential(wide, nn.BatchNorm2d(channels))
            # Not on the image: a 1x1 convolution of 3 channels at stride 2 in channels_last writes past its memory in torch 2.15's backward
            # on a CPU (found with glibc's malloc debugging), and the first layer has little use for it.
            point = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.point: Any = None if channels_in == IMAGE else nn.Sequential(point, nn.BatchNorm2d(channels))
            self.identity: Any = nn.BatchNorm2d(channels) if stride == 1 and channels_in == channels else None
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            total = self.wide(x)
            for branch in (self.point, self.identity):
                if branch is not None:
                    total = total + branch(x)
            out: Tensor = self.relu(total)
            return out

    module = _network([Branched(*row) for row in _chained(rows)], rows[-1][2], num_classes)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return module


def plain(rows: Sequence[Row], num_classes: int) -> nn.Module:
    """The network as it is deployed: convolution with bias and ReLU for each row; names and shapes are those that `merged` leaves."""
    require("torch", extra="train")
    from torch import nn

    layers: list[nn.Module] = []
    for channels_in, kernel, stride, channels in _chained(rows):
        layers += [nn.Conv2d(channels_in, channels, kernel, stride, padding=PADDING), nn.ReLU(inplace=True)]
    return _network(layers, rows[-1][2], num_classes)


def merged(rows: Sequence[Row], module: nn.Module) -> nn.Module:
    """What `branched(rows, …)` computes in eval mode, as `plain(rows, …)`: eval mode, same dtype and device; `module` is untouched."""
    torch = require("torch", extra="train")

    trained: Any = module
    single: Any = plain(rows, trained.classifier.out_features)
    single.to(trained.classifier.weight)
    blocks = list(trained.features)
    with torch.no_grad():
        for block, convolution in zip(blocks, single.features[::2], strict=True):
            kernel, bias = _kernel_and_bias(block)
            convolution.weight.copy_(kernel)
            convolution.bias.copy_(bias)
        single.classifier.load_state_dict(trained.classifier.state_dict())
    result: nn.Module = single.eval().requires_grad_(False)
    return result


def _kernel_and_bias(block: Any) -> tuple[Tensor, Tensor]:
    """The float64 kernel and bias of the one convolution that a block's branches add up to."""
    import torch

    wide = block.wide[0].weight.double()
    kernel, bias = torch.zeros_like(wide), torch.zeros_like(wide[:, 0, 0, 0])
    # A 1x1 convolution without padding reads the pixel that the padded one sees at [PADDING, PADDING], at any stride; the identity too.
    centre = slice(PADDING, PADDING + 1)
    branches = [(slice(None), wide, block.wide[1])]
    if block.point is not None:
        branches.append((centre, block.point[0].weight.double(), block.point[1]))
    if block.identity is not None:
        branches.append((centre, torch.eye(len(wide), dtype=wide.dtype, device=wide.device)[..., None, None], block.identity))
    for place, weight, norm in branches:
        scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        kernel[:, :, place, place] += weight * scale[:, None, None, None]
        bias += norm.bias.double() - norm.running_mean.double() * scale
    return kernel, bias


def _chained(rows: Sequence[Row]) -> list[tuple[int, int, int, int]]:
    """The rows with their input channels in front."""
    inputs = [IMAGE, *(channels for _, _, channels in rows)]
    return [(channels_in, *row) for channels_in, row in zip(inputs, rows, strict=False)]


def _network(layers: Sequence[nn.Module], channels: int, num_classes: int) -> nn.Module:
    from torch import nn

    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(*layers)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Linear(channels, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
            return logits

    return Student()
