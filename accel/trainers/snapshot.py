"""The state of an unfinished run: written after every epoch beside its checkpoint, so that `--resume` goes on where it was killed."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel.errors import CorruptArtifact, IncompatibleArtifact, MissingError
from accel.files import replacing
from accel.optional import require
from accel.trainers.recipe import Recipe

if TYPE_CHECKING:
    import torch

STATE_FILE = "state.pt"
"""In the run's folder; removed once the checkpoint is written."""

SCHEMA = 1


def write(path: Path, state: dict[str, Any], recipe: Recipe, inputs: dict[str, Any]) -> None:
    """Replace `path` atomically: a run that is killed, or a disk that fills up, leaves the state of the epoch before.

    Args:
        state: tensors, numbers and text in plain containers.
        inputs: what the run learns from beside its recipe, by hash.

    Raises:
        DiskFull: no space is left.
    """
    import torch

    # Into memory first: torch's own writer hides a full disk behind a RuntimeError.
    data = io.BytesIO()
    torch.save({"schema": SCHEMA, "recipe": recipe.to_dict(), "inputs": inputs, **state}, data)
    with replacing(path) as temporary:
        temporary.write_bytes(data.getbuffer())


def read(folder: Path) -> dict[str, Any]:
    """The state in `folder`, its tensors on the CPU; it can hold data only, no code.

    Raises:
        MissingError: there is none. CorruptArtifact: it is damaged or of another version.
    """
    torch = require("torch", extra="train")
    path = folder / STATE_FILE
    if not path.is_file():
        raise MissingError(
            f"there is no unfinished run to resume: {path} is missing", remedy="leave --resume out, or name its folder with --out"
        )
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state["schema"] != SCHEMA:
            raise KeyError(f"schema {state['schema']}")
        Recipe(**state["recipe"])
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise CorruptArtifact(f"{path} cannot be read ({error!r})", remedy="remove it, and train without --resume") from error
    return state


def demand_same(state: dict[str, Any], inputs: dict[str, Any], path: Path) -> None:
    """Refuse to go on with other images or teachers.

    Raises:
        IncompatibleArtifact: names what differs.
    """
    for name, asked in inputs.items():
        if state["inputs"].get(name) != asked:
            raise IncompatibleArtifact(
                f"{path} was trained with the {name} {state['inputs'].get(name)}, and found {asked}",
                remedy=f"bring back the {name}, or train without --resume",
            )


def random_state(device: torch.device) -> dict[str, Any]:
    """What dropout draws from: torch's generators of the CPU and of the device."""
    import torch

    states = {"cpu": torch.get_rng_state()}
    return states if device.type == "cpu" else {**states, "cuda": torch.cuda.get_rng_state(device)}


def set_random_state(states: dict[str, Any], device: torch.device) -> None:
    import torch

    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
