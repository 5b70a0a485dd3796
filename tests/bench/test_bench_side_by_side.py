"""Several models in one session: a set each, whose rounds are interleaved."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import bench_scripted
import pytest

from accel.bench import checking
from accel.bench.coordinate import run_set, run_sets
from accel.bench.plan import MeasurementPlan
from accel.bench.results import read_rows
from accel.engines import Bundle
from accel.types import Variant

PLAN = MeasurementPlan(warmup=2, iterations=12, rounds=2, discard=1, name="test plan")
EAGER, OTHER = Variant("eager", "fp32"), Variant("other", "fp32")


@pytest.fixture
def bundles(tmp_path, script):
    """Two models of one name, as two folders may hold them."""
    found = []
    for name, labels in (("a", "abcd"), ("b", "efgh")):
        (tmp_path / name).mkdir()
        found.append(bench_scripted.make_bundle(tmp_path / name, "", tuple(labels)))
    return found


@pytest.fixture
def turns():
    """What was timed, in turn: folder of the bundle, variant."""
    return []


@pytest.fixture
def bench(script, bundles, turns, settings, tmp_path):
    def launch(request, python, folder, progress):
        answer = script.launch(request, python, folder, progress)
        if request["mode"] == "measure":
            turns.append((Path(request["bundle"]).parent.name, request["variant"]))
        return answer

    def run(*models, plan=PLAN, **more):
        given = models or [(bundles[0], [EAGER, OTHER]), (bundles[1], [EAGER, OTHER])]
        return run_sets(given, plan, "cpu", tmp_path / "out", settings, launch=launch, **more)

    return run


def test_a_round_runs_all_of_all_models_before_the_next_begins(bench, turns):
    bench()
    everything = {(name, variant) for name in ("a", "b") for variant in ("eager:fp32", "other:fp32")}
    assert [set(turns[:4]), set(turns[4:])] == [everything, everything]
    assert turns[4:] == turns[:4][::-1]


def test_the_models_take_turns_and_are_not_run_one_after_the_other(bench, turns):
    orders = set()
    for seed in range(8):
        turns.clear()
        bench(plan=dataclasses.replace(PLAN, seed=seed))
        orders.add("".join(name for name, _ in turns[:4]))
    assert orders - {"aabb", "bbaa"}


def test_each_model_has_a_set_of_its_own_and_they_share_a_session(bench, bundles):
    first, second = bench()
    assert first.folder != second.folder
    assert [result.description["bundle"] for result in (first, second)] == [str(bundle.path) for bundle in bundles]
    assert first.description["session"] == second.description["session"] == first.description["set_id"]
    for result in (first, second):
        assert read_rows(result.folder) == result.rows
        assert {row["set_id"] for row in result.rows} == {result.description["set_id"]}
        assert {row["verdict"] for row in result.rows} == {"OK"}
        assert {row["stability"] for row in result.rows} == {"STABLE"}
        assert result.description["state"] == "finished"
    places = sorted({(row["round"], row["order_index"]) for result in (first, second) for row in result.rows})
    assert places == [(number, place) for number in (0, 1) for place in range(4)]


def test_a_set_alone_is_of_no_session_and_is_not_one_of_a_session(bench, bundles, script, settings, tmp_path):
    def stop(request, python, folder, progress):
        if request["mode"] == "measure":
            raise KeyboardInterrupt
        return script.launch(request, python, folder, progress)

    with pytest.raises(KeyboardInterrupt):
        run_sets([(item, [EAGER]) for item in bundles], PLAN, "cpu", tmp_path / "out", settings, launch=stop)
    alone = run_set(bundles[0], [EAGER], PLAN, "cpu", tmp_path / "out", settings, launch=script.launch)
    assert alone.description["session"] is None
    (first, _) = bench((bundles[0], [EAGER]), (bundles[1], [EAGER]))
    assert first.folder != alone.folder


def test_a_session_that_was_killed_goes_on_where_it_was(bench, bundles, script, turns, tmp_path):
    real = script.launch

    def killed(request, *rest):
        if len(turns) == 5:
            raise KeyboardInterrupt
        return real(request, *rest)

    script.launch = killed
    with pytest.raises(KeyboardInterrupt):
        bench()
    script.launch = real
    begun = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(begun) == 2
    first, second = bench()
    assert len(turns) == 8
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == begun
    assert first.description["session"] == second.description["session"] == first.description["set_id"]
    # Finished, it is not gone on with.
    again, _ = bench()
    assert again.folder not in (first.folder, second.folder)
    # Another partner makes another session.
    with pytest.raises(KeyboardInterrupt):
        script.launch = lambda *given: (_ for _ in ()).throw(KeyboardInterrupt)
        bench()
    script.launch = real
    (other, _) = bench((bundles[0], [EAGER, OTHER]), (bundles[1], [EAGER]))
    assert len(read_rows(other.folder)) == 8


def test_two_copies_of_one_bundle_have_two_sets(bench, bundles, tmp_path):
    (tmp_path / "copy").mkdir()
    shutil.copytree(bundles[0].path, tmp_path / "copy" / "tiny.accel")
    first, second = bench((bundles[0], [EAGER]), (Bundle.open(tmp_path / "copy" / "tiny.accel"), [EAGER]))
    assert first.folder != second.folder
    assert [len(result.rows) for result in (first, second)] == [4, 4]


def test_a_failed_check_of_the_harness_refuses_all(bench, turns, monkeypatch):
    found = checking.simulated()
    bad = dataclasses.replace(found.checks[0], passed=False)
    monkeypatch.setattr(checking, "simulated", lambda: dataclasses.replace(found, checks=(bad, *found.checks[1:])))
    assert {row["verdict"] for result in bench() for row in result.rows} == {"INVALID"}
    assert turns == []


def test_the_harness_is_checked_once_for_all(bench, monkeypatch):
    made, real = [], checking.simulated
    monkeypatch.setattr(checking, "simulated", lambda: (made.append(1), real())[1])
    first, second = bench()
    assert len(made) == 1
    assert first.description["self_check"]["passed"]
    assert first.description["self_check"] == second.description["self_check"]


def test_a_worker_that_fails_leaves_the_other_model_alone(bench, bundles, script):
    script.fail["measure", "other:fp32"] = bench_scripted.boom()
    first, second = bench((bundles[0], [EAGER]), (bundles[1], [EAGER, OTHER]))
    assert {row["verdict"] for row in first.rows} == {"OK"}
    assert {row["variant"]: row["verdict"] for row in second.rows} == {"eager:fp32": "OK", "other:fp32": "ERROR"}
