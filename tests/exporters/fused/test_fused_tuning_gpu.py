"""Tiles tuned on a GPU: what the engine answers with them, and that what is recorded was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cuda.core", reason="cuda-core is not installed")

from exporters.fused import reference
from exporters.fused.networks import plain

from accel import device
from accel.engines import fused_plan
from accel.exporters import BuildOptions, ExportRequest
from accel.exporters.fused import exporting
from accel.runtimes.session import Session
from accel.types import EngineSource, TensorSpec, Variant

pytestmark = pytest.mark.gpu


def test_an_engine_with_tuned_tiles_answers_as_float64_does(tmp_path: Path) -> None:
    available, reason = device.gpu_available()
    if not available:
        pytest.skip(reason)
    inputs = (TensorSpec("image", ("batch", 3, 12, 12), "float32", "NCHW"),)
    outputs = (TensorSpec("logits", ("batch", 10), "float32", "NC"),)
    folder = tmp_path / "fused-fp16"
    folder.mkdir()
    request = ExportRequest(None, inputs, outputs, "fp16", folder, device="cuda:0", options=BuildOptions(tune=True, tune_s=30))
    network = plain()
    entry = exporting.export_network(network, request)
    plan = fused_plan.read(folder / "plan.json")
    record = plan.schedules["chain"].plan["tuned"]
    layers = {"stem", "wide", "again", "down"}
    # Of each other tiles, and then the one that was kept with its tables read.
    for tables in (False, True):
        assert {one["layer"] for one in record["tried"] if one["tables"] is tables} == layers
    assert all(one["us"] > 1 for one in record["tried"])
    source = EngineSource(Variant("fused", "fp16", ("chain",)), "cuda:0", inputs, outputs, 1, entry=entry, file=folder / "plan.json")
    session = Session(source)
    image = np.random.default_rng(0).standard_normal((1, 3, 12, 12)).astype(np.float16)
    expected = reference.run(network, image[0])[network.layers[-1].name].reshape(1, -1)
    found = session.run({"image": image.astype(np.float32)})["logits"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-2 * np.abs(expected).max())
    session.close()
    us = {schedule: of.plan["tuned"]["device_us"] for schedule, of in plan.schedules.items() if "tuned" in of.plan}
    assert set(us) == {"chain", "grid"}
    fastest = min(us, key=lambda schedule: us[schedule])
    assert (plan.chosen, entry.toolchain["chosen"].partition(":")[0]) == (fastest, fastest)
