"""The simulation of `benchmarks/interval_coverage.py`, small; the whole one is run by hand and holds the bounds of measurement.md."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from accel.bench import comparison, intervals

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "interval_coverage.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("interval_coverage", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def stream():
    return np.random.default_rng(1)


def test_exact_intervals_hold_the_truth_as_often_as_they_say(script):
    covered = script.coverage(stream(), 0.0, 1000)
    # Three standard errors of 1,000 repetitions are 2 %.
    assert 0.93 <= covered[50] <= 0.97
    assert 0.93 <= covered[95] <= 0.97


def test_dependent_samples_are_covered_only_because_of_the_bootstrap(script, monkeypatch):
    covered = script.coverage(stream(), 0.5, 100)
    assert min(covered.values()) >= 0.88
    monkeypatch.setattr(intervals, "AUTOCORRELATED", 1.0)
    assert script.coverage(stream(), 0.5, 300)[50] < 0.85


def test_equal_variants_are_seldom_told_apart_and_3_percent_are_found(script):
    assert script.any_verdict(stream(), 5, 1, 0.0, True, 100) <= 0.05
    assert script.mean_found(stream(), 5, 1, 0.03, True, 100) >= 0.95


def test_pooling_iterations_as_replicates_would_be_caught(script, monkeypatch):
    """A comparison that took each round for a hundred independent ones calls equal variants different."""
    honest = script.estimate
    monkeypatch.setattr(script, "estimate", lambda logs: honest(list(logs) * 100))
    monkeypatch.setattr(comparison, "LEAST_EFFECT", 0.0)
    monkeypatch.setattr(script, "default_floor", lambda rounds: 0.0)
    assert script.any_verdict(stream(), 5, 1, 0.0, False, 100) > 0.5


def test_check_is_exit_3_if_a_bound_is_missed(script, monkeypatch, tmp_path, capsys):
    lines = [script.Finding("something", 0.94, 10, 0.93, 0.97), script.Finding("for information", 0.1, 10)]
    monkeypatch.setattr(script, "simulate", lambda repetitions, seed: lines)
    assert script.main(["--check", "--out", str(tmp_path / "out.json")]) == 0
    assert [line["within"] for line in json.loads((tmp_path / "out.json").read_text())["findings"]] == [True, None]

    lines.append(script.Finding("another thing", 0.06, 10, None, 0.05))
    assert script.main(["--check"]) == 3
    assert script.main([]) == 0
    printed = capsys.readouterr().out
    assert "94.00%   93% to 97%    ok" in printed
    assert "6.00%   at most 5%    MISSED" in printed
