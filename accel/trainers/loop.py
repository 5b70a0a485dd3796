"""The training loop: one function, read from top to bottom."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from accel.errors import AccelError
from accel.progress import Progress, silent
from accel.trainers.augment import draw, epoch_images, first_mirrored
from accel.trainers.backend import compiled_or_eager, settings
from accel.trainers.ema import Average
from accel.trainers.evaluate import top1
from accel.trainers.schedule import learning_rate

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from accel.trainers.recipe import Recipe

REPORT_EVERY = 10
"""Steps between two progress reports; the loop itself never waits for the device inside an epoch."""


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
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    held_out: tuple[Tensor, Tensor] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
    progress: Progress = silent,
) -> Trained:
    """Train `module` in place.

    Args:
        module: FP32 on the device of `images`.
        images: N×H×W×3, normalised, in the dtype that `autocast_dtype` gives.
        labels: int64 (N,), on the same device.
        held_out: float32 M×3×H×W images and int64 labels, measured on the average after every epoch.
        on_epoch: given one row of the log after every epoch.

    Raises:
        AccelError: the loss is no longer finite; names epoch and step.
    """
    import torch
    from torch.nn import functional

    device = images.device
    dtype = autocast_dtype(recipe)
    steps = len(images) // recipe.batch_size
    total = steps * recipe.epochs
    warmup = min(recipe.warmup_epochs, recipe.epochs / 4) * steps
    size = (images.shape[1], images.shape[2])

    def forward(batch: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        pixels = batch.permute(0, 3, 1, 2)  # a view: N×H×W×3 in memory is channels_last
        if not recipe.channels_last:
            pixels = pixels.contiguous()
        with torch.autocast(device.type, dtype=dtype, enabled=recipe.amp != "off"):
            logits = module(pixels)
        loss = functional.cross_entropy(logits.float(), targets, label_smoothing=recipe.label_smoothing)
        return loss, (logits.detach().argmax(dim=1) == targets).sum()

    average = Average(module, recipe.ema_decay)
    module.train()
    optimizer = torch.optim.SGD(
        parameter_groups(module, recipe.weight_decay),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        fused=device.type == "cuda",
    )
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "fp16")  # bf16 has the range of FP32 and needs none
    generator = torch.Generator(device).manual_seed(recipe.seed)
    first = first_mirrored(len(images), generator)
    train_s = 0.0
    with settings(ieee=recipe.amp == "off"):
        batch_forward, compilation = compiled_or_eager(
            forward,
            module,
            images[: recipe.batch_size],
            labels[: recipe.batch_size],
            mode=recipe.compile_mode if recipe.compile else None,
            progress=progress,
        )
        torch.manual_seed(recipe.seed)  # dropout's; again, because compiling may have drawn from it

        for epoch in range(recipe.epochs):
            started = time.monotonic()
            draws = draw(recipe, epoch, size, first, generator)
            epoch_inputs, epoch_labels = epoch_images(images, draws, recipe), labels[draws.order]
            losses, hits, rate = [], [], 0.0
            for step in range(steps):
                part = slice(step * recipe.batch_size, (step + 1) * recipe.batch_size)
                done = epoch * steps + step
                rate = learning_rate(done, total, warmup, recipe.lr)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                loss, correct = batch_forward(epoch_inputs[part], epoch_labels[part])
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                average.update()
                losses.append(loss.detach().clone())  # a graph's outputs are overwritten by its next replay
                hits.append(correct.clone())
                if (done + 1) % REPORT_EVERY == 0 or done + 1 == total:
                    progress("train", done + 1, total)

            epoch_losses = torch.stack(losses).tolist()  # waits for the device: the epoch is over
            epoch_s = time.monotonic() - started
            train_s += epoch_s
            stop_unless_finite(epoch_losses, epoch)
            seen = steps * recipe.batch_size
            on_epoch(
                {
                    "epoch": epoch + 1,
                    "lr": rate,
                    "train_loss": sum(epoch_losses) / steps,
                    "train_top1": 100 * int(torch.stack(hits).sum()) / seen,
                    "val_top1": top1(average.module, *held_out) if held_out else None,
                    "images_per_s": seen / epoch_s,
                    "epoch_s": epoch_s,
                }
            )
    return Trained(average.module, train_s, compilation)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: tensors of two or more dimensions, which decay, and BatchNorm's weights and all biases, which do not."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]


def autocast_dtype(recipe: Recipe) -> torch.dtype:
    """The dtype of activations, and of the stored images; float32 without autocast."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}[recipe.amp]


def stop_unless_finite(losses: list[float], epoch: int) -> None:
    """Raise AccelError if a loss of this epoch (counted from 0) is infinite or not a number."""
    for step, loss in enumerate(losses, 1):
        if not math.isfinite(loss):
            raise AccelError(
                f"the training loss became {loss} in epoch {epoch + 1}, step {step} of {len(losses)}; no checkpoint was written or changed",
                remedy="lower --lr, lengthen the warm-up, or train in FP32 with --no-amp",
            )
