"""Numbers that change from step to step: the learning rate and the decay of the average."""

from __future__ import annotations

import math
from collections.abc import Callable


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


def triangular(step: int, total: int, warmup: float, peak: float) -> float:
    """As `learning_rate`, but down in a straight line instead of half a cosine."""
    if step + 1 < warmup:
        return peak * (step + 1) / warmup
    done = (step + 1 - warmup) / max(total + 1 - warmup, 1)
    return peak * (1 - min(done, 1.0))


SCHEDULES: dict[str, Callable[[int, int, float, float], float]] = {"cosine": learning_rate, "triangular": triangular}
"""Recipe.schedule → the rate of a step."""


def average_decay(step: int, decay: float) -> float:
    """The decay at `step`: small at first, so that the average forgets the random initial weights."""
    return min(decay, (1 + step) / (10 + step))
