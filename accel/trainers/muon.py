"""Muon: momentum whose direction is orthogonalised, for the filters of convolutions (Jordan, 2024; the form of cifar10-airbench)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

STEPS = 3
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a·x + b·x³ + c·x⁵, which drives every singular value towards 1, quickly rather than exactly."""


class Muon:
    """An optimizer of filters that a BatchNorm follows; what torch's GradScaler asks of one, and no more.

    Per filter bank W (as the matrix out × in·kh·kw, gradient G): m ← momentum · m + G; W ← W · √out / ‖W‖;
    W ← W - lr · orthogonalised(G + momentum · m). The norm of W means nothing to the BatchNorm behind it, so there is no weight decay.
    """

    def __init__(self, filters: list[Tensor], *, lr: float, momentum: float) -> None:
        import torch

        self.param_groups: list[dict[str, Any]] = [{"params": filters, "lr": lr, "momentum": momentum}]
        self._momenta = [torch.zeros_like(bank) for bank in filters]

    def step(self) -> None:
        """One update from the gradients; a filter without one is left alone."""
        import torch

        (group,) = self.param_groups
        alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        with torch.no_grad():
            for bank, momentum in zip(group["params"], self._momenta, strict=True):
                if bank.grad is None:
                    continue
                momentum.mul_(group["momentum"]).add_(bank.grad)
                direction = bank.grad.add(momentum, alpha=group["momentum"]).flatten(1)
                bank.mul_(len(bank) ** 0.5 / bank.norm())
                alike.setdefault((direction.shape[0], direction.shape[1]), []).append((bank, direction))
            for members in alike.values():  # one batched product for all filters of a shape: launches are what this costs
                updates = orthogonalised(torch.stack([direction for _, direction in members]))
                for (bank, _), update in zip(members, updates, strict=True):
                    bank.add_(update.view(bank.shape), alpha=-group["lr"])

    def zero_grad(self, set_to_none: bool = True) -> None:
        for bank in self.param_groups[0]["params"]:
            if set_to_none:
                bank.grad = None
            elif bank.grad is not None:
                bank.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        return {"momenta": self._momenta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, saved in zip(self._momenta, state["momenta"], strict=True):
            mine.copy_(saved)


def orthogonalised(matrices: Tensor, steps: int = STEPS) -> Tensor:
    """The nearest (semi-)orthogonal matrix of each of N×R×C, approximately, by Newton and Schulz's iteration.

    Computed in bfloat16 on a GPU, where that is fast and enough for a direction, and in float32 on a CPU; returned in the dtype given.
    """
    import torch

    a, b, c = COEFFICIENTS
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)  # the iteration converges below a spectral norm of √3
    x = x.to(torch.bfloat16) if matrices.is_cuda else x.float()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    direction: Tensor = x.mT if tall else x
    return direction.to(matrices.dtype)


def filters(module: nn.Module) -> list[Tensor]:
    """The trained filters of convolutions without groups and without a bias, which is how one that a BatchNorm follows is built."""
    from torch import nn

    return [
        layer.weight
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.bias is None and layer.weight.requires_grad
    ]
