from __future__ import annotations

import numpy as np
import pytest

from accel.bench.stats import rank, summarise


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
