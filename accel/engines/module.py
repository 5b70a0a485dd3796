"""From a checkpoint back to its nn.Module: import the factory by name, load the weights as FP32."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accel.checkpoint import read_checkpoint
from accel.engines import embedding
from accel.engines.weights import read_weights
from accel.errors import AccelError, IncompatibleArtifact, MissingError, UsageError, of_users_code
from accel.files import sha256_bytes
from accel.optional import require
from accel.preprocess import Preprocess
from accel.types import Checkpoint


def build_module(checkpoint: Checkpoint | Path) -> Any:
    """Build the nn.Module of `checkpoint`: FP32, eval mode, BatchNorm unfolded, on the CPU, without gradients; behind its preprocessing
    where its input is pixels.

    This runs the factory's code: ask `trust.demand_module` first where the checkpoint came from somebody else.

    Args:
        checkpoint: a Checkpoint, or the folder of one.

    Raises:
        MissingExtra: torch is absent. MissingError: the factory's package is.
        UsageError: the factory is misspelled, fails or builds no nn.Module.
        IncompatibleArtifact: the weights do not fit what the factory builds.
        CorruptArtifact: the checkpoint cannot be read.
    """
    torch = require("torch", extra="train")
    if isinstance(checkpoint, Path):
        checkpoint = read_checkpoint(checkpoint)
    factory = find_factory(checkpoint.factory)
    try:
        inspect.signature(factory).bind(**checkpoint.factory_args)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{checkpoint.factory} cannot be called with {dict(checkpoint.factory_args)}: {error}") from error
    try:
        module = factory(**checkpoint.factory_args)
    except AccelError:
        raise
    except Exception as error:
        raise of_users_code(f"{checkpoint.factory} failed", error) from error
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"{checkpoint.factory} built a {type(module).__name__}, not a torch.nn.Module")
    state = {name: torch.from_numpy(array) for name, array in read_weights(checkpoint.weights).items()}
    try:
        module.float().load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise IncompatibleArtifact(
            f"the weights of {checkpoint.name} do not fit what {checkpoint.factory} builds: {error}",
            remedy=f"install the version of {checkpoint.factory.partition('.')[0]} that it was trained with, or train it again",
        ) from error
    module = module.eval().requires_grad_(False)
    if not checkpoint.input.is_pixels:
        return module
    return embedding.with_pixels(module, Preprocess.from_dict(checkpoint.preprocess))


def find_factory(factory: str) -> Callable[..., Any]:
    """Import `package.module:callable`.

    Raises:
        UsageError: misspelled, or its module fails. MissingError: no such module or callable on this machine.
    """
    module_name, attribute = _split(factory)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise _absent(factory, str(error)) from error
    except Exception as error:
        raise of_users_code(f"the model's factory {factory} cannot be imported", error) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise _absent(factory, f"{module_name} has no callable {attribute}")
    return found  # type: ignore[no-any-return]


def look_where_started() -> None:
    """Let factories be found in the working folder too, behind all else; only for a factory that this user named or trusts."""
    # A console script, unlike `python -m`, does not look where it was started; users keep their model there.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def source_sha256(factory: str) -> str:
    """SHA-256 of the file that defines the factory's module, line endings normalised; the module itself is not imported.

    Raises:
        UsageError: misspelled. MissingError: the module is not on this machine, or has no file.
    """
    module_name, _ = _split(factory)
    try:
        spec = importlib.util.find_spec(module_name)
    except ModuleNotFoundError as error:
        raise _absent(factory, str(error)) from error
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise _absent(factory, f"{module_name} has no source file")
    return sha256_bytes(Path(spec.origin).read_bytes().replace(b"\r\n", b"\n"))


def _split(factory: str) -> tuple[str, str]:
    module_name, _, attribute = factory.partition(":")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise UsageError(f"{factory!r} names no factory", remedy="spell it package.module:callable")
    return module_name, attribute


def _absent(factory: str, why: str) -> MissingError:
    return MissingError(
        f"the model's factory {factory} cannot be imported: {why}",
        remedy=f"install the package {factory.partition('.')[0].partition(':')[0]} or put its folder on PYTHONPATH; "
        "or run an exported engine, which does not need it",
    )
