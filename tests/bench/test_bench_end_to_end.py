"""The whole way with real workers and a real, tiny model on the CPU."""

from __future__ import annotations

from pathlib import Path

import bench_convnet
import numpy as np
import pytest

from accel.bench import worker
from accel.bench.coordinate import run_set
from accel.bench.plan import MeasurementPlan
from accel.bench.report import render
from accel.bench.settings import BenchSettings
from accel.types import Variant

pytest.importorskip("torch")


def test_a_model_is_verified_and_timed_by_workers_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "cache"))
    bundle = bench_convnet.make_bundle(tmp_path)
    settings = BenchSettings(data=bench_convnet.write_data(bundle, tmp_path / "test.npz"), command="accel bench convnet")
    plan = MeasurementPlan(warmup=2, iterations=20, rounds=1, name="test plan")
    said = []

    result = run_set(
        bundle,
        [Variant("eager", "fp32"), Variant("onnxruntime", "fp32")],
        plan,
        "cpu",
        tmp_path / "out",
        settings,
        progress=lambda step, done, total=None: said.append((step, done, total)),
    )

    by_kind = {(row["variant"], row["latency_kind"]): row for row in result.rows}
    assert set(by_kind) == {
        ("eager:fp32", "host_us"),
        ("eager:fp32", "e2e_us"),
        ("onnxruntime:fp32", None),
    }
    row = by_kind["eager:fp32", "host_us"]
    assert (row["verdict"], row["top1"], row["n_flips"], row["n"]) == ("OK", 100, 0, 20)
    assert 0 < row["min_us"] <= row["p50_us"] <= row["max_us"]
    assert row["max_rel_err"] < 1e-4
    assert by_kind["onnxruntime:fp32", None]["remedy"] == "accel export convnet --to onnx"
    assert any(step.startswith("verify convnet eager") for step, _, _ in said)
    assert "eager:fp32" in render([result])


def test_a_compilation_while_it_is_timed_makes_the_row_invalid(tmp_path, monkeypatch):
    import torch

    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "cache"))
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, dynamic, **how: real(module, backend="eager", dynamic=dynamic))
    bundle = bench_convnet.make_bundle(tmp_path, "build_branching")
    settings = BenchSettings(data=bench_convnet.write_data(bundle, tmp_path / "test.npz"))

    def launch(request, python, folder, progress):
        reply, arrays = worker.answer(request, progress)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "arrays.npz", **arrays)
        return reply

    plan = MeasurementPlan(warmup=0, iterations=10, rounds=1, name="test plan")
    variants = [Variant("eager", "fp32"), Variant("compile", "fp32")]
    result = run_set(bundle, variants, plan, "cpu", tmp_path / "out", settings, launch=launch)

    outcomes = {row["variant"]: (row["verdict"], row["refusals"], row["exit_code"], row["recompiles"]) for row in result.rows}
    # The way that images take is one more frame for torch.compile.
    assert outcomes == {"eager:fp32": ("OK", [], 0, None), "compile:fp32": ("INVALID", ["RECOMPILED"], 3, 1)}
    assert "compiled again 1 time while it was timed" in next(row["reason"] for row in result.rows if row["reason"])


@pytest.mark.slow
def test_a_rebuild_is_cold_although_the_caches_are_full(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    bundle = bench_convnet.make_bundle(tmp_path)
    settings = BenchSettings(data=bench_convnet.write_data(bundle, tmp_path / "test.npz"))
    found = {}
    for rebuild in (True, False):
        # Verifying, before the first set, has filled the caches that workers share.
        plan = MeasurementPlan(warmup=0, iterations=5, rounds=1, rebuild=rebuild, name="test plan")
        result = run_set(bundle, [Variant("compile", "fp32")], plan, "cpu", tmp_path / "out", settings)
        found[rebuild] = result.rows[0]

    assert found[True]["verdict"] == found[False]["verdict"] == "OK"
    assert found[True]["build_warm_s"] is None
    assert found[False]["build_s"] is None
    assert found[True]["build_s"] > found[False]["build_warm_s"] > 0
    assert found[True]["plan"].endswith(", every build cold")
    assert (tmp_path / "cache" / "inductor").is_dir()
    for row in found.values():
        # Importing torch takes longer than anything that this leaves out, and it fills more memory.
        assert row["load_s"] > 0.1
        assert row["host_mem_peak_mib"] > 100
        assert row["export_s"] is None
