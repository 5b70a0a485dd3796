from __future__ import annotations

import math

import pytest

from accel.bench.comparison import default_floor
from accel.bench.pairing import MUST_AGREE, Pair, aa_log_ratios, against_baseline, demand_comparable, same_variants, sides
from accel.bench.results import row
from accel.errors import CorruptArtifact, UsageError

HERE = {
    "model": "tiny",
    "device": "cuda:0",
    "gpu_name": "NVIDIA H200",
    "driver": "580",
    "cpu_model": "Some CPU",
    "input_sha256": "aa",
    "batch": 1,
    "l2_mode": "hot",
    "verdict": "OK",
    "latency_kind": "host_us",
    "set_id": "s",
    "flags": [],
}


def runs(variant, medians, **changes):
    precision = variant.partition(":")[2]
    return [
        row(**{**HERE, "variant": variant, "precision": precision, "round": n, "p50_us": p50, **changes}) for n, p50 in enumerate(medians)
    ]


def good(*groups):
    return sides([item for group in groups for item in group], "host_us")[0]


def test_variants_are_paired_over_rounds():
    (pair,) = against_baseline(good(runs("eager:fp32", [100, 110, 120]), runs("ort:fp32", [50, 44, 60])), {}, "eager:fp32")

    assert pair.log_ratios() == pytest.approx([math.log(0.5), math.log(0.4), math.log(0.5)])
    assert (pair.b.variant, pair.precisions, pair.a.middle("p50_us")) == ("ort:fp32", "fp32", 110)


def test_only_rounds_that_both_have_are_paired():
    pair = Pair(*good(runs("a:fp32", [100, 110, 120]), runs("b:fp32", [50, 55])).values())
    assert (pair.rounds, len(pair.log_ratios())) == ([(0, 0), (0, 1)], 2)


def test_sets_in_one_file_keep_their_rounds_apart():
    groups = [runs("a:fp32", [100, 110]), runs("b:fp32", [100, 110]), runs("a:fp32", [200], set_id="t"), runs("b:fp32", [100], set_id="t")]
    assert Pair(*good(*groups).values()).log_ratios() == pytest.approx([0, 0, math.log(0.5)])


def test_a_ratio_across_precisions_is_labelled():
    assert Pair(*good(runs("a:fp32", [1]), runs("b:fp16", [1])).values()).precisions == "fp32 → fp16"


@pytest.mark.parametrize("verdict", ["INVALID", "UNVERIFIED", "FALLBACK", "REFUSED", "MISSING", "ERROR"])
def test_a_variant_with_a_row_that_is_not_ok_never_enters(verdict):
    bad = runs("bad:fp32", [50, 50])
    bad[1] |= {"verdict": verdict, "reason": "some reason"}

    found, left_out = sides([*runs("eager:fp32", [100, 100]), *bad], "host_us")

    assert list(found) == [("tiny", "eager:fp32")]
    assert left_out == {("tiny", "bad:fp32"): f"{verdict}: some reason"}


def test_a_kind_that_was_not_measured_is_said():
    _, left_out = sides(runs("eager:fp32", [100]), "device_us")
    assert left_out == {("tiny", "eager:fp32"): "device_us was not measured"}


def test_a_median_of_zero_has_no_ratio():
    assert sides(runs("eager:fp32", [100, 0]), "host_us")[1] == {("tiny", "eager:fp32"): "a p50 of host_us is 0 or missing"}


def test_a_run_that_is_on_record_twice_is_refused():
    with pytest.raises(CorruptArtifact, match="round 0 of eager:fp32 is on record twice in s"):
        sides(runs("eager:fp32", [100]) * 2, "host_us")


def test_a_missing_baseline_names_the_others():
    with pytest.raises(UsageError, match="it is not in the set") as caught:
        against_baseline(good(runs("ort:fp32", [1]), runs("trt:fp16", [1])), {}, "eager:fp32")
    assert "ort:fp32, trt:fp16" in caught.value.remedy
    with pytest.raises(UsageError, match="INVALID: wrong"):
        against_baseline(good(runs("ort:fp32", [1])), {("tiny", "eager:fp32"): "INVALID: wrong"}, "eager:fp32")


ELSEWHERE = (
    ("gpu_name", "NVIDIA L4", "gpu_name: NVIDIA H200 | NVIDIA L4"),
    ("driver", "590", "driver: 580 | 590"),
    ("cpu_model", None, "cpu_model: Some CPU | not known"),
    ("device", "cpu", "device: cuda | cpu"),
    ("input_sha256", "bb", "input_sha256: aa | bb"),
    ("batch", 8, "batch: 1 | 8"),
    ("l2_mode", "cold", "l2_mode: hot | cold"),
)
"""Column → a value that another machine, driver, input or plan would have, and what is said of it."""


@pytest.mark.parametrize(("column", "value", "said"), ELSEWHERE)
def test_what_was_measured_elsewhere_is_refused_unless_asked_for(column, value, said):
    a, b = good(runs("a:fp32", [1, 1])), good(runs("a:fp32", [1, 1], **{column: value}))
    pairs = same_variants(a, b)

    with pytest.raises(UsageError) as caught:
        demand_comparable(pairs, across_machines=False)
    assert said in str(caught.value)
    assert "--across-machines" in caught.value.remedy
    assert demand_comparable(pairs, across_machines=True) == [said]


def test_each_column_that_must_agree_is_asked():
    assert {case[0] for case in ELSEWHERE} == {"device", *MUST_AGREE}


def test_another_gpu_of_the_same_name_is_the_same_machine():
    assert demand_comparable(same_variants(good(runs("a:fp32", [1])), good(runs("a:fp32", [1], device="cuda:1"))), False) == []


@pytest.mark.parametrize(("clock", "flags"), [(1000, ()), (1020, ()), (1021, ("CLOCKS_DIFFER",)), (None, ())])
def test_clocks_more_than_two_percent_apart_are_flagged(clock, flags):
    pair = Pair(*good(runs("a:fp32", [1, 1], sm_clock_mean_mhz=1000), runs("b:fp32", [1, 1], sm_clock_mean_mhz=clock)).values())
    assert pair.flags == flags


def test_runs_that_do_not_agree_are_flagged_on_either_side():
    assert Pair(*good(runs("a:fp32", [100, 103]), runs("b:fp32", [100, 100])).values()).flags == ("NOISY",)
    assert Pair(*good(runs("a:fp32", [100, 103]), runs("b:fp32", [100, 107])).values()).flags == ("NOISY", "UNSTABLE")


def test_rounds_that_one_side_has_beyond_the_other_change_no_ratio():
    base, other = runs("a:fp32", [100, 110, 120]), runs("b:fp32", [50, 55, 60])
    further = runs("b:fp32", [50, 55, 60, 90, 10])

    plain, extended = Pair(*good(base, other).values()), Pair(*good(base, further).values())

    assert extended.log_ratios() == plain.log_ratios() == pytest.approx([math.log(0.5)] * 3)
    assert extended.rounds == plain.rounds


def test_rounds_0_and_1_of_a_variant_are_an_aa_pair_and_so_on():
    rows = [
        *runs("a:fp32", [100, 101, 100, 99, 100]),
        *runs("a:fp32", [50, 51], set_id="t"),
        *runs("b:fp32", [10, 20]),
        *runs("c:fp32", [1]),
    ]

    found = aa_log_ratios(rows, "host_us")

    # The fifth run of the first set has no partner, and takes none from the next set.
    assert list(found) == [("tiny", "a:fp32"), ("tiny", "b:fp32")]
    assert found["tiny", "a:fp32"] == pytest.approx([math.log(1.01), math.log(0.99), math.log(1.02)])
    assert found["tiny", "b:fp32"] == pytest.approx([math.log(2)])


def test_an_aa_pair_needs_no_known_accuracy_but_runs_that_count():
    assert aa_log_ratios(runs("a:fp32", [1, 1], verdict="UNVERIFIED"), "host_us") == {("tiny", "a:fp32"): [0]}
    assert aa_log_ratios(runs("a:fp32", [1, 1], verdict="INVALID"), "host_us") == {}


def test_the_floor_of_a_pair_is_the_largest_on_record_else_the_default():
    def floor(a, b):
        return Pair(*good(runs("a:fp32", [1, 1, 1], aa_floor_pct=a), runs("b:fp32", [1, 1, 1], aa_floor_pct=b)).values()).floor

    assert floor(2.0, 3.0) == floor(3.0, None) == pytest.approx(math.log(1.03))
    assert floor(None, None) == default_floor(3)
