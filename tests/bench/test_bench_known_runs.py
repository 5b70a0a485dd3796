"""Whole sets of runs whose every call has a known length: what their rows must say, and that it can be derived again from what was kept."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from accel.api import compare
from accel.bench import stability
from accel.bench.coordinate import run_set
from accel.bench.plan import MeasurementPlan, order
from accel.bench.results import UINT32_NS, open_results, pack_samples, read_rows, read_samples, to_csv, write_samples
from accel.bench.stats import summarise
from accel.bench.summary import lines
from accel.engines import Bundle
from accel.errors import CorruptArtifact, UsageError
from accel.types import Variant

EAGER, OTHER = "eager:fp32", "other:fp32"
N = 2000
PLAN = MeasurementPlan(warmup=200, iterations=N, rounds=1, max_rounds=1, name="test plan")
FIRST_CALL_US = 9000.0


@pytest.fixture
def bench(script, bundle, settings, tmp_path):
    def run(plan=PLAN, names=(EAGER,)):
        variants = [Variant.parse(name) for name in names]
        return run_set(Bundle.open(bundle.path), variants, plan, "cpu", tmp_path / "out", settings, launch=script.launch)

    return run


def shuffled(values):
    return np.random.default_rng(5).permutation(values)


def calls(kept, warming=None):
    """Every call of a run: the first, the warm-up, and for both passes the blocks, whose heads are thrown away, with `kept` in them."""
    level = float(np.median(kept))
    passes = [value for block in np.split(kept, len(kept) // PLAN.block) for value in (*[level] * PLAN.discard, *block)]
    return [FIRST_CALL_US, *([level] * 50 if warming is None else warming), *passes, *passes]


def correlated(rho):
    noise, values = np.random.default_rng(6).standard_normal(N), [0.0]
    for shock in noise[1:]:
        values.append(rho * values[-1] + shock)
    return 100 + np.array(values)


LEVEL = np.full(N, 100.0)
KNOWN = {
    # Name: the kept samples, p50, p95 and p99 in µs, how many are outliers, the flags.
    "level": (LEVEL, (100, 100, 100), 0, []),
    "spread by ±2 %": (shuffled(np.linspace(98, 102, N)), (99.999, 101.799, 101.959), 0, []),
    "bimodal, 3 in 100 slow": (shuffled([100.0] * 1940 + [300.0] * 60), (100, 100, 300), 60, ["COV"]),
    "bimodal, 2 in 5 slow": (shuffled([100.0] * 1200 + [150.0] * 800), (100, 150, 150), 800, ["COV", "WIDE_IQR"]),
    "one call of 5 ms": (shuffled([100.0] * 1999 + [5000.0]), (100, 100, 100), 1, ["COV"]),
    "slower and slower": (shuffled(np.linspace(-3.9, 3.9, N)) + 100 + np.linspace(0, 1.8, N), None, 0, ["DRIFT"]),
    "faster and faster": (shuffled(np.linspace(-3.9, 3.9, N)) + 100 - np.linspace(0, 1.8, N), None, 0, ["DRIFT"]),
    "each like the one before": (correlated(0.5), None, 0, ["AUTOCORR"]),
}


@pytest.mark.parametrize("case", KNOWN)
def test_a_scripted_run_has_the_percentiles_outliers_and_flags_of_its_script(bench, script, case):
    kept, percentiles, outliers, flags = KNOWN[case]
    script.pace({EAGER: [calls(kept)]})

    rows = bench().rows

    assert [row["latency_kind"] for row in rows] == ["host_us", "e2e_us"]
    for row in rows:
        assert (row["flags"], row["n_outliers"], row["verdict"], row["n"]) == (flags, outliers, "OK", N)
        assert row["p50_lo_us"] <= row["p50_us"] <= row["p50_hi_us"]
        if percentiles is not None:
            assert (row["p50_us"], row["p95_us"], row["p99_us"]) == pytest.approx(percentiles, abs=0.0015)
        assert row["ci_method"].startswith("wider of" if flags == ["AUTOCORR"] else "order-statistic")


def test_a_slow_first_call_is_in_its_column_and_in_no_latency(bench, script):
    script.pace({EAGER: [calls(LEVEL)]})

    result = bench()

    assert {(row["first_call_ms"], row["max_us"], row["n_outliers"], row["warmup_n"]) for row in result.rows} == {(9.0, 100.0, 0, 50)}
    assert {int(taken.max()) for taken in result.samples().values()} == {100_000}


def test_a_run_that_settles_too_late_is_flagged_and_one_that_settles_in_time_is_not(bench, script):
    script.pace({EAGER: [calls(LEVEL, np.linspace(300, 101, 200))]})
    assert {(*row["flags"], row["warmup_n"], row["p99_us"]) for row in bench().rows} == {("NOT_WARM", 200, 100)}

    # Two halves agree first over the third and fourth fifty.
    script.pace({EAGER: [calls(LEVEL, [*np.linspace(300, 101, 50), *[100.0] * 100])]})
    assert {(*row["flags"], row["warmup_n"], row["p99_us"]) for row in bench().rows} == {(150, 100)}


def wild(middle, seed):
    return list(np.random.default_rng(seed).normal(middle, middle / 50, 997))


@pytest.fixture
def whole(bench, script):
    """A set of two variants and three rounds, no two samples of which are alike by design."""
    script.pace({EAGER: [wild(100, seed) for seed in (1, 2, 3)], OTHER: [wild(middle, 4) for middle in (80, 81, 90)]})
    return bench(dataclasses.replace(PLAN, iterations=700, rounds=3, max_rounds=3), (EAGER, OTHER))


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_description_is_said_and_keeps_no_other_set_from_being_measured(bench, text, caplog):
    first = bench()
    (first.folder / "set.json").write_text(text)

    with pytest.raises(CorruptArtifact, match=r"set\.json does not describe a set"):
        open_results(first.folder)
    again = bench()

    assert again.folder != first.folder
    assert "this set cannot be gone on with" in caplog.text


def test_a_reloaded_set_gives_identical_statistics_verdicts_and_tables(whole):
    reloaded = open_results(whole.folder)
    samples = reloaded.samples()

    assert len(reloaded.rows) == len(samples) == 12
    for row in reloaded.rows:
        recomputed = dataclasses.asdict(summarise(samples[row["raw_path"].partition("#")[2]]))
        assert recomputed == {name: row[name] for name in recomputed}
    assert {row["stability"] for row in reloaded.rows} == {"STABLE", "UNSTABLE"}
    assert stability.judged(reloaded.rows) == reloaded.rows == whole.rows
    assert lines(reloaded.rows, samples) == lines(whole.rows, whole.samples())
    (found,) = compare(whole.folder).rows
    assert (found["variant"], found["ratio"]) == (OTHER, pytest.approx(0.83, abs=0.03))
    assert compare(whole.folder / "results.jsonl").rows == (found,)


def test_the_order_of_each_round_is_the_shuffled_one_of_the_seed_on_record_and_every_other_reversed(bench):
    names = (EAGER, OTHER, "eager:tf32", "other:tf32", "eager:fp32+odd", "other:fp32+odd")
    plan = dataclasses.replace(PLAN, iterations=20, rounds=4, max_rounds=4, seed=3)

    result = bench(plan, names)

    rows = [row for row in result.rows if row["latency_kind"] == "host_us"]
    taken = [[row["variant"] for row in rows if row["round"] == number] for number in range(4)]
    ran = sorted(taken[0])
    assert {row["seed"] for row in rows} == {3}
    assert [[row["order_index"] for row in rows if row["round"] == number] for number in range(4)] == [list(range(len(ran)))] * 4
    assert taken == [order([name for name in names if name in ran], number, 3) for number in range(4)]
    assert (taken[1], taken[3]) == (taken[0][::-1], taken[2][::-1])
    assert len(ran) >= 4
    assert taken[0] != taken[2]


def test_the_csv_is_what_the_jsonl_says(whole):
    assert (whole.folder / "results.csv").read_text() == to_csv(read_rows(whole.folder))


def test_the_csv_of_a_set_that_was_killed_is_made_anew_from_its_jsonl(bench, script, tmp_path):
    plan = dataclasses.replace(PLAN, iterations=200)
    script.fail["measure", OTHER] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        bench(plan, (EAGER, OTHER))
    (folder,) = (tmp_path / "out").iterdir()
    (folder / "results.csv").write_text("half a")
    script.fail.clear()

    result = bench(plan, (EAGER, OTHER))

    assert result.folder == folder
    assert (folder / "results.csv").read_text() == to_csv(read_rows(folder))
    assert len(read_rows(folder)) == 4


def test_every_variant_and_run_of_a_set_has_the_same_eight_inputs(whole):
    ((digest, count),) = {(row["input_sha256"], row["n_distinct_inputs"]) for row in whole.rows}
    assert (len(digest), count) == (64, 8)


@pytest.mark.parametrize(("longest", "kept"), [(UINT32_NS, np.uint32), (UINT32_NS + 1, np.int64)])
def test_samples_above_4_seconds_are_kept_as_int64(tmp_path, longest, kept):
    write_samples(tmp_path / "samples.npz", {"v/r0/host_us": np.array([1, longest]), "v/r0/e2e_us": np.array([7])})

    found = read_samples(tmp_path / "samples.npz")

    assert (found["v/r0/host_us"].dtype, found["v/r0/host_us"].tolist()) == (kept, [1, longest])
    assert found["v/r0/e2e_us"].dtype == np.uint32


def test_packed_samples_are_the_same_in_less_room(tmp_path):
    draw = np.random.default_rng(0)
    samples = {f"eager:fp32/set/r{number}/host_us": draw.normal(150_000, 900, 500 + number).astype(np.int64) for number in range(12)}
    samples["eager:fp32/set/r12/paced_us"] = np.empty(0, np.int64)
    path = tmp_path / "samples.npz"
    write_samples(path, samples)
    before, size = read_samples(path), path.stat().st_size

    pack_samples(path)

    found = read_samples(path)
    assert path.stat().st_size < 0.8 * size
    assert list(found) == list(before)
    assert all(found[key].dtype == before[key].dtype and np.array_equal(found[key], before[key]) for key in before)
    content = path.read_bytes()
    pack_samples(path)
    assert path.read_bytes() == content


def test_samples_that_do_not_fit_into_four_bytes_stay_as_they_are(tmp_path):
    path = tmp_path / "samples.npz"
    write_samples(path, {"v/r0/host_us": np.array([UINT32_NS + 1])})
    content = path.read_bytes()

    with pytest.raises(UsageError, match=r"more than 4\.29 s"):
        pack_samples(path)

    assert path.read_bytes() == content
