from __future__ import annotations

import math

import numpy as np
import pytest

from accel.bench.comparison import LEAST_EFFECT, Estimate, aa_floor, default_floor, estimate, holm, judge, largest_floor
from accel.errors import UsageError


def logs(*percents):
    return [math.log1p(percent / 100) for percent in percents]


def verdict(log_ratios, floor=0.0):
    (found,) = judge([estimate(log_ratios)], [floor])
    return found.verdict


def test_the_interval_is_students_on_log_ratios():
    found = estimate([0.02, 0.03, 0.04])

    # s = 0.01, t(0.975, 2) = 4.302653, t·s/√3 = 0.0248414; p of t = 0.03·√3/0.01 = 5.19615 with 2 degrees of freedom.
    assert found.ratio == pytest.approx(math.exp(0.03))
    assert (found.lo, found.hi) == (pytest.approx(math.exp(0.03 - 0.0248414)), pytest.approx(math.exp(0.03 + 0.0248414)))
    assert found.p == pytest.approx(0.0350988, abs=1e-6)


@pytest.mark.parametrize(("rounds", "factor"), [(3, 2.48), (5, 1.24), (10, 0.72)])
def test_the_half_width_in_standard_deviations_is_the_published_one(rounds, factor):
    values = np.resize([-1.0, 1.0], rounds)
    values = (values - values.mean()) / values.std(ddof=1) * 0.01

    assert math.log(estimate(list(values)).hi) == pytest.approx(factor * 0.01, abs=6e-5)


def test_one_round_has_no_interval_and_no_verdict():
    assert estimate([0.5]) == Estimate(0.5, None, None, None, 1)
    assert verdict([0.5]) == "AMBIGUOUS"
    with pytest.raises(UsageError, match="no round"):
        estimate([])


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        (logs(3.0, 3.1, 2.9), "SLOWER"),
        (logs(-3.0, -3.1, -2.9), "FASTER"),
        (logs(0.5, 0.51, 0.49), "SAME"),  # beyond chance, but under 1 %
        (logs(1.5, 1.51, 1.49), "SLOWER"),  # within 2 %, but known to be more than 1 %
        (logs(0.1, -0.2, 0.3), "SAME"),
        (logs(5, -1, 3), "AMBIGUOUS"),
        (logs(1.9, 0, -0.9), "AMBIGUOUS"),
        (logs(0, 0, 0), "SAME"),
        (logs(3, 3, 3), "SLOWER"),  # a scripted clock: nothing to divide by
    ],
)
def test_each_verdict_on_its_case(ratios, expected):
    assert verdict(ratios) == expected


def test_the_effect_must_reach_the_floor():
    assert verdict(logs(3.0, 3.1, 2.9), floor=0.025) == "SLOWER"
    assert verdict(logs(3.0, 3.1, 2.9), floor=0.035) == "AMBIGUOUS"


def test_a_floor_under_one_percent_is_one_percent():
    (found,) = judge([estimate([0.0, 0.0])], [0.001])
    assert found.floor == LEAST_EFFECT == math.log(1.01)


def test_holms_adjustment_of_a_known_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([]) == []


def test_what_is_significant_alone_may_not_be_among_many():
    alone, other = estimate([0.02, 0.03, 0.04]), estimate([0.01, -0.02, 0.015])

    assert [found.verdict for found in judge([alone], [0])] == ["SLOWER"]
    judged = judge([alone, other, other], [0, 0, 0])
    assert judged[0].p_holm == pytest.approx(3 * alone.p)
    assert judged[0].verdict == "AMBIGUOUS"


def test_the_default_floor_is_that_of_one_percent_between_processes():
    assert [round(100 * default_floor(rounds), 2) for rounds in (3, 5, 10)] == [1.13, 0.88, 0.62]


def test_the_floor_of_measured_pairs_is_their_spread_over_root_rounds():
    pairs = np.random.default_rng(0).normal(0, 0.01, 1000)

    assert aa_floor(pairs, 5) == pytest.approx(default_floor(5), rel=0.06)
    assert aa_floor(pairs, 5) == aa_floor(pairs, 5)


def test_the_sign_of_an_aa_pair_means_nothing():
    # Whichever run came first was 1 % slower in all ten pairs: over four rounds |mean| is 0, 0.5 or, once in eight, 1 %.
    assert aa_floor([0.01] * 10, 4) == pytest.approx(0.01)
    assert aa_floor([0.01] * 10, 1) == pytest.approx(0.01)


def test_the_floor_of_a_machine_is_the_largest_of_its_variants():
    quiet, loud, short = [0.001] * 10, [0.02] * 10, [0.5] * 9

    assert largest_floor([quiet, loud, short], 1) == pytest.approx(0.02)
    with pytest.raises(UsageError, match="9 were given"):
        largest_floor([short, short[:3]], 1)
    with pytest.raises(UsageError, match="0 were given"):
        largest_floor([], 1)


def test_too_few_aa_pairs_are_refused():
    with pytest.raises(UsageError, match="at least 10 pairs of runs of the same variant; 9 were given"):
        aa_floor([0.01] * 9, 3)
