from __future__ import annotations

import numpy as np
import pytest

from accel.bench.stability import marks, of_runs, run_flags, spread
from accel.bench.stats import summarise


def runs(p50, p95=(100, 100), p99=(100, 100)):
    return [{"p50_us": a, "p95_us": b, "p99_us": c} for a, b, c in zip(p50, p95, p99, strict=True)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (runs((100, 102)), "STABLE"),
        (runs((100, 102.1)), "NOISY"),
        (runs((105, 100)), "NOISY"),
        (runs((100, 105.1)), "UNSTABLE"),
        (runs((100, 100), p95=(100, 105)), "STABLE"),
        (runs((100, 100), p95=(100, 110)), "NOISY"),
        (runs((100, 100), p95=(100, 111)), "UNSTABLE"),
        (runs((100, 100), p99=(100, 110)), "STABLE"),
        (runs((100, 100), p99=(100, 120)), "NOISY"),
        (runs((100, 100), p99=(121, 100)), "UNSTABLE"),
        (runs((100, 103), p95=(100, 100), p99=(100, 130)), "UNSTABLE"),
    ],
)
def test_the_worst_percentile_decides(given, expected):
    assert of_runs(given) == expected


def test_a_percentile_without_enough_samples_does_not_count():
    assert of_runs(runs((100, 101), p99=(100, None))) == "STABLE"
    assert of_runs(runs((100, 101), p95=(None, None), p99=(None, None))) == "STABLE"


def test_one_run_says_nothing_about_stability():
    assert of_runs(runs((100,), (100,), (100,))) is None
    assert run_flags(None) == ()


def test_only_what_is_not_stable_is_a_flag():
    assert [run_flags(found) for found in ("STABLE", "NOISY", "UNSTABLE")] == [(), ("NOISY",), ("UNSTABLE",)]


def test_zeros_are_no_division():
    assert spread([0, 0]) == 1
    assert spread([0, 1]) == float("inf")


QUIET = {"cov_pct": 2.5, "iqr_rel_pct": 10.0, "drift_pct": -1.0, "rho1": 0.1}


@pytest.mark.parametrize(
    ("name", "value", "flag"),
    [
        ("cov_pct", 2.51, "NOISY"),
        ("iqr_rel_pct", 10.1, "SPREAD"),
        ("drift_pct", 1.01, "DRIFT"),
        ("drift_pct", -1.01, "DRIFT"),
        ("rho1", 0.11, "AUTOCORR"),
    ],
)
def test_each_mark_fires_on_its_case_and_no_other(name, value, flag):
    assert marks(QUIET) == ()
    assert marks({**QUIET, name: value}) == (flag,)


def test_what_is_not_known_or_alternates_is_not_marked():
    assert marks(dict.fromkeys(QUIET)) == ()
    assert marks({**QUIET, "rho1": -0.9}) == ()


def test_samples_that_grow_are_drifting_and_autocorrelated():
    # 1000 … 1030 µs: a line from end to end, 3 % long.
    assert marks(vars(summarise(np.linspace(1_000_000, 1_030_000, 2000)))) == ("AUTOCORR", "DRIFT")
