"""The training loop: one function, read from top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from accel.errors import AccelError
from accel.progress import Progress, silent
from accel.trainers.backend import compiled_or_eager, settings
from accel.trainers.ema import Average
from accel.trainers.evaluate import top1
from accel.trainers.objective import objective
from accel.trainers.optimizers import Optimizers
from accel.trainers.ranks import ALONE, Ranks
from accel.trainers.snapshot import random_state, set_random_state

if TYPE_CHECKING:
    from torch import nn

    from accel.trainers.evaluate import Measured
    from accel.trainers.recipe import Recipe
    from accel.trainers.views import Source

REPORT_EVERY = 10
"""Updates between two progress reports; the loop itself never waits for the device inside an epoch."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """What `fit` leaves: the averaged module in eval mode, FP32 on the device, and how long it took.

    Attributes:
        train_s: of all epochs, without compilation and evaluation.
        compilation: `used`, `reason` (why not, or None) and `compile_s`.
    """

    module: nn.Module
    train_s: float
    compilation: dict[str, Any]


def fit(
    module: nn.Module,
    views: Source,
    recipe: Recipe,
    *,
    teachers: Sequence[nn.Module] = (),
    held_out: Measured | None = None,
    ranks: Ranks = ALONE,
    resumed: dict[str, Any] | None = None,
    on_state: Callable[[dict[str, Any]], None] = lambda state: None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
    on_compiled: Callable[[dict[str, Any]], None] = lambda compilation: None,
    progress: Progress = silent,
) -> Trained:
    """Train `module` in place.

    Args:
        module: FP32 on the device of `views`. What of it stopped learning before the end asks no gradient afterwards.
        views: its batches in the dtype that `objective.autocast_dtype` gives.
        teachers: in eval mode, on the same device; the loss follows their answers.
        held_out: measured on the average after every epoch.
        ranks: those who train together, each calling this with the same arguments but for `held_out` and what is called.
        resumed: what `on_state` was given after an epoch of the same run, to go on from there.
        on_state: given the whole state of the run after every epoch, once `on_epoch` has been called; to be copied, not kept.
        on_epoch: given one row of the log after every epoch.
        on_compiled: given `Trained.compilation` before the first epoch.

    Raises:
        AccelError: the loss is no longer finite, on any of the ranks; names epoch and step.
    """
    import torch

    device = views.device
    steps = len(views) // recipe.batch_size
    updates = [range(steps)[start : start + recipe.accumulate] for start in range(0, steps, recipe.accumulate)]
    total = len(updates) * recipe.epochs
    warmup = min(recipe.warmup_epochs, recipe.epochs / 4) * len(updates)

    average = Average(module, recipe.ema_decay)
    module.train()
    optimizers = Optimizers(module, recipe, device, total=total, warmup=warmup)
    train_s = 0.0
    with settings(ieee=recipe.amp == "off"):
        batch_forward, compilation = compiled_or_eager(
            objective(module, recipe, device, teachers),
            module,
            views.example,
            device=device,
            mode=recipe.compile_mode if recipe.compile else None,
            progress=progress,
            stages=[functools.partial(optimizers.begin_epoch, epoch) for epoch in optimizers.stages()],
        )
        on_compiled(compilation)
        batch_forward, without_exchange = ranks.together(batch_forward, module)
        optimizers.begin()
        torch.manual_seed(recipe.seed)  # dropout's; again, because compiling may have drawn from it

        parts: dict[str, Any] = {"module": module, "average": average, "optimizers": optimizers, "views": views}
        begun = 0
        if resumed is not None:
            for name, part in parts.items():
                part.load_state_dict(resumed[name])
            set_random_state(resumed["random"], device)
            begun, train_s = resumed["epoch"], resumed["train_s"]

        for epoch in range(begun, recipe.epochs):
            started = time.monotonic()
            views.begin(epoch)
            ranks.reseed(recipe.seed, epoch)
            optimizers.begin_epoch(epoch)
            losses, hits, rate = [], [], 0.0
            for done, batches in enumerate(updates, epoch * len(updates)):
                rate = optimizers.set_rate(done)
                for step in batches:
                    with contextlib.nullcontext() if step == batches[-1] else without_exchange():  # once an update is enough
                        loss, correct = batch_forward(*views.batch(step))
                        optimizers.backward(loss, len(batches))
                    losses.append(loss.detach().clone())  # a graph's outputs are overwritten by its next replay
                    hits.append(correct.clone())
                optimizers.step()
                average.update()
                if (done + 1) % REPORT_EVERY == 0 or done + 1 == total:
                    progress("train", done + 1, total)

            epoch_losses = (ranks.total(torch.stack(losses)) / ranks.count).tolist()  # waits for the device: the epoch is over
            epoch_hits = int(ranks.total(torch.stack(hits).sum()))
            epoch_s = time.monotonic() - started
            train_s += epoch_s
            stop_unless_finite(epoch_losses, epoch)
            seen = steps * recipe.batch_size
            on_epoch(
                {
                    "epoch": epoch + 1,
                    "lr": rate,
                    "train_loss": sum(epoch_losses) / steps,
                    "train_top1": 100 * epoch_hits / seen,
                    "val_top1": top1(average.module, held_out) if held_out else None,
                    "images_per_s": seen / epoch_s,
                    "epoch_s": epoch_s,
                    "data_wait_s": views.waited_s,
                }
            )
            states = {name: part.state_dict() for name, part in parts.items()}
            on_state({**states, "random": random_state(device), "epoch": epoch + 1, "train_s": train_s})
    return Trained(average.module, train_s, compilation)


def stop_unless_finite(losses: list[float], epoch: int) -> None:
    """Raise AccelError if a loss of this epoch (counted from 0) is infinite or not a number."""
    for step, loss in enumerate(losses, 1):
        if not math.isfinite(loss):
            raise AccelError(
                f"the training loss became {loss} in epoch {epoch + 1}, step {step} of {len(losses)}; no checkpoint was written or changed",
                remedy="lower --lr, lengthen the warm-up, or train in FP32 with --no-amp",
            )
