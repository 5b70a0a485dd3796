"""`accel train`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from accel.cli.options import DEFAULT_MODEL, DeviceOption

# Written out, because the table of them imports numpy, which --help does without; a test holds the two together.
MODEL_HELP = (
    "alexnet, efficientnet_b0, mobilenetv2, mobilenetv3_small, naivenet, resnet18, shufflenetv2_x1, student_a, student_b or student_c."
)


def train(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)] = DEFAULT_MODEL,
    dataset: Annotated[str | None, typer.Option(metavar="NAME", help="cifar10 or cifar100.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    weight_decay: Annotated[float | None, typer.Option()] = None,
    label_smoothing: Annotated[float | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    split: Annotated[str | None, typer.Option(help="full, or 45k/5k to tune without the test set.")] = None,
    amp: Annotated[str | None, typer.Option(help="bf16, fp16 or off.")] = None,
    no_amp: Annotated[bool, typer.Option("--no-amp", help="Train in FP32.")] = False,
    compile: Annotated[bool | None, typer.Option("--compile/--no-compile", help="torch.compile on a GPU.")] = None,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE", help="A recipe.toml to repeat or change.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Use the first N train images only.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The checkpoint folder; default runs/MODEL.")] = None,
    device: DeviceOption = None,
) -> None:
    """Train a model on the train set of CIFAR-10, or of CIFAR-100, and write a checkpoint."""
    from accel import api
    from accel.cli.progress import drawn

    schedule: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "limit": limit}
    manner = {"label_smoothing": label_smoothing, "seed": seed, "split": split, "amp": "off" if no_amp else amp, "compile": compile}
    chosen = {"dataset": dataset} | schedule | manner
    with drawn() as progress:
        checkpoint = api.train(model, out=out, recipe=recipe, overrides=chosen, device=device, progress=progress)
    measured = "" if checkpoint.top1 is None else f" (top-1 {checkpoint.top1:.2f} %)"
    print(f"{checkpoint.path}{measured}")
