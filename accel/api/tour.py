"""The whole tour on the shipped models: fetch the images, export every engine, verify, time, one table."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

from accel import datasets, device, exporters, runtimes
from accel.api import outcome
from accel.api.benching import TABLE, bench
from accel.api.exporting import export
from accel.api.settings import resolve
from accel.bench import report
from accel.bench.results import CSV, JSONL, ResultSet
from accel.errors import AccelError, CorruptArtifact, DatasetMissing, MissingError, MissingExtra, UnsupportedOperator
from accel.files import write_text
from accel.progress import Progress, silent

logger = logging.getLogger(__name__)

DATASET = "cifar10"
MODELS = ("mobilenetv3_small", "resnet18")
"""Of the shipped ones, the light and the accurate: the tour of all would take a CPU more than a quarter of an hour."""
PRECISIONS = ("fp32", "fp16")
FORMATS = ("onnx", "torchscript")
"""What the tour exports: files that are written in seconds. What is built for one device is exported by name."""


@dataclasses.dataclass(frozen=True)
class Toured:
    """What the tour found: a set for each model, the folder of the combined record, and the error that it ends with, if any."""

    sets: tuple[ResultSet, ...]
    folder: Path
    problem: AccelError | None


def demo(*, device_name: str | None = None, command: str = "", progress: Progress = silent) -> Toured:
    """Carry out the tour; what is optional and missing becomes a row that says so.

    Args:
        device_name: None takes the setting: the first GPU, else the CPU, where the plan is shorter.
        command: what was typed, for the record.

    Raises:
        AccelError: nothing could be run at all, as with a full disk or a damaged bundle.
    """
    settings = resolve({"device": device_name})
    chosen = device.parse(settings["device"])
    _fetch(progress)
    sets: list[ResultSet] = []
    faults: list[outcome.Fault] = []
    folder = Path(settings["results_dir"]) / "demo"
    for model in MODELS:
        _export(model, chosen, progress)
        logger.info("verifying and timing %s on %s (%s)", model, chosen, device.name(chosen))
        # On a CPU one thread each: then two engines can be verified at once, and the small networks lose little.
        threads = settings["bench.threads"] or (1 if chosen == "cpu" else None)
        done = bench(
            model, ["all", *_file_variants(chosen)], device=chosen, threads=threads, out=folder, command=command, progress=progress
        )
        sets.append(done.results)
        faults += [dataclasses.replace(fault, variant=f"{model} {fault.variant}") for fault in done.faults]
    write_text(folder / JSONL, "".join(json.dumps(row) + "\n" for results in sets for row in results.rows))
    write_text(folder / CSV, report.rows_csv(sets))
    write_text(folder / TABLE, report.render(sets, "markdown"))
    return Toured(tuple(sets), folder, outcome.error_of(faults, ["all"]))


def _fetch(progress: Progress) -> None:
    try:
        logger.info("%s is in %s", DATASET, datasets.fetch(DATASET, progress=progress))
    except (DatasetMissing, CorruptArtifact, MissingExtra) as error:
        logger.warning("%s\naccel: going on without the images: every row will be unverified", error)


def _export(model: str, chosen: str, progress: Progress) -> None:
    for format in _formats(chosen):
        for precision in (item for item in PRECISIONS if item in exporters.FORMATS[format].precisions):
            try:
                (done,) = export(model, format, precision=precision, device=chosen, progress=progress)
                logger.info("%s: %s %s", model, done.plan.name, done.status)
            except (MissingError, UnsupportedOperator) as error:
                # Its runtimes get a row that says MISSING; the others go on.
                logger.warning("%s was not exported to %s in %s: %s", model, format, precision, error)


def _formats(chosen: str) -> list[str]:
    """What the tour exports; what runs on GPUs only is no part of what the demo installs: it joins in where it is there."""
    rows = runtimes.RUNTIMES.items()
    beside = [row.format for name, row in rows if row.format and row.gpu_only and chosen != "cpu" and runtimes.version(name)]
    return [*FORMATS, *beside]


def _file_variants(chosen: str) -> list[str]:
    """The variants that run an exported file, named, so that each has its row even if its file could not be made."""
    formats, rows = _formats(chosen), runtimes.RUNTIMES.items()
    return [f"{name}:{precision}" for name, row in rows if row.format in formats for precision in PRECISIONS if precision in row.precisions]
