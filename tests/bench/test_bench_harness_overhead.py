"""`benchmarks/harness_overhead.py`, short; the whole one is run by hand and holds the bound."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "harness_overhead.py"
SHORT = ["--blocks", "4", "--block", "100"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("harness_overhead", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def of_length(nanoseconds):
    def take(samples, offset):
        samples[:] = nanoseconds

    return take


def test_both_sides_are_timed_and_written_with_the_machine(script, tmp_path, capsys):
    assert script.main([*SHORT, "--out", str(tmp_path / "new" / "out.json")]) == 0

    found = json.loads((tmp_path / "new" / "out.json").read_text())
    p50 = found["p50_us"]
    assert set(p50) == {"harness", "bare", "bare_again"}
    assert all(0 < value < 100 for value in p50.values())
    assert found["added_us"] == pytest.approx(p50["harness"] - p50["bare"], abs=2e-4)
    assert found["plan"] == {"blocks": 4, "block": 100, "discarded": 20, "inputs": 8}
    assert found["machine"]["versions"]["numpy"] == np.__version__
    assert f"the harness adds {found['added_us']:.3f} µs" in capsys.readouterr().out


def test_the_harness_side_is_the_pass_that_workers_run(script, monkeypatch):
    asked = []
    monkeypatch.setattr(script.passes, "host", lambda subject, instruments: asked.append((subject, instruments)) or of_length(1700))
    monkeypatch.setattr(script, "bare", lambda f, x: of_length(1500))

    found = script.measure(3, 10)

    ((subject, instruments),) = asked
    assert (subject.engine.stream, len(subject.bindings), instruments.timer) == (None, 8, None)
    assert found["p50_us"] == {"harness": 1.7, "bare": 1.5, "bare_again": 1.5}
    assert (found["added_us"], found["block_added_us_quartiles"], found["within"]) == (0.2, [0.2, 0.2, 0.2], True)


@pytest.mark.parametrize(("harness_ns", "code", "said"), [(1799, 0, "ok"), (1800, 3, "MISSED"), (90_000, 3, "MISSED")])
def test_check_is_exit_3_from_three_tenths_of_a_microsecond_on(script, monkeypatch, capsys, harness_ns, code, said):
    monkeypatch.setattr(script.passes, "host", lambda subject, instruments: of_length(harness_ns))
    monkeypatch.setattr(script, "bare", lambda f, x: of_length(1500))

    assert script.main([*SHORT, "--check"]) == code
    assert script.main(SHORT) == 0
    assert capsys.readouterr().out.count(f"wanted: {said}\n") == 2


def test_the_loop_by_hand_calls_and_reads_the_clock_around_it(script, monkeypatch):
    moments = iter([1000, 1250, 2000, 2350])
    monkeypatch.setattr(script.time, "perf_counter_ns", lambda: next(moments))
    samples, called = np.zeros(2, dtype=np.int64), []

    script.bare(called.append, "x")(samples, 0)

    assert (samples.tolist(), called) == ([250, 350], ["x", "x"])
