"""Numbers that change from step to step: the learning rate and the decay of the average."""

from __future__ import annotations

import math


def learning_rate(step: int, total: int, warmup: float, peak: float) -> float:
    """Linear from `peak`/`warmup` up to `peak`, then half a cosine down to almost 0 at the last step.

    Args:
        step: from 0 to `total` - 1.
        warmup: steps, may be a fraction.
    """
    if step + 1 < warmup:
        return peak * (step + 1) / warmup
    done = (step + 1 - warmup) / max(total + 1 - warmup, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def average_decay(step: int, decay: float) -> float:
    """The decay at `step`: small at first, so that the average forgets the random initial weights."""
    return min(decay, (1 + step) / (10 + step))
