"""The network of Jordan's cifar10-airbench (2024), as its 94 % script with Muon has it: made to be trained in two seconds.

A frozen 2×2 convolution whitens patches; three groups of convolution, max-pool, BatchNorm, GELU, convolution, BatchNorm, GELU follow, a
max-pool of what is left, and a linear map whose logits are divided by its width. BatchNorm's scale is frozen at 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accel.optional import require

if TYPE_CHECKING:
    from torch import Tensor, nn

WIDTHS = (64, 256, 256)
"""Output channels of the groups."""

PATCH = 2
"""Side in pixels of what the first convolution whitens."""

WHITENED = 2 * 3 * PATCH**2
"""Its channels: each direction of a patch, and its negative, since GELU lets only one sign through."""

EPSILON = 5e-4
"""Added to the variance of a direction, so that those with hardly any are not blown up."""

NEW_SHARE = 0.4
"""What a batch has in BatchNorm's running statistics, which torch calls momentum: they look back on few, as the run is short."""


def build(num_classes: int = 10) -> nn.Module:
    """The network as it is trained: 31, 15, 7, 3 pixels, 1.97 M parameters, 118 M MAC.

    Takes float32 `batch`×3×32×32, returns logits `batch`×`num_classes`. Weights are drawn from torch's default generator; each 3×3
    convolution begins as the identity on as many channels as it takes. `initialise` is to follow, or the first layer whitens nothing.
    """
    return _network(num_classes, folded=False)


def build_deployed(num_classes: int = 10) -> nn.Module:
    """The network as it is deployed: BatchNorm and the division of the logits are in the weights."""
    return _network(num_classes, folded=True)


def initialise(module: nn.Module, images: Tensor) -> None:
    """Set the first convolution to the whitening of the patches of `images`, and the same negated.

    Row i is vᵢ / √(λᵢ + EPSILON), of the eigenvectors and eigenvalues of the patches' second moments (their mean is not taken off): over
    these images the outputs are uncorrelated and have the mean square λ / (λ + EPSILON). The weights are rounded to what float16 holds,
    so that a network trained in 16 bits is evaluated on the very filters it knew: a patch's mean is large against its differences, and
    the error of a filter's sum would carry it into them.

    Args:
        module: of `build`, on any device.
        images: float32 N×3×H×W, normalised, on the same device.
    """
    import torch

    whiten: Any = module.whiten
    patches = images.unfold(2, PATCH, 1).unfold(3, PATCH, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, WHITENED // 2)
    values, vectors = torch.linalg.eigh((patches.T @ patches / len(patches)).double())
    rows = (vectors / (values + EPSILON).sqrt()).T
    filters = torch.cat([rows, -rows]).view(whiten.weight.shape)
    with torch.no_grad():
        whiten.weight.copy_(filters.half())


def deployed(module: nn.Module) -> nn.Module:
    """A trained `build` as a `build_deployed` of the same logits: eval mode, same dtype and device; `module` is untouched."""
    torch = require("torch", extra="train")

    trained: Any = module
    folded: Any = build_deployed(trained.head.out_features).to(trained.head.weight)
    with torch.no_grad():
        folded.whiten.load_state_dict(trained.whiten.state_dict())
        for group, single in zip(trained.groups, folded.groups, strict=True):
            for number in ("1", "2"):
                weight, norm = group.get_submodule(f"conv{number}").weight.double(), group.get_submodule(f"norm{number}")
                # A max-pool lies between the first two: which pixel is the largest does not change by a positive scale and a shift.
                scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
                convolution = single.get_submodule(f"conv{number}")
                convolution.weight.copy_(weight * scale[:, None, None, None])
                convolution.bias.copy_(norm.bias.double() - norm.running_mean.double() * scale)
        folded.head.weight.copy_(trained.head.weight / trained.head.in_features)
    result: nn.Module = folded.eval().requires_grad_(False)
    return result


def _network(num_classes: int, *, folded: bool) -> nn.Module:
    require("torch", extra="train")
    import torch
    from torch import nn

    def convolution(channels_in: int, channels: int) -> nn.Conv2d:
        layer = nn.Conv2d(channels_in, channels, 3, padding=1, bias=folded)
        nn.init.dirac_(layer.weight[:channels_in].detach())
        return layer

    def norm(channels: int) -> nn.Module:
        if folded:
            return nn.Identity()
        layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=NEW_SHARE)
        layer.weight.requires_grad_(False)
        return layer

    class Group(nn.Module):
        def __init__(self, channels_in: int, channels: int) -> None:
            super().__init__()
            self.conv1 = convolution(channels_in, channels)
            self.pool = nn.MaxPool2d(2)
            self.norm1 = norm(channels)
            self.conv2 = convolution(channels, channels)
            self.norm2 = norm(channels)
            self.gelu = nn.GELU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.gelu(self.norm1(self.pool(self.conv1(x))))
            out: Tensor = self.gelu(self.norm2(self.conv2(x)))
            return out

    class Airbench(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whiten = nn.Conv2d(3, WHITENED, PATCH)
            self.whiten.weight.requires_grad_(False)
            self.gelu = nn.GELU()
            self.groups = nn.Sequential(*(Group(*pair) for pair in zip((WHITENED, *WIDTHS), WIDTHS, strict=False)))
            self.pool = nn.MaxPool2d(3)
            self.head = nn.Linear(WIDTHS[-1], num_classes, bias=False)
            with torch.no_grad():
                self.head.weight.div_(self.head.weight.std())

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(self.groups(self.gelu(self.whiten(x)))).flatten(1)
            logits: Tensor = self.head(x)
            return logits if folded else logits / WIDTHS[-1]

    return Airbench()
