"""`accel tune` on a real GPU, with workers of their own: FP16 and CUDA graphs are tried, and the best is what load takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import accel
from accel import device
from accel.api import tune_steps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not device.gpu_available()[0], reason=f"no GPU: {device.gpu_available()[1]}"),
]

TRIED = ("eager:fp32", "eager:fp16", "eager:fp16+graph", "onnxruntime:fp16", "onnxruntime:fp16+graph", "tensorrt:fp16")


def test_a_graph_beats_the_launches_of_a_tiny_network(
    accel_cli: Callable[..., Any], tiny: Path, tiny_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = tuple(step for step in tune_steps.STEPS["cuda"] if step.variant in TRIED)
    monkeypatch.setitem(tune_steps.STEPS, "cuda", steps)
    plan = ("--warmup", "50", "--iterations", "300", "--rounds", "3")
    ran = accel_cli("tune", "tiny", *plan, "--data", tiny_data, "--max-drop", "5", "--device", "cuda", "--format", "json")
    assert ran.code == 0, ran.err
    rows = {row["variant"]: row for row in json.loads(ran.out) if row["step"] != "confirmation"}
    assert (rows["eager:fp32"]["decision"], rows["eager:fp16+graph"]["decision"]) == ("baseline", "keep")
    assert rows["eager:fp16+graph"]["ratio"] < 0.9
    best = ran.err.splitlines()[-1].removeprefix("accel: best: ").partition(",")[0]
    with accel.load(tiny, device="cuda") as engine:
        assert engine.explain()["variant"] == best
        assert "accel tune measured" in engine.explain()["why"]
