from __future__ import annotations

import numpy as np
import pytest

from accel.bench import intervals
from accel.bench.intervals import BLOCKED, EXACT, TAIL, Interval, blocked, exact, of_percentiles, ranks, rho1


@pytest.mark.parametrize(
    ("n", "percent", "expected"),
    [(2000, 50, (956, 1045)), (2000, 95, (1880, 1920)), (2000, 99, (1971, 1989)), (100, 50, (40, 61)), (6, 50, (1, 6))],
)
def test_the_ranks_are_the_exact_binomial_ones(n, percent, expected):
    assert ranks(n, percent) == expected


def test_the_binomial_distribution_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    for n in (*range(1, 300), 661, 662, 2000, 5000, 100_000, 10_000_000):
        for percent in (1, 50, 95, 99):
            below = stats.binom(n, percent / 100)
            parts = (TAIL, 1 - TAIL)
            assert intervals._binomial(n, percent / 100, parts) == [int(below.ppf(part)) for part in parts], (n, percent)


@pytest.mark.parametrize(("n", "percent"), [(5, 50), (1, 50), (71, 95)])
def test_too_few_samples_have_no_interval(n, percent):
    assert ranks(n, percent) is None
    assert exact(np.arange(n), percent) is None


def test_an_exact_interval_is_two_of_the_samples():
    assert exact(np.arange(1, 2001), 95) == Interval(1880, 1920)


def test_lag_1_autocorrelation_of_fixed_series():
    # 99 products of −1 over 100 squares; a line of n points has 1 − 3/n.
    assert rho1(np.tile([1, 3], 50)) == pytest.approx(-0.99)
    assert rho1(np.arange(1, 101)) == pytest.approx(0.97)


def test_few_or_constant_samples_have_no_autocorrelation():
    assert rho1(np.arange(99)) is None
    assert rho1(np.full(2000, 7)) is None


def pasted(samples, percent, n):
    """The same bootstrap spelled out: every series is built and sorted."""
    starts = np.random.default_rng(0).integers(0, n - 49, size=(n // 50 + 1, 1000)).T
    index = (starts[:, :, None] + np.arange(50)).reshape(1000, -1)[:, :n]
    found = np.sort(np.sort(samples[index], axis=1)[:, intervals.rank(n, percent) - 1])
    return found[24], found[974]


@pytest.mark.parametrize("n", [130, 500, 517])
def test_the_block_bootstrap_is_what_building_every_series_gives(n):
    samples = np.random.default_rng(3).normal(size=n).cumsum().round(1)

    found = blocked(samples, (50, 95))

    assert {percent: tuple(ends) for percent, ends in found.items()} == {percent: pasted(samples, percent, n) for percent in (50, 95)}


def correlated(n=2000, rho=0.5):
    noise = np.random.default_rng(5).normal(size=n) * np.sqrt(1 - rho * rho)
    for index in range(1, n):
        noise[index] += rho * noise[index - 1]
    return noise


def test_dependent_samples_get_the_wider_interval_and_say_so():
    samples = correlated()
    found, method = of_percentiles(samples, (50, 95), rho1(samples))
    ordered = np.sort(samples)

    assert method == BLOCKED
    assert found[50].width > 1.3 * exact(ordered, 50).width
    assert found[95].width >= exact(ordered, 95).width


def test_the_exact_interval_stays_where_the_bootstrap_is_narrower(monkeypatch):
    monkeypatch.setattr(intervals, "blocked", lambda samples, percents: {50: Interval(999, 1000)})

    assert of_percentiles(np.arange(1, 2001), (50,), 0.99) == ({50: Interval(956, 1045)}, BLOCKED)


def test_independent_samples_get_the_exact_interval():
    samples = np.random.default_rng(2).permutation(np.arange(1, 2001))

    assert of_percentiles(samples, (50, 95, 99), rho1(samples)) == ({50: (956, 1045), 95: (1880, 1920), 99: (1971, 1989)}, EXACT)
