"""Top-1 of a module in FP32 (IEEE, no autocast, no TF32, no test-time augmentation)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accel.progress import Progress, silent
from accel.trainers.backend import settings

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH = 1000


def top1(module: nn.Module, images: Tensor, labels: Tensor, progress: Progress = silent, step: str = "validate") -> float:
    """The share of `images` whose largest logit is their label's, in percent.

    Args:
        module: FP32, in eval mode.
        images: float32 N×3×H×W, preprocessed, on the module's device.
        labels: int64 (N,), there too.
    """
    import torch

    hits = torch.zeros((), dtype=torch.int64, device=images.device)
    with torch.inference_mode(), settings(ieee=True):
        for start in range(0, len(images), BATCH):
            hits += (module(images[start : start + BATCH]).argmax(dim=1) == labels[start : start + BATCH]).sum()
            progress(step, min(start + BATCH, len(images)), len(images))
    return 100 * int(hits) / len(images)
