"""Top-1 and confusion matrix of a module in FP32 (IEEE, no autocast, no TF32, no test-time augmentation)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from accel.errors import MissingError, UsageError
from accel.progress import Progress, silent
from accel.trainers.backend import out_of_memory, settings
from accel.types import Array

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH = 1000


@dataclasses.dataclass(frozen=True)
class Measured:
    """Images to be measured on, and how many.

    Attributes:
        batches: float32 B×3×H×W, preprocessed, and int64 (B,) labels, on the module's device; gone through more than once.
    """

    batches: Iterable[tuple[Tensor, Tensor]]
    count: int


def top1(module: nn.Module, measured: Measured, progress: Progress = silent, step: str = "validate") -> float:
    """The share of images whose largest logit is their label's, in percent; `module` is FP32 and in eval mode."""
    import torch

    hits: Tensor | int = 0
    done = 0
    with torch.inference_mode(), settings(ieee=True):
        for images, labels in measured.batches:
            hits = hits + (module(images).argmax(dim=1) == labels).sum()
            done += len(images)
            progress(step, done, measured.count)
    return 100 * int(hits) / measured.count


def confusion(module: nn.Module, batches: Iterable[Array], labels: Array, num_classes: int, progress: Progress = silent) -> Array:
    """int64 num_classes×num_classes: in row i and column j, how many images of class i were taken for class j.

    Args:
        module: FP32, in eval mode.
        batches: float32 N×3×H×W, preprocessed, in the order of `labels`.
        labels: int64, of all images.

    Raises:
        UsageError: a label that is none of the model's classes, or inputs that the module does not take.
    """
    import torch

    if len(labels) == 0 or labels.min() < 0 or labels.max() >= num_classes:
        found = f"labels from {labels.min()} to {labels.max()}" if len(labels) else "no images"
        raise UsageError(f"the data has {found}, the model {num_classes} classes", remedy="name data of the model's classes with --data")
    device = next(module.parameters()).device
    answers: list[Array] = []
    done = 0
    with torch.inference_mode(), settings(ieee=True):
        for batch in batches:
            try:
                answers.append(module(torch.from_numpy(batch).to(device)).argmax(dim=1).cpu().numpy())
            except (RuntimeError, MemoryError) as error:
                if out_of_memory(error):
                    remedy = "use --device cpu" if device.type == "cuda" else "free some memory"
                    raise MissingError(f"{device} ran out of memory with {len(batch)} images", remedy=remedy) from error
                raise UsageError(f"the model does not take inputs of {batch.shape[1:]}: {error}", remedy="mend --data") from error
            done += len(batch)
            progress("evaluate", done, len(labels))
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (labels, np.concatenate(answers)), 1)
    return matrix
