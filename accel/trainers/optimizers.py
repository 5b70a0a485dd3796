"""What turns gradients into new weights: the optimizers of a recipe, its learning rate, loss scaling and clipping."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from accel.errors import ConfigError
from accel.trainers.muon import Muon, filters
from accel.trainers.schedule import SCHEDULES

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from accel.trainers.recipe import Recipe

SECOND_MOMENT = 0.999
"""AdamW's second beta; the first is the recipe's momentum."""


class Optimizers:
    """The optimizers of one run, used as one.

    Args:
        module: FP32, on `device`.
        total: updates of the whole run.
        warmup: of these, how many raise the learning rate; may be a fraction.
    """

    def __init__(self, module: nn.Module, recipe: Recipe, device: torch.device, *, total: int, warmup: float) -> None:
        import torch

        self.members: list[Any] = BUILDERS[recipe.optimizer](module, recipe, device.type == "cuda")
        # bf16 has the range of FP32 and needs no scaling.
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "fp16")
        self._peaks = [group["lr"] for group in self._groups()]
        self._epochs = [group.get("epochs", recipe.epochs) for group in self._groups()]
        self._totals = [total * epochs // recipe.epochs for epochs in self._epochs]
        self._parameters = [parameter for group in self._groups() for parameter in group["params"]]
        self._schedule, self._warmup = SCHEDULES[recipe.schedule], warmup
        self._clip_norm = recipe.clip_norm
        # Gradients that are added to must outlive a CUDA graph's replay, in whose memory a fresh one would lie.
        self._keep = recipe.accumulate > 1

    def begin(self) -> None:
        """Clear the gradients, once before the first update."""
        import torch

        for parameter in self._parameters:
            parameter.grad = torch.zeros_like(parameter) if self._keep else None

    def stages(self) -> list[int]:
        """The epochs, counted from 0, from which on other parameters learn than before; the first is 0."""
        return sorted({0, *(epochs for epochs in self._epochs if epochs < max(self._epochs))})

    def begin_epoch(self, epoch: int) -> None:
        """Ask gradients, in `epoch`, of those parameters that learn in it."""
        for group, epochs in zip(self._groups(), self._epochs, strict=True):
            for parameter in group["params"]:
                parameter.requires_grad_(epoch < epochs)

    def set_rate(self, update: int) -> float:
        """Set the learning rates of `update`, counted from 0; returns that of the first group."""
        groups = self._groups()
        for group, peak, total in zip(groups, self._peaks, self._totals, strict=True):
            group["lr"] = self._schedule(update, total, self._warmup, peak)
        return float(groups[0]["lr"])

    def backward(self, loss: Tensor, share: int) -> None:
        """Add the gradients of `loss` / `share`, of which one update adds up `share`."""
        self.scaler.scale(loss if share == 1 else loss / share).backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Update the weights and clear the gradients."""
        import torch

        if self._clip_norm:
            for member in self.members:
                self.scaler.unscale_(member)  # first: the limit is for gradients in their own scale
            torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        for member in self.members:
            self.scaler.step(member)
        self.scaler.update()
        for member in self.members:
            member.zero_grad(set_to_none=not self._keep)

    def state_dict(self) -> dict[str, Any]:
        return {"members": [member.state_dict() for member in self.members], "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for member, saved in zip(self.members, state["members"], strict=True):
            member.load_state_dict(saved)
        self.scaler.load_state_dict(state["scaler"])

    def _groups(self) -> list[dict[str, Any]]:
        # Asked for anew: torch's optimizers make new groups when they load a state.
        return [group for member in self.members for group in member.param_groups]


def parameter_groups(module: nn.Module, recipe: Recipe, without: list[Tensor] | None = None) -> list[dict[str, Any]]:
    """Two groups: tensors of two or more dimensions, and BatchNorm's weights and all biases; a third of those that learn for
    `epochs` epochs only, if the recipe has them.

    Args:
        without: parameters of another optimizer.

    Raises:
        ConfigError: `whitening_epochs` for a network that has no whitening convolution.
    """
    early = whitening_biases(module) if recipe.whitening_epochs else []
    if recipe.whitening_epochs and not early:
        raise ConfigError(
            f"whitening_epochs = {recipe.whitening_epochs}: {recipe.model} has no convolution with frozen weights and a bias that learns",
            remedy="set whitening_epochs to 0",
        )
    taken = {id(parameter) for parameter in (*early, *(without or ()))}
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad and id(parameter) not in taken]
    biases = {"lr": recipe.bias_lr or recipe.lr, "weight_decay": recipe.bias_weight_decay}
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "lr": recipe.lr, "weight_decay": recipe.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], **biases},
    ]
    return [*groups, {"params": early, **biases, "epochs": min(recipe.whitening_epochs, recipe.epochs)}] if early else groups


def whitening_biases(module: nn.Module) -> list[Tensor]:
    """The biases that learn of convolutions whose weights are frozen."""
    from torch import nn

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d) and not layer.weight.requires_grad]
    return [layer.bias for layer in layers if layer.bias is not None and layer.bias.requires_grad]


def _sgd(module: nn.Module, recipe: Recipe, fused: bool, without: list[Tensor] | None = None) -> list[Any]:
    import torch

    groups = parameter_groups(module, recipe, without)
    member = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=fused)
    if recipe.momentum:
        # From 0 the first update is the same; but torch's fused one makes the buffers itself, and leaves what was in their memory there
        # if a GradScaler skips it.
        for parameter in (parameter for group in member.param_groups for parameter in group["params"]):
            member.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return [member]


def _adamw(module: nn.Module, recipe: Recipe, fused: bool) -> list[Any]:
    import torch

    groups = parameter_groups(module, recipe)
    return [torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, SECOND_MOMENT), fused=fused)]


def _muon(module: nn.Module, recipe: Recipe, fused: bool) -> list[Any]:
    matrices = filters(module)
    orthogonal = [Muon(matrices, lr=recipe.muon_lr, momentum=recipe.muon_momentum)] if matrices else []
    return [*_sgd(module, recipe, fused, matrices), *orthogonal]


BUILDERS: dict[str, Callable[[nn.Module, Recipe, bool], list[Any]]] = {"sgd": _sgd, "adamw": _adamw, "muon": _muon}
"""Recipe.optimizer → its optimizers, given the module, the recipe and whether fused kernels exist."""
