from __future__ import annotations

import dataclasses
import json
from collections import Counter

import bench_scripted
import numpy as np
import pytest

from accel.bench.coordinate import run_set
from accel.bench.plan import MeasurementPlan, order
from accel.bench.results import read_rows, row
from accel.bench.rounds import due
from accel.bench.sampling import enough
from accel.bench.summary import lines
from accel.engines import Bundle
from accel.types import Variant

EAGER, OTHER = "eager:fp32", "other:fp32"
PLAN = MeasurementPlan(warmup=2, iterations=12, rounds=3, discard=1, name="test plan")
ADAPTIVE = dataclasses.replace(PLAN, iterations=500, adaptive=True)
STEADY, WILD = [[100.0]], [[100.0], [110.0], [100.0]]


@pytest.fixture
def bench(script, bundle, settings, tmp_path):
    def run(plan=PLAN, names=(EAGER, OTHER), **more):
        variants = [Variant.parse(name) for name in names]
        return run_set(Bundle.open(bundle.path), variants, plan, "cpu", tmp_path / "out", settings, launch=script.launch, **more)

    return run


def rounds_of(result, variant):
    return [row["round"] for row in result.rows if row["variant"] == variant and row["latency_kind"] == "host_us"]


def told(result, variant, kind="host_us"):
    """Stability and flags of a variant's rows of one kind: one pair, since they are judged together."""
    (found,) = {(row["stability"], *row["flags"]) for row in result.rows if (row["variant"], row["latency_kind"]) == (variant, kind)}
    return found


def spread(percent):
    """Call times spread evenly over 100 µs ± `percent`, in an order without a pattern."""
    return list(np.random.default_rng(4).permutation(np.linspace(100 - percent, 100 + percent, 997)))


def test_when_the_rounds_are_over_every_row_says_whether_the_runs_agree(bench, script):
    script.pace({EAGER: STEADY, OTHER: [[100.0], [103.0], [100.0]]})

    result = bench()

    assert told(result, EAGER) == ("STABLE",)
    assert told(result, OTHER) == told(result, OTHER, "e2e_us") == ("NOISY", "NOISY")
    assert read_rows(result.folder) == result.rows
    assert (result.folder / "results.csv").read_text().count(",STABLE,") == 6


def test_an_interrupted_set_is_judged_by_the_runs_that_it_has(bench, script, tmp_path):
    script.pace({EAGER: STEADY, OTHER: WILD})
    paced = script.launch

    def launch(request, *rest):
        if request["mode"] == "measure" and script.count("measure") == 4:
            raise KeyboardInterrupt
        return paced(request, *rest)

    script.launch = launch
    with pytest.raises(KeyboardInterrupt):
        bench()

    (folder,) = (tmp_path / "out").iterdir()
    rows = read_rows(folder)
    assert {row["round"] for row in rows} == {0, 1}
    assert {row["variant"]: row["stability"] for row in rows if row["latency_kind"] == "host_us"} == {EAGER: "STABLE", OTHER: "UNSTABLE"}


def test_runs_of_one_round_say_nothing(bench, script, tmp_path):
    script.pace({EAGER: STEADY, OTHER: WILD})
    script.fail["measure", OTHER] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        bench(dataclasses.replace(PLAN, seed=next(seed for seed in range(9) if order([EAGER, OTHER], 0, seed)[0] == EAGER)))

    (folder,) = (tmp_path / "out").iterdir()
    assert {row["stability"] for row in read_rows(folder)} == {None}


def test_one_round_says_nothing(bench):
    assert told(bench(dataclasses.replace(PLAN, rounds=1)), EAGER) == (None,)


def test_each_latency_kind_is_judged_by_its_own_runs_and_a_table_says_it_of_the_headline(bench):
    result = bench()
    rows = [row | {"flags": ["UNSTABLE"] if row["latency_kind"] == "e2e_us" else ["COV"]} for row in result.rows]

    assert {line.flags for line in lines(rows, {})} == {("COV",)}


def test_a_variant_whose_runs_disagree_gets_two_more_and_stays_unstable(bench, script):
    script.pace({EAGER: STEADY, OTHER: WILD})

    result = bench()

    assert (rounds_of(result, EAGER), rounds_of(result, OTHER)) == ([0, 1, 2], [0, 1, 2, 3, 4])
    assert told(result, OTHER) == ("UNSTABLE", "UNSTABLE")
    assert told(result, EAGER) == ("STABLE",)
    assert next(line for line in lines(result.rows, {}) if line.variant == OTHER).flags == ("UNSTABLE",)
    assert {row["order_index"] for row in result.rows if row["round"] in (3, 4)} == {0}


def test_noisy_runs_add_none(bench, script):
    script.pace({EAGER: STEADY, OTHER: [[100.0], [105.0], [100.0]]})
    assert rounds_of(bench(), OTHER) == [0, 1, 2]


def test_runs_that_come_to_disagree_late_end_at_the_cap(bench, script):
    script.pace({EAGER: STEADY, OTHER: [[100.0], [100.0], [110.0]]})
    assert rounds_of(bench(dataclasses.replace(PLAN, max_rounds=4)), OTHER) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("kind", "verdict", "wanted"),
    [("device_us", "OK", [OTHER]), ("e2e_us", "OK", []), ("device_us", "UNVERIFIED", [OTHER]), ("device_us", "INVALID", [])],
)
def test_the_time_of_the_gpu_alone_may_ask_for_further_rounds_too(kind, verdict, wanted):
    def runs(variant, latency_kind, medians):
        given = {"variant": variant, "latency_kind": latency_kind, "verdict": verdict}
        return [row(**given, round=at, p50_us=p50) for at, p50 in enumerate(medians)]

    steady = [item for name in (EAGER, OTHER) for item in runs(name, "host_us", [100, 100, 100])]

    assert due([*steady, *runs(OTHER, kind, [90, 100, 90])], [EAGER, OTHER], 3, PLAN) == wanted


def test_a_plan_may_add_no_runs(bench, script):
    script.pace({EAGER: STEADY, OTHER: WILD})

    result = bench(dataclasses.replace(PLAN, max_rounds=3))

    assert rounds_of(result, OTHER) == [0, 1, 2]
    assert told(result, OTHER) == ("UNSTABLE", "UNSTABLE")


def test_several_variants_share_the_further_rounds_in_the_order_of_the_plan(bench, script):
    script.pace({EAGER: WILD, OTHER: WILD})

    result = bench()

    taken = [row["variant"] for row in result.rows if row["round"] in (3, 4) and row["latency_kind"] == "host_us"]
    assert taken == [*order([EAGER, OTHER], 3, PLAN.seed), *order([EAGER, OTHER], 4, PLAN.seed)]


def test_a_set_that_was_killed_in_a_further_round_goes_on_there(bench, script):
    script.pace({EAGER: WILD, OTHER: WILD})
    paced, last = script.launch, order([EAGER, OTHER], 3, PLAN.seed)[1]

    def launch(request, *rest):
        if request["mode"] == "measure" and request["variant"] == last and script.count("measure") == 7:
            raise KeyboardInterrupt
        return paced(request, *rest)

    script.launch = launch
    with pytest.raises(KeyboardInterrupt):
        bench()
    assert script.count("measure") == 7
    script.launch = paced

    result = bench()

    assert script.count("measure") == 10
    assert Counter((row["variant"], row["round"]) for row in result.rows) == {(v, n): 2 for v in (EAGER, OTHER) for n in range(5)}
    assert told(result, EAGER) == told(result, OTHER) == ("UNSTABLE", "UNSTABLE")


def test_a_set_that_was_killed_before_its_state_was_written_is_judged_again_and_runs_nothing(bench, script):
    script.pace({EAGER: STEADY, OTHER: WILD})
    first = bench()
    before = [dict(row) for row in first.rows]
    first.describe(state="running")

    again = bench()

    assert script.count("measure") == 8
    assert again.rows == before


def test_a_variant_that_failed_in_a_run_gets_no_further_ones(bench, script):
    script.pace({EAGER: STEADY, OTHER: WILD})
    paced = script.launch

    def launch(request, *rest):
        if request["mode"] == "measure" and request["variant"] == OTHER and script.count("measure") >= 4:
            raise bench_scripted.boom()
        return paced(request, *rest)

    script.launch = launch
    result = bench()

    assert {row["round"] for row in result.rows if row["variant"] == OTHER} == {0, 1, 2}
    assert {row["verdict"] for row in result.rows if row["variant"] == OTHER} == {"OK", "ERROR"}
    assert {row["stability"] for row in result.rows if row["verdict"] == "ERROR"} == {None}


@pytest.mark.parametrize(
    ("percent", "taken", "said"),
    [
        (0, [500, 500, 500], "all intervals are narrow enough"),
        (7, [500, 1000, 1000], "other:fp32, p50 of host_us is known to ±0.57 % from 500, wanted is ±0.5 %: 651 samples are needed"),
        (40, [500, 2000, 2000], "2000 are the most taken"),
    ],
)
def test_an_adaptive_set_finds_its_number_in_the_first_round_and_keeps_it(bench, script, percent, taken, said):
    script.pace({EAGER: STEADY, OTHER: [spread(percent)]})

    result = bench(ADAPTIVE)

    described = json.loads((result.folder / "set.json").read_text())
    assert described["iterations"] == taken
    assert said in described["iterations_reason"]
    # The steady variant takes as many as the one that asked.
    assert {(row["round"], row["n"]) for row in result.rows} == set(enumerate(taken))


def test_an_adaptive_set_that_was_killed_keeps_the_number_that_it_found(bench, script):
    script.pace({EAGER: STEADY, OTHER: [spread(7)]})
    paced = script.launch

    def launch(request, *rest):
        if request["mode"] == "measure" and script.count("measure") == 3:
            raise KeyboardInterrupt
        return paced(request, *rest)

    script.launch = launch
    with pytest.raises(KeyboardInterrupt):
        bench(ADAPTIVE)
    script.launch = paced

    result = bench(ADAPTIVE)

    assert result.description["iterations"] == [500, 1000, 1000]
    assert {(row["round"], row["n"]) for row in result.rows} == {(0, 500), (1, 1000), (2, 1000)}


def test_further_rounds_of_an_adaptive_set_take_as_many_samples(bench, script):
    script.pace({EAGER: STEADY, OTHER: [spread(7), [110.0]]})

    result = bench(ADAPTIVE)

    assert result.description["iterations"] == [500, 1000, 1000, 1000, 1000]
    assert {(row["round"], row["n"]) for row in result.rows if row["variant"] == OTHER} >= {(3, 1000), (4, 1000)}


def test_a_fixed_number_is_never_changed(bench, script):
    script.pace({EAGER: STEADY, OTHER: [spread(40)]})

    result = bench(dataclasses.replace(PLAN, iterations=200))

    assert {row["n"] for row in result.rows} == {200}
    assert "iterations" not in result.description


def measured(half_p50=0.0, half_p95=0.0, kind="host_us", verdict="OK", variant=EAGER, n=500):
    """A row whose p50 of 100 µs and p95 of 200 µs are known to ± so many percent."""
    ends = {"p50_us": 100, "p50_lo_us": 100 - half_p50, "p50_hi_us": 100 + half_p50}
    ends |= {"p95_us": 200, "p95_lo_us": 200 - 2 * half_p95, "p95_hi_us": 200 + 2 * half_p95}
    return {"variant": variant, "latency_kind": kind, "verdict": verdict, "n": n, **ends}


@pytest.mark.parametrize(
    ("row", "number"),
    [
        (measured(), 500),
        (measured(half_p50=0.5, half_p95=2), 500),
        (measured(half_p50=0.51), 1000),
        (measured(half_p50=0.7), 1000),  # 500 · 1.4² = 980
        (measured(half_p50=0.71), 2000),  # 1,008.2
        (measured(half_p95=2.1), 1000),
        (measured(half_p95=3), 2000),  # 1,125
        (measured(half_p50=5), 2000),
        (measured(half_p95=2.1, kind="device_us"), 1000),
        (measured(half_p50=5, kind="e2e_us"), 500),
        (measured(half_p50=5, verdict="INVALID"), 500),
        ({**measured(half_p50=5), "p50_lo_us": None}, 500),
        ({**measured(half_p50=5), "p50_us": 0}, 500),
    ],
)
def test_intervals_are_projected_by_the_root_of_the_number(row, number):
    assert enough([row])[0] == number


def test_the_widest_interval_of_all_variants_decides_and_is_named():
    number, reason = enough([measured(half_p50=0.6), measured(half_p95=2.6, variant=OTHER), measured(half_p50=0.55)])

    assert number == 1000
    assert reason == "other:fp32, p95 of host_us is known to ±2.6 % from 500, wanted is ±2 %: 845 samples are needed"
