"""The whole way with real workers and a real, tiny model on the CPU."""

from __future__ import annotations

from pathlib import Path

import bench_convnet
import pytest

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
