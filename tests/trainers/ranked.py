"""What each of two processes runs in a test: `ranked.py loop FOLDER`, or `ranked.py memory train …`; in both rank 1 fails at last."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
from trainable_net import TINY, build, pictures

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


def gradient(ranks: Any, compiled: bool = False) -> dict[str, np.ndarray]:
    """Of one update of two batches; compiled, as on a GPU, before the ranks are joined."""
    import torch

    from accel.trainers.objective import objective

    module, source = plain(), views(ranks)
    source.begin(0)
    forward = objective(module, RECIPE, torch.device("cpu"))
    if compiled:
        forward = torch.compile(forward, dynamic=False, backend="aot_eager")
        forward(*source.batch(0))[0].backward()
        module.zero_grad(set_to_none=True)
    forward, alone = ranks.together(forward, module)
    with alone():
        (forward(*source.batch(0))[0] / 2).backward()
    (forward(*source.batch(1))[0] / 2).backward()
    return {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}


def learned(ranks: Any) -> dict[str, np.ndarray]:
    """The gradient of an update, `grad.NAME`; the weights that a whole run leads to, `NAME`; and its log."""
    from accel.trainers import loop

    found = {f"grad.{name}": array for name, array in gradient(ranks).items()}
    rows: list[dict[str, Any]] = []
    trained = loop.fit(plain(), views(ranks), RECIPE, ranks=ranks, on_epoch=rows.append).module
    found |= {name: tensor.numpy() for name, tensor in trained.state_dict().items()}
    return found | {"losses": np.array([row["train_loss"] for row in rows]), "hits": np.array([row["train_top1"] for row in rows])}


def resumed(ranks: Any, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What a run with dropout and BatchNorm leads to, and what one that goes on from rank 0's state of its first epoch leads to."""
    import torch

    from accel.trainers import loop

    def fresh() -> Any:
        torch.manual_seed(0)
        return build()

    def keep(state: dict[str, Any]) -> None:
        if ranks.leads and state["epoch"] == 1:
            torch.save(state, folder / "state.pt")

    whole = loop.fit(fresh(), views(ranks), RECIPE, ranks=ranks, on_state=keep).module
    torch.distributed.barrier()
    state = torch.load(folder / "state.pt", weights_only=True)
    torch.manual_seed(99)
    again = loop.fit(fresh(), views(ranks), RECIPE, ranks=ranks, resumed=state).module
    return tuple({name: tensor.numpy() for name, tensor in module.state_dict().items()} for module in (whole, again))


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


def in_the_loop(folder: Path) -> int:
    """Write what was learned; then the loss is not a number on rank 1 alone."""
    from accel.errors import AccelError
    from accel.trainers import loop
    from accel.trainers.ranks import joined

    try:
        with joined("cpu") as ranks:
            found, (whole, again) = learned(ranks), resumed(ranks, folder)
            compiled = gradient(ranks, compiled=True)
            np.savez(folder / f"whole{ranks.rank}.npz", **whole)
            np.savez(folder / f"again{ranks.rank}.npz", **again)
            if ranks.leads:
                np.savez(folder / "two.npz", **found)
                np.savez(folder / "compiled.npz", **compiled)
            spoil("nan", step=24)
            loop.fit(plain(), views(ranks), RECIPE, ranks=ranks)
    except AccelError as error:
        if not error.told:
            print(error, file=sys.stderr)
        return error.exit_code
    return 0


def main() -> int:
    if sys.argv[1] == "loop":
        return in_the_loop(Path(sys.argv[2]))
    from accel.cli import main as accel

    spoil(sys.argv[1], step=4)
    return accel(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
