"""Muon: momentum whose direction is orthogonalised, for the filters of convolutions (Jordan, 2024; the form of cifar10-airbench)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

STEPS = 3
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a·x + b·x³ + c·x⁵, which drives every singular value towards 1, quickly rather than exactly."""


class Muon:
    """An optimizer of filters that a BatchNorm follows; what torch's GradScaler asks of one, and no more. It never waits for the device.

    Per filter bank W (as the matrix out × in·kh·kw, gradient G): m ← momentum · m + G; W ← W · √out / ‖W‖;
    W ← W - lr · orthogonalised(G + momentum · m). The norm of W means nothing to the BatchNorm behind it, so there is no weight decay.
    """

    # Says to GradScaler: set `grad_scale` and `found_inf` for the time of a step, instead of waiting to learn whether to take it.
    _step_supports_amp_scaling = True

    def __init__(self, filters: list[Tensor], *, lr: float, momentum: float) -> None:
        import torch

        self.param_groups: list[dict[str, Any]] = [{"params": filters, "lr": lr, "momentum": momentum}]
        self._momenta = [torch.zeros_like(bank) for bank in filters]

    def step(self) -> None:
        """One update from the gradients; a filter without one is left alone, and so are all if a GradScaler found a gradient infinite."""
        import torch

        (group,) = self.param_groups
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        skip = None if found_inf is None else found_inf > 0
        alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor, Tensor]]] = {}
        for bank, momentum in zip(group["params"], self._momenta, strict=True):
            if bank.grad is not None:
                alike.setdefault(tuple(bank.shape), []).append((bank, momentum, bank.grad))
        with torch.no_grad():
            for members in alike.values():  # one batched operation for all filters of a shape: launches are what this costs
                banks, momenta, gradients = (torch.stack(tensors) for tensors in zip(*members, strict=True))
                if scale is not None:
                    gradients /= scale
                after = _updated(banks, momenta, gradients, group["lr"], group["momentum"])
                if skip is not None:
                    after = [torch.where(skip, old, new) for old, new in zip((banks, momenta), after, strict=True)]
                for (bank, momentum, _), values in zip(members, zip(*after, strict=True), strict=True):
                    torch._foreach_copy_([bank, momentum], list(values))

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


def _updated(banks: Tensor, momenta: Tensor, gradients: Tensor, lr: float, keep: float) -> list[Tensor]:
    """N banks of one shape and their momenta after an update."""
    momenta = keep * momenta + gradients
    directions = orthogonalised((gradients + keep * momenta).flatten(2)).view(banks.shape)
    lengths = banks.flatten(1).norm(dim=1).view(-1, *[1] * (banks.ndim - 1))
    return [banks * (banks.shape[1] ** 0.5 / lengths) - lr * directions, momenta]


def orthogonalised(matrices: Tensor, steps: int = STEPS) -> Tensor:
    """The nearest (semi-)orthogonal matrix of each of N×R×C, approximately, by Newton and Schulz's iteration.

    Computed in bfloat16 on a GPU, where that is fast and enough for a direction, and in float32 on a CPU; returned in the dtype given.
    """
    import torch

    a, b, c = COEFFICIENTS  # of x, x³ and x⁵; a sum is left to the product that it ends in, which takes no launch of its own
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)  # the iteration converges below a spectral norm of √3
    x = x.to(torch.bfloat16) if matrices.is_cuda else x.float()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
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
