"""Sets on disk with scripted samples, for the tests of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from accel.bench.results import row, write_samples
from accel.bench.stats import summarise
from accel.report.sections import Section, open_sections

COMMAND = "accel bench resnet18 --runtime eager --runtime 'onnxruntime:fp16+graph'"
MACHINE: dict[str, Any] = {
    "cpu_model": "Some CPU",
    "kernel": "6.1",
    "python": "3.11.9",
    "gpu_name": "NVIDIA H200",
    "gpu_uuid": "GPU-1",
    "driver": "580.1",
    "cuda": "13.0",
    "versions_json": {"torch": "2.15.0"},
    "plan": "quick plan: warm-up 20, 700 iterations, 3 rounds",
    "command": COMMAND,
    "git_sha": "0123abc",
    "dirty": True,
    "timestamp_utc": "2026-11-22T18:45:58Z",
    "model": "resnet18",
    "device": "cuda:0",
    "metric": "top1",
    "size_mb": 44.7,
    "flags": [],
    "batch": 1,
    "n_test": 10_000,
    "first_call_ms": 1.5,
    "build_s": 2.0,
    "input_sha256": "ab",
    "verdict": "OK",
    "top1": 95.2,
    "top1_reference": 95.22,
    "n_flips": 3,
    "mcnemar_p": 0.625,
}

GPU: dict[str, dict[str, Any]] = {
    "eager:fp32": {"host_us": 1000, "device_us": 900, "e2e_us": 1100, "top1": 95.22, "n_flips": 0, "mcnemar_p": 1.0},
    "eager:fp16": {"host_us": 800, "device_us": 500, "e2e_us": 900},
    "compile:fp16": {"host_us": 200, "device_us": 190, "e2e_us": 260, "build_s": 10.0},
    "onnxruntime:fp16": {"host_us": 400, "device_us": 390, "e2e_us": 460, "build_s": 1.0, "flags": ["ENQUEUE_BLOCKED"]},
    "torchscript:fp16": {"host_us": 100, "verdict": "INVALID", "reason": "12 % of predictions changed", "remedy": "export again"},
    "tensorrt:fp16": {"verdict": "MISSING", "reason": "TensorRT is not installed", "remedy": "pip install 'accel-engines[trt]'"},
}


def write_set(folder: Path, variants: dict[str, dict[str, Any]] | None = None, *, keep: bool = True, rounds: int = 3) -> Path:
    """Rounds of 700 samples around each `*_us` that a variant has; a variant without one has a single row without a latency."""
    rows, raw = [], {}
    for name, given in (GPU if variants is None else variants).items():
        values = {**MACHINE, "set_id": folder.name, "variant": name, "runtime": name.partition(":")[0], **given}
        kinds = {kind: values.pop(kind) for kind in ("host_us", "device_us", "e2e_us") if kind in values}
        if not kinds:
            absent = ("top1", "n_flips", "mcnemar_p", "build_s", "first_call_ms", "size_mb", "input_sha256")
            rows.append(row(**{**values, **dict.fromkeys(absent)}))
        for number in range(rounds):
            for kind, us in kinds.items():
                key = f"{name}/{folder.name}/r{number}/{kind}"
                # A plateau in the middle: the median over three rounds is exactly 1.01 times `us`.
                shape = np.concatenate([np.linspace(us * 950, us * 1050, 400), np.full(300, us * 1000)])
                raw[key] = shape.astype(np.int64) * (100 + number) // 100
                place = {"latency_kind": kind, "round": number, "raw_path": f"samples.npz#{key}"}
                # Without intervals, as the first sets were recorded.
                known = {name: value for name, value in vars(summarise(raw[key])).items() if not name.endswith(("_lo_us", "_hi_us"))}
                rows.append(row(**{**values, **known, **place}))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows))
    if keep:
        write_samples(folder / "samples.npz", raw)
    return folder


def section(folder: Path, variants: dict[str, dict[str, Any]] | None = None, **given: Any) -> Section:
    (only,) = open_sections([write_set(folder, variants, **given)])
    return only
