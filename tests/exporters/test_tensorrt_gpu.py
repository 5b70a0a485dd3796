"""Real plans of the TensorRT that is installed, on a real GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_samples
import pytest

from accel import device, exporters
from accel.exporters import BuildOptions, ExportRequest
from accel.files import cache_dir
from accel.trt import load, read_header
from accel.types import TensorSpec

pytestmark = pytest.mark.gpu
pytest.importorskip("tensorrt", reason="TensorRT is not installed (pip install 'accel-engines[trt]')", exc_type=ImportError)
pytest.importorskip("onnx")
if not device.gpu_available()[0]:
    pytest.skip(device.gpu_available()[1], allow_module_level=True)

INPUT = TensorSpec("x", ("batch", 3, 8, 8), "float32", "NCHW")
OUTPUT = TensorSpec("y", ("batch", 4), "float32", "NC")
SOURCES = ("edge-mask-convolutions", "jit-convolutions")
"""What a TensorRT without cuDNN and cuBLAS has."""


def request_of(folder: Path, precision: str, file: dict[str, Any] | None = None, **fields: Any) -> ExportRequest:
    onnx = onnx_samples.write(folder / "in" / "model.onnx", **{"precision": precision, **(file or {})})
    (folder / "out").mkdir(exist_ok=True)
    values = {"options": BuildOptions(tactic_sources=SOURCES, optimization_level=1), **fields}
    return ExportRequest(None, (INPUT,), (OUTPUT,), precision, folder / "out", onnx=onnx, device="cuda:0", **values)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_plan_is_in_the_precision_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "cache"))
    request = request_of(tmp_path, precision)
    entry = exporters.export("tensorrt", request)
    assert entry.precision_proof["method"] == "engine inspector"
    assert entry.precision_proof["share"] >= 0.95
    header = read_header(request.folder / "model.plan")
    assert header is not None
    assert header.version[:2] == load("tensorrt").version[:2]
    assert entry.toolchain["tactic_sources"] == ",".join(SOURCES)
    assert json.loads((request.folder / "layers.json").read_text())["engine"]
    assert len(list((cache_dir() / "timing").iterdir())) == 1
    assert exporters.is_current(entry, request)


def test_a_dynamic_plan_is_proven_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "cache"))
    options = BuildOptions(tactic_sources=SOURCES, optimization_level=1, opt_batch=4, max_batch=8)
    entry = exporters.export("tensorrt", request_of(tmp_path, "fp16", {"batch": "N"}, batch="dynamic", options=options))
    assert entry.precision_proof["share"] >= 0.95
    assert entry.inputs[0].shape[0] == "batch"
