"""`benchmarks/load_cost.py` and `benchmarks/load_leak.py`, short; the whole ones are run by hand and hold the bounds."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel import device

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
pytest.importorskip("torch")
pytest.importorskip("onnxruntime")


def script(name: str) -> Iterator[Any]:
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]
    sys.path[:] = path


@pytest.fixture(scope="module")
def cost() -> Iterator[Any]:
    yield from script("load_cost")


@pytest.fixture(scope="module")
def leak() -> Iterator[Any]:
    yield from script("load_leak")


def test_both_sides_are_measured_and_written_with_the_machine(cost: Any, tiny: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "new" / "cost.json"
    assert cost.main([str(tiny), "--processes", "1", "--blocks", "2", "--block", "30", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert 0 < found["load"]["p50_ms"]["bare"] < found["load"]["p50_ms"]["accel"]
    for part in ("call", "call_of_the_bundle"):
        p50 = found[part]["p50_us"]
        assert set(p50) == {"accel", "bare", "bare_again"}
        assert found[part]["added_us"] == pytest.approx(p50["accel"] - p50["bare"], abs=2e-3)
    assert found["machine"]["versions"]["numpy"] == np.__version__
    assert (found["plan"]["threads"], found["plan"]["bundle"]) == (1, "tiny.accel")
    assert "ms more, less than 150 wanted" in capsys.readouterr().out


@pytest.mark.parametrize(("load", "call", "code"), [(149.9, 9.9, 0), (150.0, 9.9, 3), (149.9, 10.0, 3)])
def test_check_is_exit_3_beyond_either_limit(
    cost: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, load: float, call: float, code: int
) -> None:
    monkeypatch.setattr(cost, "fresh", lambda body: 100.0 + load * ("accel.load" in body))
    times = {"accel": 15_000 + int(call * 1000), "bare": 15_000, "bare_again": 15_000}
    monkeypatch.setattr(cost, "alternate", lambda sides, blocks, block: {side: [np.full(4, times[side])] for side in sides})
    monkeypatch.setattr(cost, "small_bundle", lambda folder: tiny)
    assert cost.main([str(tiny), "--check"]) == code
    assert ("MISSED" in capsys.readouterr().out) is (code == 3)


def test_the_engine_side_is_accel_load_and_the_other_is_onnxruntime_alone(cost: Any) -> None:
    assert "accel" not in cost.PROGRAMS["bare"]
    assert "strict" not in cost.PROGRAMS["accel"]
    assert cost.fresh("import time; time.perf_counter_ns()") < 1000


def test_a_few_hundred_cycles_leave_no_sessions_behind(leak: Any, tiny: Path) -> None:
    """A session of this engine that stayed would be over 100 KiB a cycle; allocators' own steps are a few."""
    readings = leak.cycle(tiny, 200)["rss"]
    assert [cycle for cycle, _ in readings] == list(range(2, 201, 2))
    assert leak.judged(readings)["bytes_a_cycle"] < 40_000
    assert [cycle for cycle, _ in leak.alone(tiny / leak.FILE, 5)] == [1, 2, 3, 4, 5]


def test_growth_is_told_from_steps_that_end(leak: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    cycles = range(100, 10_001, 100)
    settles = [(cycle, 60 + min(cycle, 1500) / 1000) for cycle in cycles]
    grows = [(cycle, 60 + cycle * 2048 / 2**20) for cycle in cycles]
    assert leak.judged(settles)["within"] is True
    found = leak.judged(grows)
    assert (found["within"], found["bytes_a_cycle"]) == (False, pytest.approx(2048, abs=1))
    for readings, code in ((settles, 0), (grows, 3)):
        monkeypatch.setattr(leak, "cycle", lambda *given, found=readings: given[-1].update(rss=found))
        assert leak.main(["tiny.accel", "--check", "--out", str(tmp_path / "leak.json")]) == code
    assert json.loads((tmp_path / "leak.json").read_text())["rss"]["within"] is False
    assert "2048 bytes a cycle, less than 1024 wanted: MISSED" in capsys.readouterr().out


def test_what_was_read_before_an_interruption_is_kept(leak: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def interrupted(*given: Any) -> None:
        given[-1].update(rss=[(cycle, 60.0) for cycle in range(100, 3001, 100)])
        raise KeyboardInterrupt

    monkeypatch.setattr(leak, "cycle", interrupted)
    out = tmp_path / "leak.json"
    assert leak.main(["tiny.accel", "--check", "--out", str(out)]) == 130
    record = json.loads(out.read_text())
    assert (record["plan"]["cycles"], record["plan"]["done"], record["rss"]["within"]) == (10_000, 3000, True)
    printed = capsys.readouterr()
    assert "interrupted: 3000 of 10000 cycles were read" in printed.err
    assert "rss over 3000 cycles" in printed.out


@pytest.mark.gpu
@pytest.mark.slow
def test_ten_thousand_cycles_on_a_gpu_leave_its_memory_as_it_was(leak: Any, tiny: Path) -> None:
    """Slow: each cycle makes a CUDA session."""
    available, reason = device.gpu_available()
    if not available:
        pytest.skip(reason)
    found = {kind: leak.judged(readings) for kind, readings in leak.cycle(tiny, 10_000, "cuda:0").items()}
    assert {kind: result["within"] for kind, result in found.items()} == {"rss": True, "gpu": True}
