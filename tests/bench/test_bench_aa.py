"""A variant against itself: what `accel bench --aa` records, keeps and refuses, on scripted runtimes."""

from __future__ import annotations

import json
import math

import pytest

from accel.api import benching
from accel.bench import aa, floors
from accel.bench.coordinate import run_set
from accel.bench.floors import Machine
from accel.bench.plan import order
from accel.bench.results import read_rows, row
from accel.errors import CorruptArtifact

EAGER, OTHER = "eager:fp32", "other:fp32"
QUICK = ("--iterations", "12", "--warmup", "2", "--no-verify", "--trusted", "--device", "cpu")
EVEN = [[100.0], [103.0], [103.0], [100.0]] * 5
"""Pairs of runs of which the later is 3 % slower, faster, slower, …"""
QUIET = [[100.0], [100.5], [100.5], [100.0]] * 5


@pytest.fixture
def bench(script, bundle, tmp_path, monkeypatch, accel_cli):
    monkeypatch.setattr(benching, "run_set", lambda *given, **named: run_set(*given, **named, launch=script.launch))
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return accel_cli("bench", bundle.path, "--out", tmp_path / "out", *QUICK, *arguments)

    return run


def sets(tmp_path):
    """The rows of every set, in the order in which the sets were begun."""
    found = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/set.json")]
    names = sorted((item["started_utc"], len(item["set_id"]), item["set_id"]) for item in found)
    return [read_rows(tmp_path / "out" / name) for _, _, name in names]


def told(ran, start):
    return [line.removeprefix("accel: ") for line in ran.err.splitlines() if line.startswith(f"accel: {start}")]


def one_sided():
    """Runs of which the one that is called A′ is 3 % slower each time."""
    pairs = ([[100.0], [103.0]] if order((aa.A, aa.PRIMED), number, 0)[0] == aa.A else [[103.0], [100.0]] for number in range(10))
    return [run for pair in pairs for run in pair]


def machine():
    from accel.bench.environment import snapshot

    return Machine.of(snapshot("cpu"))


def test_a_variant_is_run_in_ten_pairs_and_nothing_beside_it(bench, script, tmp_path):
    script.pace({OTHER: QUIET})

    ran = bench("--runtime", OTHER, "--aa")

    assert ran.code == 0, ran.err
    (rows,) = sets(tmp_path)
    assert [(item["variant"], item["round"]) for item in rows if item["latency_kind"] == "host_us"] == [(OTHER, at) for at in range(20)]
    assert rows[0]["plan"] == "A/A plan: warm-up 2, 12 iterations, 20 rounds"
    assert OTHER in ran.out


def test_a_quiet_machine_is_judged_by_the_least_effect(bench, script):
    script.pace({OTHER: QUIET})

    ran = bench("--runtime", OTHER, "--aa")

    (host, _) = told(ran, "A/A other:fp32 of tiny")
    assert "host_us: floor 0.50 % over 3 rounds, so the least effect of 1 % decides; A′ against A is SAME (ratio " in host
    assert "10 pairs" in host
    (floor,) = told(ran, f"A/A floor of {machine().device}, host_us")
    assert floor.endswith("the largest of 1 variant: floor 0.50 % over 3 rounds, so the least effect of 1 % decides")


def test_the_floor_is_found_again_by_the_next_set_for_its_own_number_of_rounds(bench, script, tmp_path, accel_cli):
    script.pace({OTHER: EVEN})
    before = bench("--runtime", OTHER, "--no-baseline")
    script.pace({OTHER: EVEN})
    ran = bench("--runtime", OTHER, "--aa")
    assert "floor 3.00 % over 3 rounds, which decides" in told(ran, "A/A other")[0]
    script.pace({EAGER: [[200.0]], OTHER: [[100.0]]})
    bench("--runtime", OTHER)
    bench("--runtime", OTHER, "--rounds", "7")

    unknown, _, three, seven = sets(tmp_path)

    assert before.code == 0
    assert {item["aa_floor_pct"] for item in unknown} == {None}
    # Of three rounds all have the same sign once in four times; of seven once in 64, and five of seven net is the 95th percentile.
    assert {round(item["aa_floor_pct"], 6) for item in three} == {3}
    assert {round(item["aa_floor_pct"], 6) for item in seven} == {round(100 * math.expm1(5 / 7 * math.log(1.03)), 6)}
    # Another kind of latency, of which nothing is known, has no floor.
    assert floors.filled([{**three[0], "latency_kind": "paced_us"}], floors.read(machine()))[0]["aa_floor_pct"] is None


def test_what_was_measured_is_what_a_comparison_asks_for(bench, script, tmp_path, accel_cli):
    script.pace({OTHER: EVEN})
    bench("--runtime", OTHER, "--aa")
    bench("--runtime", OTHER, "--no-baseline")
    rows = sets(tmp_path)[1]
    for name, factor in (("a", 1.0), ("b", 1.015)):
        lines = (json.dumps({**item, "verdict": "OK", "p50_us": 100 * factor}) for item in rows)
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))

    (found,) = json.loads(accel_cli("compare", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--format", "json").out)

    # 1.5 % beyond all doubt, but chance does 3 % here.
    assert (round(found["floor_pct"], 6), found["ratio"], found["verdict"]) == (3, pytest.approx(1.015), "SAME")


def test_the_largest_floor_of_the_variants_is_the_machines_and_a_new_one_replaces_its_own(bench, script):
    script.pace({EAGER: QUIET, OTHER: EVEN})
    ran = bench("--runtime", EAGER, "--runtime", OTHER, "--aa")
    assert "the largest of 2 variants: floor 3.00 %" in told(ran, "A/A floor of")[0]

    script.pace({OTHER: QUIET})
    ran = bench("--runtime", OTHER, "--aa")

    assert "the largest of 2 variants: floor 0.50 %" in told(ran, "A/A floor of")[0]
    kept = json.loads(machine().file.read_text())
    assert sorted(kept["variants"]) == ["tiny eager:fp32", "tiny other:fp32"]
    assert kept["floor_pct"] == {kind: pytest.approx(0.5) for kind in ("host_us", "e2e_us")}


def test_a_difference_where_there_is_none_is_exit_3_and_keeps_no_floor(bench, script, tmp_path):
    script.pace({OTHER: one_sided()})

    ran = bench("--runtime", OTHER, "--aa")

    assert ran.code == 3
    assert "the harness finds a difference where there is none" in ran.err
    assert "A′ against A is SLOWER (ratio 1.0300, 1.0300 to 1.0300, 10 pairs)" in ran.err
    assert "accel selfcheck" in ran.err
    assert not machine().file.exists()
    (path,) = (tmp_path / "out").glob("*/set.json")
    assert {item["verdict"] for item in json.loads(path.read_text())["aa"]} == {"SLOWER"}


def test_an_even_drift_is_no_difference(bench, script):
    script.pace({OTHER: [[100.0 * 1.02**at] for at in range(20)]})

    ran = bench("--runtime", OTHER, "--aa")

    assert ran.code == 0
    assert "floor 2.00 % over 3 rounds, which decides; A′ against A is SAME (ratio 1.0000, " in told(ran, "A/A other")[0]


def test_an_aa_set_that_was_killed_goes_on_and_is_judged_whole(bench, script, tmp_path):
    script.pace({OTHER: EVEN})
    paced = script.launch

    def launch(request, *rest):
        if request["mode"] == "measure" and script.count("measure") == 13:
            raise KeyboardInterrupt
        return paced(request, *rest)

    script.launch = launch
    assert bench("--runtime", OTHER, "--aa").code == 130
    assert not machine().file.exists()
    script.launch = paced

    ran = bench("--runtime", OTHER, "--aa")

    assert (ran.code, script.count("measure"), len(sets(tmp_path))) == (0, 20, 1)
    assert "floor 3.00 %" in told(ran, "A/A other")[0]


def test_an_aa_set_adds_no_rounds_and_settings_of_other_sets_do_not_count(bench, script, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCEL_BENCH_ROUNDS", "7")
    monkeypatch.setenv("ACCEL_BENCH_MAX_ROUNDS", "9")
    script.pace({OTHER: [[100.0], [120.0]] * 11})

    bench("--runtime", OTHER, "--aa", "--rounds", "22")

    (rows,) = sets(tmp_path)
    assert {item["round"] for item in rows} == set(range(22))


def test_variants_that_failed_have_no_floor(bench, script):
    from bench_scripted import boom

    script.fail["measure", OTHER] = boom()

    ran = bench("--runtime", OTHER, "--aa")

    assert ran.code == 1
    assert told(ran, "A/A") == ["A/A: no variant has all of its runs, so no floor was found"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--aa",), "--runtime eager:fp32 --aa"),
        (("--aa", "--runtime", OTHER, "--rounds", "18"), "asked for 18 rounds"),
        (("--aa", "--runtime", OTHER, "--rounds", "21"), "an even number of at least 20"),
        (("--aa", "--runtime", OTHER, "--max-rounds", "30"), "leave out --max-rounds"),
        (("--rounds", "4", "--max-rounds", "3"), "max_rounds = 3 and rounds = 4"),
        (("--iterations", "many"), "'many' is neither a positive number nor auto"),
        (("--iterations", "0"), "'0' is neither a positive number nor auto"),
        (("--max-rounds", "0"), "--max-rounds"),
    ],
)
def test_what_makes_no_sense_is_exit_2_and_runs_nothing(bench, script, tmp_path, arguments, said):
    ran = bench(*arguments)

    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert not (tmp_path / "out").exists()


def test_each_device_and_driver_has_floors_of_its_own(script):
    h200 = {"gpu_uuid": "GPU-1", "cpu_model": "Some CPU", "driver": "580.1"}
    here, updated, cpu = (Machine.of({**h200, **changes}) for changes in ({}, {"driver": "590"}, {"gpu_uuid": None, "driver": None}))

    floors.keep(here, {"tiny a:fp32": {"host_us": [0.01] * 10}}, set_id="s", plan="p")

    assert floors.read(here) == {"tiny a:fp32": {"host_us": [0.01] * 10}}
    assert floors.read(updated) == floors.read(cpu) == {}
    # Names that one file system takes for the same.
    here.file.rename(cpu.file)
    assert floors.read(cpu) == {}


@pytest.mark.parametrize(
    "change", [{"schema_version": 2}, {"variants": {"x": {}}}, {"variants": 1}, {"variants": {"x": {"log_ratios": {"host_us": [0.1]}}}}]
)
def test_damaged_floors_are_said_before_anything_runs(bench, script, change):
    floors.keep(machine(), {"tiny a:fp32": {"host_us": [0.01] * 10}}, set_id="s", plan="p")
    machine().file.write_text(json.dumps({**json.loads(machine().file.read_text()), **change}))

    with pytest.raises(CorruptArtifact, match="aa-floors") as caught:
        floors.read(machine())
    assert "delete" in caught.value.remedy
    assert bench("--runtime", OTHER).code == 5
    assert script.count("measure") == 0


def test_a_row_without_a_latency_has_no_floor():
    rows = [row(variant=OTHER, model="tiny", verdict="MISSING")]
    assert floors.filled(rows, {"tiny a:fp32": {"host_us": [0.01] * 10}}) == rows
