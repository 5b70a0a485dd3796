"""Several builds of one engine: kernels are chosen by timing them, so that two builds differ; the fastest right one is kept."""

from __future__ import annotations

import dataclasses
import json
import logging
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
from accel.bench.verification import verify_variants
from accel.engines import Golden, Reference
from accel.errors import ParityError
from accel.exporters import ExportRequest
from accel.files import sha256_file, write_text
from accel.types import EngineEntry, TensorSpec, Variant

logger = logging.getLogger(__name__)

RECORD = "builds.json"
LATENCY = "host_us"

Parity = Callable[[EngineEntry, Path], dict[str, Any]]


def _no_reference() -> Reference | None:
    return None


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one build was found to be.

    Attributes:
        p50_us: the median of `host_us` of one run; None of a build that is wrong.
        accuracy: top1, top1_reference, n_flips and n_test of its answers on the test set, in percent and samples; or the reason why not.
        right: whether nothing speaks against it; an accuracy that cannot be measured does not.
    """

    p50_us: float | None
    accuracy: dict[str, Any]
    right: bool


@dataclasses.dataclass(frozen=True)
class Bench:
    """Verifies and times an engine through the workers that `accel verify` and `accel bench` use, in processes of their own.

    Attributes:
        folder: for the bundles that the workers open.
        python: runtime → interpreter.
        launch: how a worker is started; tests pass one that stays in the process.
        preprocess: the bundle's own, without which its test images could not be given to a build; empty where it has none.
        data: the test samples, as `--data` takes them; empty where the bundle names none.
        reference: the FP32 model's answers on them, asked for once a build is to be verified; None where there are none.
    """

    folder: Path
    device: str
    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    golden: Golden
    python: Mapping[str, str]
    launch: Launcher = spawn
    preprocess: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: str = ""
    reference: Callable[[], Reference | None] = _no_reference

    def measured(self, entry: EngineEntry, files: Path, number: int) -> Measured:
        """The build's accuracy, and if nothing speaks against it its latency."""
        path = self.folder / f"{self.name}-{number}.accel"
        engines.create_bare(path, self.name, self.inputs, self.outputs, self.golden, preprocess=self.preprocess)
        bundle = engines.add(path, entry, files)
        size, folder = engines.batch_of(entry), self.folder / f"work-{number}"
        settings = BenchSettings(python=self.python, data=self.data or None)
        batch = size if isinstance(size, int) else 1
        job = Job(bundle, self.device, batch, threads_on(self.device, None), settings, folder, self.launch)
        runtime = next(name for name, info in runtimes.RUNTIMES.items() if info.format == entry.format)
        variant = Variant(runtime, entry.precision)
        accuracy, right = self._accuracy(job, variant)
        return Measured(self._p50_us(job, variant) if right else None, accuracy, right)

    def _accuracy(self, job: Job, variant: Variant) -> tuple[dict[str, Any], bool]:
        reference = self.reference() if self.data else None
        if reference is None:
            lacking = "no reference is stored: `accel verify` makes one" if self.data else "the bundle names no test data"
            return {"reason": f"not measured: {lacking}"}, True
        engines.write_reference(job.bundle.path, reference)
        (found,) = verify_variants(job, [variant])
        if found.result is None or found.result.top1 is None:
            why = found.failure.reason if found.failure else "no score"
            return {"reason": f"not measured: {why}"}, found.runnable
        result = found.result
        known = {"top1": result.top1, "top1_reference": result.top1_reference, "n_flips": result.n_flips, "n_test": result.n_test}
        return {**known, "reason": result.reason}, found.failure is None

    def _p50_us(self, job: Job, variant: Variant) -> float:
        plan = MeasurementPlan.default(self.device, rounds=1, batch=job.batch)
        request = job.request("measure", variant, plan=plan.to_dict())
        job.launch(request, interpreter(variant.runtime, self.python), job.folder, lambda step, done, total=None: None)
        with np.load(job.folder / ARRAYS, allow_pickle=False) as arrays:
            return float(np.median(arrays[LATENCY])) / 1e3


def best_of(format: str, request: ExportRequest, parity: Parity, bench: Bench) -> EngineEntry:
    """Build `request.options.builds` times, each with kernels timed anew; the one of the lowest median that is right is kept: it passed
    parity, and the gates on the test set where there is one.

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
        measured = bench.measured(entry, folder, number) if entry.parity["status"] == "passed" else _WRONG
        rows.append(_row(number, entry, measured))
        found.append((entry, folder))
    right = [row for row in rows if row["p50_us"] is not None]
    if not right:
        reasons = "; ".join(f"build {row['build']}: {row['parity'].get('reason') or row['accuracy'].get('reason', '')}" for row in rows)
        raise ParityError(
            f"none of {len(rows)} builds is right ({reasons})",
            remedy="build once (--builds 1) and look at it with `accel verify`, or build in fp32",
        )
    chosen = int(min(right, key=lambda row: float(row["p50_us"]))["build"])
    entry, folder = found[chosen - 1]
    shutil.copytree(folder, request.folder, dirs_exist_ok=True)
    write_text(request.folder / RECORD, json.dumps({"latency": LATENCY, "chosen": chosen, "builds": rows}, indent=1) + "\n")
    return dataclasses.replace(entry, files={**entry.files, f"{entry.name}/{RECORD}": sha256_file(request.folder / RECORD)})


_WRONG = Measured(None, {"reason": "not measured: it did not pass parity"}, right=False)


def _row(number: int, entry: EngineEntry, measured: Measured) -> dict[str, Any]:
    latency, accuracy = measured.p50_us, measured.accuracy
    scored = f"top-1 {accuracy['top1']:.2f} %" if "top1" in accuracy else f"top-1 {accuracy['reason']}"
    timed = "wrong, and not timed" if latency is None else f"{latency:.1f} µs"
    logger.info("build %d of %s: %s (%s from call to result, median), %s", number, entry.name, entry.parity["status"], timed, scored)
    return {
        "build": number,
        "sha256": next(iter(entry.files.values())),
        "p50_us": None if latency is None else round(latency, 3),
        "accuracy": accuracy,
        "built_s": entry.built_s,
        "parity": dict(entry.parity),
        "precision_share": entry.precision_proof.get("share"),
    }
