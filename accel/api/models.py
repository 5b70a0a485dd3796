"""From what a user types for MODEL to a checkpoint: a shipped name, a checkpoint or bundle folder, or `package.module:factory`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accel import packed, trainers
from accel.checkpoint import read_checkpoint, write_checkpoint
from accel.engines import Bundle, Golden, module
from accel.engines import golden as golden_samples
from accel.engines.manifest import MANIFEST_FILE
from accel.engines.running import as_tensors
from accel.engines.weights import read_weights
from accel.errors import AccelError, DatasetMissing, UsageError, of_users_code
from accel.optional import require
from accel.preprocess import Preprocess
from accel.types import Array, Checkpoint, TensorSpec

CHECKPOINT_FILE = "checkpoint.json"
CALLED_WITH = "it is called with one float32 tensor; a model of other inputs may be given as an ONNX file"


def is_factory(model: str) -> bool:
    """Whether `model` is spelled `package.module:callable` (a drive letter or a path is not)."""
    return ":" in model and not Path(model).exists() and not {"/", "\\"} & set(model)


def resolve(model: str, scratch: Path, *, weights: Path | None = None, shape: str | None = None, name: str | None = None) -> Checkpoint:
    """The checkpoint of MODEL, renamed to `name` if one is given.

    Args:
        scratch: an empty folder, where a user's own module is described; it must outlive the checkpoint's use.
        weights, shape: of a factory: its `.safetensors` and its input; no other model takes them.

    Raises:
        UsageError, UnknownName, BundleMissing, CorruptArtifact: as `find` and `adopt`.
    """
    if is_factory(model):
        return adopt(model, weights, shape, name or _factory_name(model), scratch)
    if weights is not None or shape is not None:
        raise UsageError(f"{model} has its own weights and input", remedy="--weights and --input go with package.module:factory only")
    checkpoint = find(model)
    return dataclasses.replace(checkpoint, name=name) if name else checkpoint


def find(model: str) -> Checkpoint:
    """The checkpoint that a shipped name or a path names.

    Raises:
        UnknownName: neither a model of accel nor a path that exists. BundleMissing: a shipped model without its weights.
        CorruptArtifact: a damaged checkpoint.
    """
    path = Path(model).expanduser()
    if (path / MANIFEST_FILE).is_file():
        return Bundle.open(path).checkpoint
    folder = path.parent if path.name in (packed.WEIGHTS, packed.PACKED) else path
    if (folder / CHECKPOINT_FILE).is_file():
        return read_checkpoint(packed.unpacked(folder))
    if path.exists():
        raise UsageError(
            f"{model} is no checkpoint: it has no {CHECKPOINT_FILE}",
            remedy="name a folder that accel train wrote, or package.module:factory with --weights and --input",
        )
    if model not in trainers.MODELS and (path.suffix or len(path.parts) > 1):
        known = ", ".join(sorted(trainers.MODELS))
        raise UsageError(f"there is nothing at {model}", remedy=f"name a folder that exists, or one of: {known}")
    return read_checkpoint(trainers.shipped(model))


def adopt(factory: str, weights: Path | None, shape: str | None, name: str, scratch: Path) -> Checkpoint:
    """Describe a user's own module as a checkpoint in `scratch`: its weights, and the output that it gives for one noise input.

    Args:
        factory: `package.module:callable`, called without arguments; also looked for in the working folder.
        weights: a `.safetensors` file of its state dict.
        shape: the input as `1x3x224x224`; the first size is the batch.

    Raises:
        UsageError: weights or input are missing or not of the form. MissingError: the factory cannot be imported.
        IncompatibleArtifact: the weights do not fit.
    """
    if weights is None or shape is None:
        raise UsageError(f"{factory} needs its weights and its input", remedy="add --weights FILE.safetensors and --input 1x3x224x224")
    if weights.suffix != ".safetensors" or not weights.is_file():
        found = "is not there" if not weights.is_file() else "is no .safetensors file, and accel reads no pickle"
        raise UsageError(f"{weights} {found}", remedy="write it with safetensors.torch.save_file(model.state_dict(), 'w.safetensors')")
    sizes = parse_shape(shape)
    module.look_where_started()
    tensors = read_weights(weights)
    draft = Checkpoint(
        path=scratch,
        sha256="",
        name=name,
        factory=factory,
        num_classes=0,
        input=TensorSpec("input", ("batch", *sizes[1:]), "float32", "NCHW" if len(sizes) == 4 else ""),
        output=TensorSpec("output", ("batch", 1)),
    )
    draft = write_checkpoint(draft, tensors)
    answered = _answer(module.build_module(draft), sizes)
    output = TensorSpec("output", ("batch", *answered[1:]), "float32", "NC" if len(answered) == 2 else "")
    return write_checkpoint(dataclasses.replace(draft, output=output, num_classes=answered[1] if len(answered) == 2 else 0), tensors)


def parse_shape(text: str) -> tuple[int, ...]:
    """`1x3x224x224` → (1, 3, 224, 224).

    Raises:
        UsageError: not sizes of at least 1 with an x between them, fewer than two, or a batch other than 1.
    """
    parts = text.lower().split("x")
    if len(parts) < 2 or not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise UsageError(f"{text!r} is no input shape", remedy="spell it 1x3x224x224: batch, channels, height, width")
    if int(parts[0]) != 1:
        raise UsageError(f"the input {text} names a batch of {parts[0]}", remedy=f"--input 1x{'x'.join(parts[1:])} --batch {parts[0]}")
    return tuple(int(part) for part in parts)


def golden_of(checkpoint: Checkpoint, torch_module: Any) -> Golden:
    """Golden samples: 64 train images where the checkpoint or its dataset has them, and seeded noise."""
    images, preprocess = _golden_images(checkpoint)
    return golden_samples.make(checkpoint, torch_module, images, preprocess)


def _factory_name(factory: str) -> str:
    """The callable's name, or its module's where the callable is only called `build`."""
    module_name, _, callable_name = factory.partition(":")
    return module_name.rpartition(".")[2] if callable_name == "build" else callable_name


def _golden_images(checkpoint: Checkpoint) -> tuple[Array | None, Callable[[Array], Array] | None]:
    if not checkpoint.preprocess:
        return None, None
    try:
        prepare = Preprocess.from_dict(checkpoint.preprocess).for_images(checkpoint.input)
        return trainers.golden_images(checkpoint.dataset, checkpoint.path), prepare
    except DatasetMissing:
        return None, None


def _answer(torch_module: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    torch = require("torch", extra="train")
    try:
        with torch.inference_mode():
            answers = as_tensors(torch_module(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
    except RuntimeError as error:
        what = f"the module does not take an input of {'x'.join(map(str, shape))}: {error}"
        raise UsageError(what, remedy=f"mend --input, or wrap the module: {CALLED_WITH}") from error
    except AccelError:
        raise
    except Exception as error:
        what = f"the module does not take one float32 input of {'x'.join(map(str, shape))}"
        raise of_users_code(what, error, f"mend --input, or wrap the module: {CALLED_WITH}") from error
    if len(answers) != 1:
        raise UsageError(f"the module returns {len(answers)} tensors; a bundle has one output", remedy="wrap it so that it returns one")
    return tuple(answers[0].shape)
