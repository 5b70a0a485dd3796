"""What a tracker is told of a training run: parameters, results and files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accel.trainers import workers
from accel.trainers.ranks import Ranks
from accel.trainers.recipe import Recipe

FILES = {
    "recipe.toml": "",
    "log.csv": "",
    "log.jsonl": "",
    "run.json": "",
    "weights.safetensors": "checkpoint",
    "checkpoint.json": "checkpoint",
}
"""File of a finished run → its folder among the artifacts."""

RESULTS = ("top1", "top1_unrounded", "val_top1", "train_s", "peak_mib")
"""What of run.json is a number that the run leads to."""


def parameters(recipe: Recipe, *, device: str, ranks: Ranks, learned: int) -> dict[str, Any]:
    """The recipe, and what of the run it does not say: device, processes, and the workers that read images for each (0: none).

    Args:
        device: its name, as `NVIDIA H200`.
        learned: images that are learned from.
    """
    reading = workers.count(ranks) if recipe.loader == "workers" else 0
    around = {"device": device, "processes": ranks.count, "workers": reading, "train_images": learned}
    return {**recipe.to_dict(), **around, "images_per_update": recipe.batch_size * recipe.accumulate}


def outcome(facts: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics and further parameters out of what run.json holds."""
    metrics = {name: facts[name] for name in RESULTS} | {"compile_s": facts["compilation"]["compile_s"]}
    return metrics, {"versions": facts["versions"], "exported_sha256": facts["exported_sha256"], "notes": facts["notes"]}


def artifacts(out: Path) -> list[tuple[Path, str]]:
    return [(out / name, folder) for name, folder in FILES.items()]
