"""Which store a command logs to, and what it is told of a finished set of `accel bench`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accel
from accel.bench import summary
from accel.bench.plan import MeasurementPlan
from accel.bench.results import ResultSet
from accel.config import Settings
from accel.errors import UnknownName
from accel.tracking import KINDS, NONE, UNTRACKED, MlflowTracker, Tracker, allowed

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
"""In the folder of the runs: the default store, and its files."""

EXPERIMENTS = {"train": "accel", "bench": "accel-bench"}
"""Command → MLflow's experiment, unless MLFLOW_EXPERIMENT_NAME names one."""

MACHINE = ("gpu_name", "driver", "cuda", "cpu_model", "governor", "kernel", "python", "git_sha", "dirty", "versions")
"""What of a set's environment is a parameter."""

STATISTICS = ("p50_us", "p95_us", "p99_us", "mean_us")


def tracker(settings: Settings, command: str, *, folder: Path | None = None, tags: Mapping[str, str]) -> Tracker:
    """The tracker of a run of `command`, which opens nothing yet.

    The store is the first of ACCEL_TRACK_URI, MLFLOW_TRACKING_URI, `track.uri` of the settings file, and `sqlite:///RUNS/mlflow.db`,
    whose files lie in RUNS/mlartifacts. Those of another SQLite database lie in `mlartifacts` beside it.

    Args:
        folder: of the run, so that it is the same run of the store when it is resumed.

    Raises:
        UnknownName: `track.to` names no such store.
    """
    if settings["track.to"] not in KINDS:
        raise UnknownName("tracking store", settings["track.to"], KINDS)
    if settings["track.to"] == NONE:
        return UNTRACKED
    runs = Path(settings["runs_dir"]).expanduser().resolve()
    uri = address(settings["track.uri"], settings.source("track.uri"), runs)
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENTS[command]
    known = {"accel.command": command, "accel.version": accel.__version__, "mlflow.source.name": f"accel {command}"}
    return MlflowTracker(uri, experiment=experiment, artifacts=artifacts(uri, runs), folder=folder, tags={**known, **tags})


def address(setting: str, source: str, runs: Path) -> str:
    """The store's URI; `source` says where the setting came from."""
    if setting and source.startswith("ACCEL_"):
        return setting
    return os.environ.get("MLFLOW_TRACKING_URI") or setting or f"sqlite:///{runs / DATABASE}"


def artifacts(uri: str, runs: Path) -> Path:
    """Where a database's files go: beside the file that it is, else into the folder of the runs."""
    scheme, _, path = uri.partition(":///")
    beside = Path(path.partition("?")[0]).expanduser().resolve().parent if scheme.startswith("sqlite") and path else runs
    return beside / ARTIFACTS


def parameters(model: str, device: str, plan: MeasurementPlan) -> dict[str, Any]:
    """What a set is asked to do."""
    return {"model": model, "device": device, "plan": plan.to_dict()}


def of_set(results: ResultSet) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics (`host_us/p50_us/VARIANT`, `top1/VARIANT`; rounds pooled, as in the table) and parameters (machine, versions, verdicts).

    Only what was measured is a metric, whatever its verdict; `verdict/VARIANT` says whether it may be ranked.
    """
    environment = results.description["environment"]
    params: dict[str, Any] = {"machine": {name: environment.get(name) for name in MACHINE}, "set": results.folder.name}
    metrics: dict[str, float] = {}
    for line in summary.lines(results.rows, results.samples()):
        variant = allowed(line.variant)
        params[f"verdict/{variant}"] = line.verdict
        if line.top1 is not None:
            metrics[f"top1/{variant}"] = line.top1
        for kind, latency in line.latency.items():
            found = {name: getattr(latency, name) for name in STATISTICS}
            metrics |= {f"{kind}/{name}/{variant}": value for name, value in found.items() if value is not None}
    return metrics, params
