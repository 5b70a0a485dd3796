"""`accel train`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from accel.cli.options import DEFAULT_MODEL, DeviceOption, TrackOption

# Written out, because the table of them imports numpy, which --help does without; a test holds the two together.
MODEL_HELP = (
    "airbench94, alexnet, efficientnet_b0, mobilenetv2, mobilenetv3_small, naivenet, resnet18, shufflenetv2_x1, student_a, student_b "
    "or student_c."
)


def train(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)] = DEFAULT_MODEL,
    dataset: Annotated[str | None, typer.Option(metavar="NAME", help="cifar10, cifar100 or imagefolder:DIR.")] = None,
    image_size: Annotated[int | None, typer.Option(metavar="SIDE", help="Fit the images of an imagefolder into SIDE pixels.")] = None,
    loader: Annotated[str | None, typer.Option(help="gpu (all images on the device), or workers (processes read them).")] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    accumulate: Annotated[
        int | None, typer.Option("--accumulate-grad-steps", min=1, metavar="N", help="Batches whose gradients make one update.")
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adamw or muon.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Of the learning rate: cosine or triangular.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    weight_decay: Annotated[float | None, typer.Option()] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Largest norm of the gradients; 0 for none.")] = None,
    warmup_epochs: Annotated[float | None, typer.Option(min=0, help="For how long the rate rises; at most a quarter of all.")] = None,
    label_smoothing: Annotated[float | None, typer.Option()] = None,
    ema_decay: Annotated[float | None, typer.Option(help="Of the average of the weights that is kept; 0 keeps the last ones.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    split: Annotated[str | None, typer.Option(help="full, or 45k/5k to tune without the test set.")] = None,
    amp: Annotated[str | None, typer.Option(help="bf16, fp16 or off.")] = None,
    no_amp: Annotated[bool, typer.Option("--no-amp", help="Train in FP32.")] = False,
    compile: Annotated[bool | None, typer.Option("--compile/--no-compile", help="torch.compile on a GPU.")] = None,
    channels_last: Annotated[bool | None, typer.Option("--channels-last/--no-channels-last", help="NHWC in memory.")] = None,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="The same bits in every run on the same machine.")] = False,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE", help="A recipe.toml to repeat or change.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Use the first N train images only; 0 for all.")] = None,
    cutout: Annotated[int | None, typer.Option(help="Side in pixels of the square that is hidden; 0 for none.")] = None,
    mixup: Annotated[float | None, typer.Option(metavar="ALPHA", help="Mix images; 0 for none.")] = None,
    cutmix: Annotated[float | None, typer.Option(metavar="ALPHA", help="Paste boxes of other images; 0 for none.")] = None,
    randaugment: Annotated[int | None, typer.Option(metavar="N", help="Random operations an image.")] = None,
    randaugment_magnitude: Annotated[float | None, typer.Option(metavar="M", help="How strong they are, 0 to 30.")] = None,
    upscale: Annotated[int | None, typer.Option(metavar="SIDE", help="Enlarge the images to SIDE pixels.")] = None,
    rotation: Annotated[float | None, typer.Option(help="Largest random rotation, in degrees.")] = None,
    translation: Annotated[float | None, typer.Option(help="Largest random shift, as a share of the image.")] = None,
    scaling: Annotated[float | None, typer.Option(help="Largest random change of size, as a share.")] = None,
    shear: Annotated[float | None, typer.Option(help="Largest random shear, in degrees.")] = None,
    teacher: Annotated[str | None, typer.Option(metavar="NAME[,NAME]", help="Distil from shipped models or checkpoint folders.")] = None,
    kd_temperature: Annotated[float | None, typer.Option(metavar="T", help="Divides the logits of both sides.")] = None,
    kd_alpha: Annotated[float | None, typer.Option(metavar="ALPHA", help="The teachers' share of the loss.")] = None,
    train_fraction: Annotated[float | None, typer.Option(help="Learn from this share of every class, drawn by the seed.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The checkpoint folder; default runs/MODEL.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run in --out from its last whole epoch.")] = False,
    track: TrackOption = None,
    device: DeviceOption = None,
) -> None:
    """Train a model on CIFAR-10, CIFAR-100 or a folder of your own images, and write a checkpoint.

    On several GPUs: torchrun --nproc-per-node N -m accel train MODEL …
    """
    from accel import api
    from accel.cli.progress import drawn
    from accel.trainers.ranks import from_environment

    data: dict[str, Any] = {"dataset": dataset, "split": split, "limit": limit, "train_fraction": train_fraction, "seed": seed}
    data |= {"image_size": image_size, "loader": loader, "deterministic": deterministic or None}
    steps = {"epochs": epochs, "batch_size": batch_size, "accumulate": accumulate, "optimizer": optimizer, "schedule": schedule, "lr": lr}
    manner = {"weight_decay": weight_decay, "clip_norm": clip_norm, "label_smoothing": label_smoothing, "compile": compile}
    manner |= {"warmup_epochs": warmup_epochs, "ema_decay": ema_decay, "channels_last": channels_last}
    views = {"cutout": cutout, "mixup": mixup, "cutmix": cutmix, "upscale": upscale, "rotation": rotation, "translation": translation}
    views |= {"scaling": scaling, "shear": shear, "randaugment": randaugment, "randaugment_magnitude": randaugment_magnitude}
    teaching = {"teacher": teacher, "kd_temperature": kd_temperature, "kd_alpha": kd_alpha}
    chosen = data | steps | manner | views | teaching | {"amp": "off" if no_amp else amp}
    with drawn() as progress:
        where: dict[str, Any] = {"out": out, "device": device, "track": track}
        checkpoint = api.train(model, recipe=recipe, overrides=chosen, resume=resume, **where, progress=progress)
    if not from_environment().leads:
        return  # of several processes one answers
    measured = "" if checkpoint.top1 is None else f" (top-1 {checkpoint.top1:.2f} %)"
    print(f"{checkpoint.path}{measured}")
