"""What each of several processes runs in a test: `ranked.py gradients FILE`, or `ranked.py nan|memory train …`, where rank 1 fails."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
from trainable_net import TINY, pictures

RECIPE = dataclasses.replace(TINY, batch_size=16, lr=0.05, epochs=2, accumulate=2, ema_decay=0.0, clip_norm=1.0)
COUNT = 200


def plain() -> Any:
    """Without BatchNorm and dropout: nothing in it looks at the batch as a whole."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))


def views(ranks: Any) -> Any:
    import torch

    from accel.trainers.views import Views

    train = pictures(COUNT, "train")
    images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels).long()
    colours = ((0.4,) * 3, (0.2,) * 3)
    return Views(images, labels, RECIPE, colours=colours, dtype=torch.float32, num_classes=10, ranks=ranks)


def gradients(ranks: Any) -> dict[str, np.ndarray]:
    """The gradient of one update of two batches, `grad.NAME`; and the weights that a whole run leads to, `NAME`."""
    import torch

    from accel.trainers import loop
    from accel.trainers.objective import objective

    module, source = plain(), views(ranks)
    forward, alone = ranks.together(objective(module, RECIPE, torch.device("cpu")), module)
    source.begin(0)
    with alone():
        (forward(*source.batch(0))[0] / 2).backward()
    (forward(*source.batch(1))[0] / 2).backward()
    found = {f"grad.{name}": parameter.grad.numpy() for name, parameter in module.named_parameters()}
    rows: list[dict[str, Any]] = []
    trained = loop.fit(plain(), views(ranks), RECIPE, ranks=ranks, on_epoch=rows.append).module
    found |= {name: tensor.numpy() for name, tensor in trained.state_dict().items()}
    return found | {"losses": np.array([row["train_loss"] for row in rows]), "hits": np.array([row["train_top1"] for row in rows])}


def spoil(kind: str, step: int) -> None:
    """Rank 1 fails at its training step `step`, counted from 1."""
    import os

    import torch

    from accel.trainers import loop

    real, steps = loop.objective, iter(range(1, 1000))

    def objective(*given: Any) -> Any:
        forward = real(*given)

        def spoilt(*batch: Any) -> Any:
            loss, correct = forward(*batch)
            if next(steps) == step and os.environ["RANK"] == "1":
                if kind == "memory":
                    raise torch.OutOfMemoryError("CUDA out of memory")
                loss = loss * float("nan")
            return loss, correct

        return spoilt

    loop.objective = objective


if __name__ == "__main__":
    if sys.argv[1] == "gradients":
        from accel.trainers.ranks import joined

        with joined("cpu") as mine:
            found = gradients(mine)
            if mine.leads:
                np.savez(sys.argv[2], **found)
    else:
        from accel.cli import main

        spoil(sys.argv[1], step=4)
        sys.exit(main(sys.argv[2:]))
