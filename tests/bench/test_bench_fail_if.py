from __future__ import annotations

import pytest

from accel.bench.fail_if import parse
from accel.bench.pairing import Pair, Side
from accel.errors import UsageError


def pair(a, b):
    def side(variant, runs):
        empty = dict.fromkeys(("p50_us", "p95_us", "p99_us", "mean_us", "top1"))
        return Side("tiny", variant, {(0, number): {**empty, **run} for number, run in enumerate(runs)})

    return Pair(side("eager:fp32", a), side("ort:fp32", b))


SIX_PERCENT = pair([{"p50_us": 100, "top1": 95.2}] * 3, [{"p50_us": 106, "top1": 95.1}] * 3)


@pytest.mark.parametrize(
    "text", ["p50>+5%", "p50 > +5 %", "p50>=+6%", "p50>105us", "p50>105.5µs", "p50>+5us", "p50<+7%", "p50<107us", "top1<95.2", "top1<-0.05"]
)
def test_a_limit_that_is_crossed(text):
    assert parse(text).failure(SIX_PERCENT) is not None


@pytest.mark.parametrize("text", ["p50>+6%", "p50>+6.5%", "p50>106us", "p50>+6us", "top1<95", "top1<-0.1", "top1<=-0.2"])
def test_a_limit_that_holds(text):
    assert parse(text).failure(SIX_PERCENT) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p50>+5%", "ort:fp32: p50 +6 %, allowed is at most +5 %"),
        ("p50>100us", "ort:fp32: p50 106 µs, allowed is at most 100 µs"),
        ("p50>=+6us", "ort:fp32: p50 +6 µs, allowed is less than +6 µs"),
        ("top1<-0.05", "ort:fp32: top1 -0.1 points, allowed is at least -0.05 points"),
        ("top1<=95.1", "ort:fp32: top1 95.1 %, allowed is more than 95.1 %"),
    ],
)
def test_a_failure_names_variant_measured_and_allowed(text, said):
    assert parse(text).failure(SIX_PERCENT) == said


def test_a_change_in_percent_is_the_mean_of_the_paired_ratios():
    assert parse("p50>+1%").measured(pair([{"p50_us": 100}, {"p50_us": 200}], [{"p50_us": 110}, {"p50_us": 220}])) == pytest.approx(10)


@pytest.mark.parametrize("text", ["p95>+10%", "p99>500us", "mean>+1us"])
def test_what_was_not_measured_never_passes(text):
    assert "was not measured" in parse(text).failure(SIX_PERCENT)


@pytest.mark.parametrize(
    "text", ["", "p50", "p50>", "p50>5%", "p50>+5", "p50==+5%", "p77>+5%", "top1<-0.1%", "top1>5us", "p50>+5%x", "p50>+-5%"]
)
def test_a_malformed_limit_shows_the_grammar(text):
    with pytest.raises(UsageError, match="--fail-if") as caught:
        parse(text)
    assert "METRIC OP LIMIT" in caught.value.remedy
    assert caught.value.exit_code == 2
