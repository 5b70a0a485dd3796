"""What a batch costs: the forward pass, the loss of the labels and that of the teachers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from accel.trainers.distill import distillation, soft_answers

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from accel.trainers.backend import Forward
    from accel.trainers.recipe import Recipe


def objective(module: nn.Module, recipe: Recipe, device: torch.device, teachers: Sequence[nn.Module] = ()) -> Forward:
    """The function of a batch (N×H×W×3, and labels or soft targets) that returns its loss and how many answers were right.

    With teachers, who see the very same images: alpha · T² · KL + (1 - alpha) · cross-entropy.
    """
    import torch
    from torch.nn import functional

    dtype = autocast_dtype(recipe)

    def forward(batch: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        pixels = batch.permute(0, 3, 1, 2)  # a view: N×H×W×3 in memory is channels_last
        if not recipe.channels_last:
            pixels = pixels.contiguous()
        with torch.autocast(device.type, dtype=dtype, enabled=recipe.amp != "off"):
            logits = module(pixels)
            with torch.no_grad():
                opinions = [teacher(pixels) for teacher in teachers]
        loss = functional.cross_entropy(logits.float(), targets, label_smoothing=recipe.label_smoothing)
        if opinions:
            followed = distillation(logits, soft_answers(opinions, recipe.kd_temperature), recipe.kd_temperature)
            loss = recipe.kd_alpha * followed + (1 - recipe.kd_alpha) * loss
        answers = targets if targets.ndim == 1 else targets.argmax(dim=1)  # of a mixed image, that of its larger part
        return loss, (logits.detach().argmax(dim=1) == answers).sum()

    return forward


def autocast_dtype(recipe: Recipe) -> torch.dtype:
    """The dtype of activations, and of the stored images; float32 without autocast."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}[recipe.amp]
