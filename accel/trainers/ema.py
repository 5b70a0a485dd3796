"""The exponential moving average of a module: what is evaluated and stored."""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, Any

from accel.trainers.schedule import average_decay

if TYPE_CHECKING:
    from torch import Tensor, nn


class Average:
    """Holds `module`, a copy in eval mode whose floating tensors (weights and BatchNorm statistics) trail the source.

    With a decay of 0 it equals the source, and is brought up to date when it is asked for instead of at every update.

    `average ← d · average + (1 - d) · source` with d = min(decay, (1 + t) / (10 + t)) at update t, counted from 0.
    """

    def __init__(self, source: nn.Module, decay: float) -> None:
        self._module = copy.deepcopy(source).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0
        # Listed once: walking the modules at every step would cost more than the update itself.
        self._source, self._average = floating(source), floating(self._module)

    @property
    def module(self) -> nn.Module:
        import torch

        if not self.decay:
            with torch.no_grad():
                torch._foreach_copy_(self._average, self._source)
        return self._module

    def update(self) -> None:
        """Take in the source's present values; a few launches for all tensors together, no synchronisation."""
        import torch

        if self.decay:
            with torch.no_grad():
                torch._foreach_lerp_(self._average, self._source, 1 - average_decay(self.updates, self.decay))
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._module.load_state_dict(state["module"], strict=True)
        self.updates = state["updates"]


def floating(module: nn.Module) -> list[Tensor]:
    """The module's floating parameters and buffers, detached views of the same memory, always in the same order."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
