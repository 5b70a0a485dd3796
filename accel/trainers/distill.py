"""Knowledge distillation (Hinton et al., 2015): an ensemble of trained teachers, and the loss that follows their soft answers."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accel.checkpoint import read_checkpoint
from accel.errors import ConfigError, IncompatibleArtifact, UnknownName
from accel.packed import unpacked
from accel.trainers.recipe import Recipe
from accel.types import Checkpoint

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

OWN_MODELS = "accel.trainers.models."


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained module in eval mode without gradients, FP32 on the device of training, and where it came from."""

    module: nn.Module
    checkpoint: Checkpoint

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.checkpoint.name, "sha256": self.checkpoint.sha256, "top1": self.checkpoint.top1}


def open_teachers(recipe: Recipe, preprocess: dict[str, Any], labels: tuple[str, ...], device: torch.device) -> list[Teacher]:
    """Load the teachers that `recipe.teacher` names: shipped models or checkpoint folders, with commas between; none if it is empty.

    Args:
        preprocess: of the student; a teacher must see what the student sees.
        labels: class names in the order of the student's logits.

    Raises:
        UnknownName, BundleMissing, CorruptArtifact: no such checkpoint, or a damaged one.
        ConfigError: a teacher of other classes, preprocessing or size of images, or a model that is not accel's.
        IncompatibleArtifact: its weights do not fit its model.
    """
    return [_open(name.strip(), recipe, preprocess, labels, device) for name in recipe.teacher.split(",") if name.strip()]


def soft_answers(logits: Sequence[Tensor], temperature: float) -> Tensor:
    """The mean of the teachers' probabilities softmax(z / T), float32 N×classes."""
    import torch

    return torch.stack([(one.float() / temperature).softmax(dim=1) for one in logits]).mean(dim=0)


def distillation(logits: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """T² · KL(answers ‖ softmax(z / T)), the mean over the batch; T² keeps the gradient's size as T grows.

    Args:
        logits: N×classes, of the student.
        answers: float32 N×classes probabilities, as `soft_answers` gives them.
    """
    from torch.nn import functional

    student = (logits.float() / temperature).log_softmax(dim=1)
    return temperature**2 * functional.kl_div(student, answers, reduction="batchmean")


def _open(name: str, recipe: Recipe, preprocess: dict[str, Any], labels: tuple[str, ...], device: torch.device) -> Teacher:
    import torch
    from safetensors.numpy import load_file

    from accel import trainers

    path = Path(name).expanduser()
    own = (path / "checkpoint.json").is_file()
    if not own and name not in trainers.MODELS:
        raise UnknownName("teacher", name, ["a folder that accel train wrote", *trainers.with_weights()])
    checkpoint = read_checkpoint(unpacked(path) if own else trainers.shipped(name))
    _refuse_unlike(checkpoint, name, recipe, preprocess, labels)
    location, _, builder = checkpoint.factory.partition(":")
    module: nn.Module = getattr(importlib.import_module(location), builder)(**checkpoint.factory_args)
    state = {key: torch.from_numpy(array.astype(np.float32)) for key, array in load_file(checkpoint.weights).items()}
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise IncompatibleArtifact(
            f"the weights of the teacher {name} do not fit {checkpoint.factory}: {error}", remedy="train it again"
        ) from error
    module = module.to(device).eval().requires_grad_(False)
    return Teacher(module.to(memory_format=torch.channels_last) if recipe.channels_last else module, checkpoint)


def _refuse_unlike(checkpoint: Checkpoint, name: str, recipe: Recipe, preprocess: dict[str, Any], labels: tuple[str, ...]) -> None:
    from accel import trainers

    pairs = [
        ("classes", checkpoint.labels, labels),
        ("preprocessing", dict(checkpoint.preprocess), preprocess),
        ("upscale", checkpoint.recipe.get("upscale", 0), recipe.upscale),
    ]
    for what, found, asked in pairs:
        if found != asked:
            raise ConfigError(
                f"the teacher {name} has the {what} {found}, {recipe.model} has {asked}",
                remedy="choose a teacher that was trained on the same classes and images",
            )
    if checkpoint.factory not in trainers.MODELS.values() and not checkpoint.factory.startswith(OWN_MODELS):
        raise ConfigError(
            f"the teacher {name} is built by {checkpoint.factory}, which is not accel's", remedy="choose a model that accel train made"
        )
