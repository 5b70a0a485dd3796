from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from accel.bench.columns import STANDARD
from accel.bench.stats import Statistics, corrected, percentiles, rank, summarise


@pytest.mark.parametrize(
    ("n", "percent", "expected"), [(1, 50, 1), (2, 50, 1), (3, 50, 2), (2000, 95, 1900), (2000, 99, 1980), (100, 99, 99), (101, 99, 100)]
)
def test_a_percentile_is_the_order_statistic_rounded_up(n, percent, expected):
    assert rank(n, percent) == expected


def test_fixed_samples_give_fixed_statistics():
    shuffled = np.random.default_rng(0).permutation(np.arange(1, 2001) * 1000)

    found = summarise(shuffled)

    assert (found.n, found.min_us, found.p50_us, found.p95_us, found.p99_us, found.max_us) == (2000, 1, 1000, 1900, 1980, 2000)
    assert found.mean_us == pytest.approx(1000.5)
    assert found.std_us == pytest.approx(577.4945887)  # sqrt(n(n+1)/12)


def test_too_few_samples_support_no_tail():
    assert summarise(np.arange(661)).p99_us is None
    assert summarise(np.arange(662)).p99_us == pytest.approx(0.655)
    assert summarise(np.arange(129)).p95_us is None
    assert summarise(np.arange(130)).p95_us == pytest.approx(0.123)


def test_one_sample_has_no_spread():
    found = summarise(np.array([5000]))

    assert (found.std_us, found.p50_us) == (None, 5)


def test_the_interval_ends_are_the_exact_ranks():
    found = summarise(np.random.default_rng(0).permutation(np.arange(1, 2001) * 1000))

    assert (found.p50_lo_us, found.p50_hi_us) == (956, 1045)
    assert (found.p95_lo_us, found.p95_hi_us) == (1880, 1920)
    assert (found.p99_lo_us, found.p99_hi_us) == (1971, 1989)
    assert found.ci_method == "order-statistic"
    assert abs(found.rho1) < 0.1


def test_every_statistic_is_a_column_of_a_row():
    assert {field.name for field in dataclasses.fields(Statistics)} <= set(STANDARD)


def test_dispersion_and_drift_of_fixed_samples():
    found = summarise(np.arange(1, 2001) * 1000)

    assert found.cov_pct == pytest.approx(100 * 577.4945887 / 1000.5)
    assert found.iqr_rel_pct == pytest.approx(100.0)  # (1500 − 500) / 1000
    # The first 666 samples have the median 333, the last (1335 … 2000) 1667.
    assert found.drift_pct == pytest.approx(100 * (1667 - 333) / 1000)
    assert found.rho1 == pytest.approx(1 - 3 / 2000, abs=1e-5)
    assert found.ci_method.startswith("wider of order-statistic and moving-block bootstrap (block 50")
    assert found.p50_hi_us - found.p50_lo_us > 1045 - 956


def test_outliers_are_counted_and_kept():
    # Median 1000, MAD 10: the limit is 148.26 away.
    samples = np.array([990_000, 1_000_000, 1_010_000] * 100 + [1_148_000, 1_149_000, 5_000_000])

    found = summarise(samples)

    assert (found.n, found.n_outliers, found.max_us) == (303, 2, 5000)


def test_most_samples_the_same_leave_the_others_as_outliers():
    # The harness's own check: 970 at d and 30 at 3d.
    samples = np.random.default_rng(0).permutation([100_000] * 970 + [300_000] * 30)

    found = summarise(samples)

    assert (found.p50_us, found.p95_us, found.p99_us, found.n_outliers, found.iqr_rel_pct) == (100, 100, 300, 30, 0)


@pytest.mark.parametrize("value", [0, 5000])
def test_constant_samples_divide_by_nothing(value):
    found = summarise(np.full(2000, value))

    assert (found.rho1, found.n_outliers, found.ci_method) == (None, 0, "order-statistic")
    assert (found.p50_lo_us, found.p99_hi_us) == (value / 1000, value / 1000)
    assert (found.cov_pct, found.iqr_rel_pct, found.drift_pct) == ((0, 0, 0) if value else (None, None, None))


def test_few_samples_support_only_what_they_can():
    found = summarise(np.arange(1, 6) * 1000)

    assert (found.p50_us, found.p50_lo_us, found.p95_lo_us, found.rho1, found.drift_pct) == (3, None, None, None, None)
    assert summarise(np.arange(1, 7) * 1000).p50_lo_us == 1
    assert (summarise(np.arange(1, 4) * 1000).iqr_rel_pct, summarise(np.arange(1, 31) * 1000).drift_pct) == (None, pytest.approx(400 / 3))


@pytest.mark.parametrize(("value", "floor", "found"), [(100.0, 2.5, 97.5), (2.0, 2.5, 0.0), (None, 2.5, None), (100.0, None, None)])
def test_a_value_of_events_is_corrected_by_what_they_read_around_nothing(value, floor, found):
    assert corrected(value, floor) == found


def test_runs_are_pooled_without_an_interval():
    assert percentiles(np.arange(1, 2001) * 1000).p99_us == 1980
