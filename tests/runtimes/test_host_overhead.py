"""The script that compares accel's call with one written by hand, on the fakes: both sides answer, and a part that is absent has a row."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from test_runtime_tensorrt import World, world

from accel.types import EngineSource

__all__ = ["world"]
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "host_overhead.py"
OPTIONS = argparse.Namespace(device="cuda:0", blocks=4, block=3)
ONE = {"inputs": {"x": ("float16", (1, 4))}, "outputs": {"y": ("float16", (1, 4), 2.0)}}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("host_overhead", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["host_overhead"] = module
    spec.loader.exec_module(module)
    return module


def source_of(world: World, spelling: str = "tensorrt:fp16") -> EngineSource:
    return world.source(spelling, plan=ONE)


def test_both_sides_are_timed_in_turn_and_compared(script: ModuleType, world: World) -> None:
    case = script.Case("net", "tensorrt:fp16", lambda: source_of(world), script.raw_graph)
    row: dict[str, Any] = script.run(case, OPTIONS)
    assert set(row["p50_us"]) == {"accel", "raw", "raw_again"}
    assert row["ratio"] == pytest.approx(row["p50_us"]["accel"] / row["p50_us"]["raw"], abs=1e-2)
    assert row["graph_nodes"] == 1
    assert "ratio" in script.line(row)


def test_a_block_by_hand_makes_the_same_calls_as_a_block_of_ours(script: ModuleType, world: World) -> None:
    source = source_of(world)
    runtime = world.opened(source)
    given = script.inputs_for(runtime, 77)
    bindings = [runtime.prepare({"x": array}) for array in given]
    with script.raw_graph(source, runtime, 77, given) as raw:
        samples = np.empty(3, np.int64)
        by_hand = world.calls_of(lambda: raw.block(samples, 1))
        ours = world.calls_of(lambda: script.through_accel(runtime, bindings, 77)(samples, 1))
        assert by_hand == ours == ["cuMemcpyDtoDAsync", "cuGraphLaunch", "cuStreamSynchronize"] * 3
        np.testing.assert_array_equal(raw.answer(), script.first_output(runtime, bindings[3], 77))
    runtime.close()


def test_different_answers_are_no_comparison(script: ModuleType, world: World) -> None:
    case = script.Case("net", "tensorrt:fp16", lambda: source_of(world), script.raw_graph)
    with pytest.raises(script.RuntimeUnavailable, match="answer differently"):
        script.demand_same(case, np.ones((1, 4)), np.full((1, 4), 2.0))


def test_what_cannot_run_has_a_row_that_says_why(script: ModuleType, world: World) -> None:
    world.trt.fail.add("deserialize_cuda_engine")
    row = script.run(script.Case("net", "tensorrt:fp16", lambda: source_of(world), script.raw_graph), OPTIONS)
    assert "the fake says no" in row["not_run"]
    assert script.line(row).startswith("net")
    unknown = script.run(script.Case("net", "tensorrt:fp16+nothing", lambda: source_of(world), script.raw_graph), OPTIONS)
    assert "there is no option" in unknown["not_run"]
