"""Several builds of one engine: kernels are chosen by timing them, so that two builds differ; the fastest right one is kept."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from accel import engines, exporters, runtimes
from accel.bench.candidates import Job, threads_on
from accel.bench.launch import ARRAYS, Launcher, interpreter, spawn
from accel.bench.plan import MeasurementPlan
from accel.bench.settings import BenchSettings
from accel.engines import Bundle, Golden
from accel.errors import ParityError
from accel.exporters import ExportRequest
from accel.files import sha256_file, write_text
from accel.types import EngineEntry, TensorSpec, Variant

RECORD = "builds.json"
LATENCY = "host_us"

Parity = Callable[[EngineEntry, Path], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Bench:
    """Times an engine through the worker that `accel bench` uses, in a process of its own.

    Attributes:
        folder: for the bundles that the workers open.
        python: runtime → interpreter.
        launch: how a worker is started; tests pass one that stays in the process.
    """

    folder: Path
    device: str
    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    golden: Golden
    python: Mapping[str, str]
    launch: Launcher = spawn

    def p50_us(self, entry: EngineEntry, files: Path, number: int) -> float:
        """The median of `host_us` of one run."""
        bundle = self._bundle(entry, files, self.folder / f"{self.name}-{number}.accel")
        runtime = next(name for name, info in runtimes.RUNTIMES.items() if info.format == entry.format)
        size = engines.batch_of(entry)
        plan = MeasurementPlan.default(self.device, rounds=1, batch=size if isinstance(size, int) else 1)
        threads = threads_on(self.device, None)
        job = Job(bundle, self.device, plan.batch, threads, BenchSettings(python=self.python), self.folder / f"work-{number}", self.launch)
        request = job.request("measure", Variant(runtime, entry.precision), plan=plan.to_dict())
        job.launch(request, interpreter(runtime, self.python), job.folder, lambda step, done, total=None: None)
        with np.load(job.folder / ARRAYS, allow_pickle=False) as arrays:
            return float(np.median(arrays[LATENCY])) / 1e3

    def _bundle(self, entry: EngineEntry, files: Path, path: Path) -> Bundle:
        engines.create_bare(path, self.name, self.inputs, self.outputs, self.golden)
        return engines.add(path, entry, files)


def best_of(format: str, request: ExportRequest, parity: Parity, bench: Bench) -> EngineEntry:
    """Build `request.options.builds` times, each with kernels timed anew; the one of the lowest median that passed parity is kept.

    Its files are in `request.folder` afterwards, with the record of all builds beside them.

    Raises:
        ParityError: none passed. What `exporters.export` raises.
    """
    found: list[tuple[EngineEntry, Path]] = []
    rows: list[dict[str, Any]] = []
    for number in range(1, request.options.builds + 1):
        folder = bench.folder / f"build-{number}"
        folder.mkdir()
        request.progress(f"builds of {format}", number - 1, request.options.builds)
        entry = exporters.export(format, dataclasses.replace(request, folder=folder))
        entry = dataclasses.replace(entry, parity=parity(entry, folder))
        latency = bench.p50_us(entry, folder, number) if entry.parity["status"] == "passed" else None
        rows.append(_row(number, entry, latency))
        found.append((entry, folder))
    right = [row for row in rows if row["p50_us"] is not None]
    if not right:
        reasons = "; ".join(f"build {row['build']}: {row['parity'].get('reason', '')}" for row in rows)
        raise ParityError(f"none of {len(rows)} builds passed parity ({reasons})", remedy="build once (--builds 1), or in fp32")
    chosen = int(min(right, key=lambda row: float(row["p50_us"]))["build"])
    entry, folder = found[chosen - 1]
    shutil.copytree(folder, request.folder, dirs_exist_ok=True)
    write_text(request.folder / RECORD, json.dumps({"latency": LATENCY, "chosen": chosen, "builds": rows}, indent=1) + "\n")
    return dataclasses.replace(entry, files={**entry.files, f"{entry.name}/{RECORD}": sha256_file(request.folder / RECORD)})


def _row(number: int, entry: EngineEntry, latency: float | None) -> dict[str, Any]:
    return {
        "build": number,
        "sha256": next(iter(entry.files.values())),
        "p50_us": None if latency is None else round(latency, 3),
        "built_s": entry.built_s,
        "parity": dict(entry.parity),
        "precision_share": entry.precision_proof.get("share"),
    }
