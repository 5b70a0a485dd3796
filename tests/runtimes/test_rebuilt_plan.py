"""A plan for another GPU: its refusal with the command, and `accel.load(…, rebuild=True)`, with a builder and a TensorRT of ours."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import installed
from fake_trt_runtime import FakeTensorRT, write_plan

import accel
from accel import engines, exporters, runtimes
from accel.engines import Bundle, Golden, trust
from accel.errors import IncompatibleArtifact, ParityError
from accel.exporters import BuildOptions, ExportRequest
from accel.exporters.describing import describe
from accel.files import sha256_file
from accel.runtimes import sources, tensorrt_engines
from accel.trt import library
from accel.types import EngineEntry, TensorSpec

onnx = pytest.importorskip("onnx")

IN, OUT = TensorSpec("x", ("batch", 4), layout="NC"), TensorSpec("y", ("batch", 4), layout="NC")
OPTIONS = BuildOptions(max_batch=8, tactic_sources=("edge-mask-convolutions", "jit-convolutions"), builds=3, timing_cache="off")
A100 = {"tensorrt": "8.6.0", "gpu": "NVIDIA A100", "compute_capability": "8.0", "device": "cuda"}


def write_onnx(path: Path) -> Path:
    """`y = x + x`, for any batch."""
    sizes = ["batch", 4]
    half = onnx.TensorProto.FLOAT16
    values = [onnx.helper.make_tensor_value_info(name, half, sizes) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "x"], ["y"], "/add")], "net", values[:1], values[1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@dataclasses.dataclass
class Builder:
    """Stands for the exporter: writes a plan that multiplies by `factor`, tied to the GPU here."""

    factor: float = 2.0
    requests: list[ExportRequest] = dataclasses.field(default_factory=list)

    def export(self, format: str, request: ExportRequest) -> EngineEntry:
        self.requests.append(request)
        assert (format, request.onnx is not None) == ("tensorrt", True)
        tensors = dict.fromkeys(("x", "y"), ("float16", (-1, 4)))
        write_plan(request.folder / "model.plan", {"x": tensors["x"]}, {"y": (*tensors["y"], self.factor)}, profile=[1, 8])
        facts = {"options": json.dumps(request.options.given())}
        target = {**A100, "gpu": "Fake GPU", "compute_capability": "9.0"}
        return describe(format, request, 0.0, toolchain=facts, precision_proof={"share": 1.0}, target=target)


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Builder]:
    library._load.cache_clear()
    made = Builder()
    monkeypatch.setattr(exporters, "export", made.export)
    for module in (runtimes, sources):
        monkeypatch.setattr(module, "version", lambda name: "8.6.0")
    with installed() as driver:
        monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT(driver))
        yield made
    library._load.cache_clear()
    assert tensorrt_engines.count() == 0


@pytest.fixture
def bundle(tmp_path: Path, builder: Builder) -> Path:
    """A bundle without a model: its ONNX file, and a plan that an A100 was asked for."""
    path = tmp_path / "net.accel"
    samples = np.arange(32, dtype=np.float32).reshape(8, 4)
    engines.create_bare(path, "net", (IN,), (OUT,), Golden(None, {"x": samples}, {"y": 2 * samples}))
    file = write_onnx(tmp_path / "onnx" / "model.onnx")
    native = tuple(dataclasses.replace(spec, dtype="float16") for spec in (IN, OUT))
    hashes = {"onnx-fp16-dynamic/model.onnx": sha256_file(file)}
    passed = {"status": "passed"}
    entry = EngineEntry("onnx-fp16-dynamic", "onnx", "fp16", hashes, native[:1], native[1:], {}, 0.0, opset=17, parity=passed)
    engines.add(path, entry, file.parent)
    folder = tmp_path / "plan"
    folder.mkdir()
    plan = builder.export("tensorrt", ExportRequest(None, (IN,), (OUT,), "fp16", folder, "dynamic", onnx=file, options=OPTIONS))
    engines.add(path, dataclasses.replace(plan, target=A100, parity=passed), folder)
    trust.record(Bundle.open(path))
    builder.requests.clear()
    return path


def load(bundle: Path, **how: Any) -> Any:
    return accel.load(bundle, "tensorrt:fp16", device="cuda:0", **how)


def test_the_refusal_names_both_gpus_and_the_command_for_this_batch_and_these_options(bundle: Path) -> None:
    with pytest.raises(IncompatibleArtifact, match="was made for NVIDIA A100; cuda:0 is Fake GPU") as caught:
        load(bundle)
    command = (
        f"accel export {bundle} --to trt --fp16 --batch dynamic --tactic-sources edge-mask-convolutions,jit-convolutions --max-batch 8"
    )
    assert str(caught.value.remedy).endswith(command)


def test_it_is_built_from_the_bundles_onnx_checked_and_kept_beside_the_old(bundle: Path, builder: Builder) -> None:
    old = Bundle.open(bundle).entry("tensorrt", "fp16").files
    with load(bundle, rebuild=True) as engine:
        assert engine(np.ones((3, 4), np.float32)).tolist() == [[2.0] * 4] * 3
        assert engine.explain()["engine"] == "tensorrt-fp16-dynamic-fake-gpu-8-6-0"
    (request,) = builder.requests
    assert (request.batch, request.precision, request.device) == ("dynamic", "fp16", "cuda:0")
    # Once: several builds are for whoever chooses among them.
    assert request.options == dataclasses.replace(OPTIONS, builds=1)
    entries = {entry.name: entry for entry in Bundle.open(bundle).entries}
    assert list(entries) == ["onnx-fp16-dynamic", "tensorrt-fp16-dynamic", "tensorrt-fp16-dynamic-fake-gpu-8-6-0"]
    assert entries["tensorrt-fp16-dynamic"].files == old
    assert entries["tensorrt-fp16-dynamic-fake-gpu-8-6-0"].parity["status"] == "passed"
    with load(bundle) as engine:
        assert engine.explain()["engine"] == "tensorrt-fp16-dynamic-fake-gpu-8-6-0"
    assert len(builder.requests) == 1


def test_a_plan_that_answers_otherwise_than_the_golden_samples_is_not_kept(bundle: Path, builder: Builder) -> None:
    builder.factor = 3.0
    with pytest.raises(ParityError, match="disagrees with the golden samples and was not added"):
        load(bundle, rebuild=True)
    assert [entry.name for entry in Bundle.open(bundle).entries] == ["onnx-fp16-dynamic", "tensorrt-fp16-dynamic"]
