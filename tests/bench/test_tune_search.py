"""`accel tune` with scripted runtimes on a fake clock: what is kept, what is dropped, what the budget keeps from running, what goes on."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import bench_scripted
import pytest

from accel import runtimes
from accel.api import tune_search, tuning
from accel.api.tune_steps import STEPS, Budget, Step, parse_budget, wider
from accel.api.tuning import Tuned
from accel.bench import measure
from accel.bench.candidates import Candidate, Failure
from accel.bench.plan import MeasurementPlan
from accel.engines import Bundle, tuned
from accel.errors import CorruptArtifact, DiskFull, ParityError, UsageError
from accel.runtimes import table as runtime_table
from accel.types import Variant

PLAN = MeasurementPlan(warmup=2, iterations=12, rounds=2, max_rounds=2, discard=1, name="test plan")
Tune = Callable[..., Tuned]


def steps(*variants: str) -> list[Step]:
    return [Step("a step", variant) for variant in variants]


@pytest.fixture
def tune(script, bundle, settings, tmp_path, monkeypatch) -> Tune:
    # Nothing here is timed for real: no heap needs to be quiet, and no preprocessing is of interest.
    monkeypatch.setattr(gc, "collect", lambda: 0)
    monkeypatch.setattr(measure, "preprocessing_ns", lambda *_: None)

    def run(*variants: str, budget: float | None = None, settings=settings, plan=PLAN) -> Tuned:
        limit = Budget(budget, script.clock)
        return tuning.search(
            Bundle.open(bundle.path), steps(*variants), plan, "cpu", tmp_path / "out", settings, limit, launch=script.launch
        )

    return run


def decisions(done: Tuned) -> list[tuple[Any, ...]]:
    return [(row["variant"], row["against"], row["verdict"], row["decision"]) for row in done.rows]


def timed(script: bench_scripted.Script) -> list[str]:
    return [variant for mode, variant, _ in script.launched if mode == "measure"]


def test_what_is_faster_is_kept_and_everything_after_has_to_beat_it(tune, script, monkeypatch):
    absent = dataclasses.replace(runtimes.RUNTIMES["other"], distributions=("no-such-package",), extra="trt")
    monkeypatch.setitem(runtimes.RUNTIMES, "absent", absent)
    monkeypatch.setitem(runtimes.RUNTIMES, "third", runtimes.RUNTIMES["other"])
    script.pace(
        {
            "eager:fp32": [[100]],
            "eager:fp32+odd": [[50]],
            "other:fp32": [[50]],
            "other:fp32+odd": [[40], [60]],
            "third:fp32": [[80]],
            "third:fp32+odd": [[25]],
        }
    )

    done = tune("eager:fp32", "eager:fp32+odd", "other:fp32", "other:fp32+odd", "absent:fp32", "third:fp32", "third:fp16", "third:fp32+odd")

    assert decisions(done) == [
        ("eager:fp32", None, "OK", "baseline"),
        ("eager:fp32+odd", "eager:fp32", "FASTER", "keep"),
        ("other:fp32", "eager:fp32+odd", "SAME", "drop"),
        ("other:fp32+odd", "eager:fp32+odd", "AMBIGUOUS", "refine"),
        ("absent:fp32", "eager:fp32+odd", "MISSING", "refine"),
        ("third:fp32", "eager:fp32+odd", "SLOWER", "drop"),
        ("third:fp16", "eager:fp32+odd", "REFUSED", "refine"),
        ("third:fp32+odd", "eager:fp32+odd", "FASTER", "keep"),
        ("third:fp32+odd", "eager:fp32", "FASTER", "keep"),
    ]
    kept, missing, confirmed = done.rows[1], done.rows[4], done.rows[-1]
    assert (kept["p50_us"], kept["against_p50_us"], kept["ratio"], kept["rounds"]) == (50, 100, pytest.approx(0.5), 2)
    assert (kept["top1"], kept["n_flips"], kept["why"]) == (100, 0, "FASTER than eager:fp32")
    assert missing["why"].startswith("MISSING: absent:fp32 needs no-such-package, which is not installed")
    assert missing["remedy"] == "pip install 'accel-engines[trt]'"
    assert (confirmed["step"], confirmed["ratio"]) == ("confirmation", pytest.approx(0.25))
    # No ratio is taken across sets: each row names the one that held the two together.
    assert len({row["set_id"] for row in done.rows if row["set_id"]}) == 7
    assert done.best == "third:fp32+odd"
    assert done.summary.startswith("best: third:fp32+odd, 4.00 (4.00 to 4.00) times as fast as eager:fp32; load it: accel.load(")
    assert done.summary.endswith("tiny.accel', device='cpu')")
    assert done.problem is None


def test_if_nothing_is_faster_the_baseline_stays_and_the_summary_says_so(tune, script):
    script.pace({"eager:fp32": [[100]], "other:fp32": [[100]]})
    done = tune("eager:fp32", "other:fp32")
    assert decisions(done)[1:] == [("other:fp32", "eager:fp32", "SAME", "drop")]
    assert done.best == "eager:fp32"
    assert "the baseline: no other candidate was FASTER and right" in done.summary


def test_a_precision_that_fails_the_gate_is_dropped_and_the_next_wider_one_is_tried(tune, script, monkeypatch):
    monkeypatch.setattr(runtime_table, "_ON_A_CPU", {})
    script.noise = {"other:fp16": 1e3, "other:fp16+odd": 1e3}
    script.pace({"eager:fp32": [[100]], "other:tf32": [[90]], "other:tf32+odd": [[80]]})

    done = tune("eager:fp32", "other:fp16", "other:fp16+odd")

    # That FP16 of this runtime is wrong need not be found twice.
    assert decisions(done)[1:4] == [
        ("other:fp16", "eager:fp32", "INVALID", "drop"),
        ("other:tf32", "eager:fp32", "FASTER", "keep"),
        ("other:tf32+odd", "other:tf32", "FASTER", "keep"),
    ]
    assert "its gate failed: top1 fell by" in done.rows[1]["why"]
    assert done.rows[1]["top1"] < 50
    # What is wrong is not timed.
    assert "other:fp16" not in timed(script)


def test_a_gain_that_does_not_hold_against_the_baseline_is_not_believed(tune, script):
    script.pace({"eager:fp32": [[100]] * 4 + [[60]], "eager:fp32+odd": [[90]], "other:fp32": [[80]]})
    done = tune("eager:fp32", "eager:fp32+odd", "other:fp32")
    assert decisions(done)[-1] == ("other:fp32", "eager:fp32", "SLOWER", "drop")
    assert done.best == "eager:fp32"


def test_a_worker_that_fails_is_a_row_and_the_search_goes_on(tune, script):
    script.fail["verify", "eager:fp32+odd"] = bench_scripted.boom("no compiler")
    script.fail["measure", "other:fp32"] = bench_scripted.boom("it died")
    script.pace({"eager:fp32": [[100]], "other:fp32+odd": [[50]]})
    done = tune("eager:fp32", "eager:fp32+odd", "other:fp32", "other:fp32+odd")
    assert decisions(done)[1:] == [
        ("eager:fp32+odd", "eager:fp32", "ERROR", "refine"),
        ("other:fp32", "eager:fp32", "ERROR", "refine"),
        ("other:fp32+odd", "eager:fp32", "FASTER", "keep"),
    ]
    assert (done.rows[1]["why"], done.rows[1]["remedy"]) == ("ERROR: no compiler", "mend it")


def test_if_the_best_fails_beside_a_candidate_nothing_is_decided(tune, script):
    script.pace({"eager:fp32": [[100]], "other:fp32": [[50]]})
    launch = script.launch

    def failing(request, *more):
        if request["mode"] == "measure" and script.count("measure") == 3:
            script.launched.append(("measure", request["variant"], ""))
            raise bench_scripted.boom("the machine hiccuped")
        return launch(request, *more)

    script.launch = failing
    plan = dataclasses.replace(PLAN, seed=next(seed for seed in range(9) if _second_of(seed) == "eager:fp32"))
    row = tune("eager:fp32", "other:fp32", plan=plan).rows[1]
    assert (row["verdict"], row["decision"]) == ("OK", "refine")
    assert row["why"].startswith("not compared: eager:fp32 has no good run in this set (ERROR: the machine hiccuped")


def _second_of(seed: int) -> str:
    from accel.bench.plan import order

    return order(["eager:fp32", "other:fp32"], 0, seed)[1]


def test_without_data_nothing_is_tuned(tune, settings):
    done = tune("eager:fp32", "other:fp32", settings=dataclasses.replace(settings, data=None))
    assert decisions(done) == [("eager:fp32", None, "UNVERIFIED", "refine")]
    assert (done.best, done.problem.exit_code) == (None, 4)
    assert "--data" in done.problem.remedy


def test_a_model_that_fails_its_own_gate_ends_with_it(tune, script, settings):
    script.noise = {"other:fp32": 1e3}
    done = tune("other:fp32", settings=dataclasses.replace(settings, min_top1=99.9))
    assert (done.best, done.problem.exit_code) == (None, 3)


def test_nothing_begins_that_would_not_fit_the_budget(tune, script):
    # A run is scripted to take 2 s to open: the baseline takes 6 s, verified and timed in 2 rounds; beside it another one takes 10 s.
    script.pace({"eager:fp32": [[100]], "other:fp32": [[50]]})
    done = tune("eager:fp32", "other:fp32", "other:fp32+odd", budget=20)
    assert decisions(done) == [
        ("eager:fp32", None, "OK", "baseline"),
        ("other:fp32", "eager:fp32", "FASTER", "keep"),
        ("other:fp32+odd", "other:fp32", "NOT TRIED", "refine"),
    ]
    assert done.rows[2]["why"] == ("NOT TRIED: budget: 4 s of 20 s are left, and it is likely to take 10 s (the longest of other so far)")
    assert "; 1 not tried, see the table" in done.summary
    assert "other:fp32+odd" not in [variant for _, variant, _ in script.launched]


def test_the_same_call_goes_on_where_the_budget_ended(tune, script):
    script.pace({"eager:fp32": [[100]], "other:fp32": [[50]], "other:fp32+odd": [[40]]})
    names = ("eager:fp32", "other:fp32", "other:fp32+odd")
    first = tune(*names, budget=20)
    before = len(timed(script))

    second = tune(*names)

    assert timed(script)[before:].count("other:fp32+odd") == 4  # against other:fp32, and to confirm it against the baseline
    assert timed(script)[before:].count("eager:fp32") == 2
    assert second.rows[:2] == first.rows[:2]
    assert second.best == "other:fp32+odd"
    third = tune(*names)
    assert third.rows == second.rows
    assert len(timed(script)) == before + 8


def test_another_plan_gate_dataset_or_machine_is_another_tuning(bundle, settings, monkeypatch):
    def key(plan=PLAN, **changes: Any) -> Any:
        return tuning._facts(bundle, plan, "cpu", dataclasses.replace(settings, **changes))

    assert key() == key(command="typed otherwise")
    others = [
        key(dataclasses.replace(PLAN, iterations=13)),
        key(max_drop=0.1),
        key(min_top1=90.0),
        key(data="npz:other"),
        key(metric="a:b"),
    ]
    monkeypatch.setattr(tuning.devices, "name", lambda device: "another CPU")
    others.append(key())
    assert all(other != key() for other in others[:-1])
    monkeypatch.undo()
    assert all(other != key() for other in others)


def test_an_interrupt_keeps_what_was_found_and_the_same_call_goes_on(tune, script, bundle):
    script.pace({"eager:fp32": [[100]], "other:fp32": [[50]], "other:fp32+odd": [[40]]})
    names = ("eager:fp32", "other:fp32", "eager:fp32+odd", "other:fp32+odd")
    script.fail["measure", "eager:fp32+odd"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        tune(*names)
    (record,) = tuned.read(bundle.path).values()
    assert [row["variant"] for row in record["rows"]] == ["eager:fp32", "other:fp32"]
    assert (record["best"]["variant"], record["finished"]) == ("other:fp32", False)

    # Interrupted again before it comes that far, it has lost nothing.
    script.fail.clear()
    resolved = tune_search.resolve
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tune_search, "resolve", _interrupting(resolved, "other:fp32"))
        tune(*names)
    (record,) = tuned.read(bundle.path).values()
    assert [row["variant"] for row in record["rows"]] == ["eager:fp32", "other:fp32"]
    assert record["best"]["variant"] == "other:fp32"

    runs = len(timed(script))
    done = tune(*names)
    assert [row["decision"] for row in done.rows] == ["baseline", "keep", "drop", "keep", "keep"]
    # Of the set that was interrupted, the run that is on record is not run again.
    assert timed(script)[runs:].count("eager:fp32") == 2
    assert next(iter(tuned.read(bundle.path).values()))["finished"] is True


def _interrupting(resolve: Any, at: str) -> Any:
    def found(job: Any, variants: list[Variant]) -> Any:
        if str(variants[0]) == at:
            raise KeyboardInterrupt
        return resolve(job, variants)

    return found


@pytest.mark.parametrize(
    ("error", "verdict", "decision", "why"),
    [
        (ParityError("it disagrees"), "INVALID", "drop", "its gate failed: it disagrees"),
        (UsageError("no such operator"), "ERROR", "refine", "ERROR: no such operator"),
    ],
)
def test_an_engine_that_cannot_be_made_is_a_row(tune, monkeypatch, error, verdict, decision, why):
    monkeypatch.setitem(runtimes.RUNTIMES, "file", dataclasses.replace(runtimes.RUNTIMES["other"], format="onnx"))
    monkeypatch.setattr(tune_search, "export", _raising(error))
    row = tune("eager:fp32", "file:fp32").rows[1]
    assert (row["verdict"], row["decision"], row["why"]) == (verdict, decision, why)


def test_a_full_disk_ends_the_search(tune, monkeypatch):
    monkeypatch.setitem(runtimes.RUNTIMES, "file", dataclasses.replace(runtimes.RUNTIMES["other"], format="onnx"))
    monkeypatch.setattr(tune_search, "export", _raising(DiskFull("full")))
    with pytest.raises(DiskFull):
        tune("eager:fp32", "file:fp32")


def _raising(error: Exception) -> Callable[..., Any]:
    def export(*_: Any, **__: Any) -> Any:
        raise error

    return export


def test_an_engine_of_another_machine_is_built_again_beside_it(script, bundle, settings, tmp_path, monkeypatch):
    monkeypatch.setitem(runtimes.RUNTIMES, "file", dataclasses.replace(runtimes.RUNTIMES["other"], format="onnx"))
    asked = []
    monkeypatch.setattr(Bundle, "entry", lambda self, *what: what)
    monkeypatch.setattr(tune_search.rebuilding, "rebuild", lambda *given: asked.append(given[1:3]))
    search = tune_search.Search(bundle, "cpu", PLAN, settings, tmp_path, Budget(None, script.clock), script.launch)
    elsewhere = Candidate(Variant("file", "tf32"), "python", failure=Failure("ERROR", "for another GPU", exit_code=5))
    assert search._make(elsewhere) is None
    assert asked == [(("onnx", "fp32", 1), "cpu")]


def test_every_step_is_one_that_the_table_of_runtimes_has():
    for kind, found in STEPS.items():
        variants = [Variant.parse(step.variant) for step in found]
        for variant in variants:
            runtimes.check(variant)
            assert runtimes.refusal(variant, "cpu" if kind == "cpu" else "cuda:0") is None
        assert str(variants[0]) == "eager:fp32"
        assert len(set(variants)) == len(variants)
    assert {step.variant.partition(":")[0] for step in STEPS["cuda"]} == set(runtimes.RUNTIMES)
    assert [str(wider(Variant.parse(name))) for name in ("eager:fp16+graph", "aoti:fp16", "tensorrt:fp16", "eager:fp32")] == [
        "eager:tf32+graph",
        "aoti:fp32",
        "tensorrt:fp32",
        "None",
    ]


def test_a_budget_is_spelled_in_hours_minutes_and_seconds():
    assert [parse_budget(text) for text in ("90s", "10m", "1h", "1h30m", "1.5m")] == [90, 600, 3600, 5400, 90]
    for text in ("", "10", "ten minutes", "0s", "-5m", "5m1h"):
        with pytest.raises(UsageError, match="no budget"):
            parse_budget(text)


def test_a_damaged_record_is_refused_with_what_mends_it(tune, bundle):
    (bundle.path / "tuned.json").write_text('{"schema_version": 1, "tunings": {"a": {}}}')
    with pytest.raises(CorruptArtifact, match="lacks the key") as caught:
        tune("eager:fp32")
    assert "run accel tune again" in caught.value.remedy
