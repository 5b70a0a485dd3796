"""One worker and its study: what counts, what stops, what is kept, and what is shown."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

optuna = pytest.importorskip("optuna", reason="the extra sweep is not installed")

from accel import api  # noqa: E402
from accel.api import sweeping  # noqa: E402
from accel.errors import AccelError, AccuracyGate, ConfigError, DatasetMissing, MissingError, UnknownName, UsageError  # noqa: E402
from accel.sweeps import space, store, study  # noqa: E402
from accel.sweeps.rows import rows  # noqa: E402
from accel.sweeps.study import Outcome  # noqa: E402

FIXED = dict.fromkeys(["weight_decay", "label_smoothing", "mixup", "ema_decay", "epochs"], False)
SPACE = {**FIXED, "lr": {"low": 0.01, "high": 1.0, "log": True}, "cutout": {"choices": [0, 8]}}
Setting = Mapping[str, Any]


def worth(model: str, values: Setting, number: int) -> Outcome:
    return Outcome(top1=90 - 10 * abs(values["lr"] - 0.3), p50_us=100 + values["cutout"] + 50 * values["lr"])


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sweep(objective: study.Objective = worth, **given: Any) -> sweeping.Swept:
    return api.sweep(given.pop("model", "resnet18"), **{"trials": 4, "space": SPACE, "device": "cpu", **given}, objective=objective)


def opened(place: str = "runs/sweeps/resnet18/journal.log") -> Any:
    return optuna.load_study(study_name="resnet18", storage=store.open_storage(place))


def rates(found: sweeping.Swept) -> list[float]:
    return [row["lr"] for row in found.rows if row["state"] in ("complete", "infeasible")]


def test_the_front_is_what_no_feasible_trial_beats_in_both() -> None:
    worths = iter([(90.0, 200.0), (95.0, 100.0), (95.5, 300.0), (99.0, 90.0), (80.0, 50.0), (94.0, 100.0)])
    found = sweep(lambda *_: Outcome(*next(worths)), trials=6, min_top1=85.0)
    assert [row["state"] for row in found.rows] == ["complete"] * 4 + ["infeasible", "complete"]
    assert [row["trial"] for row in found.rows if row["front"]] == [3]
    assert found.problem is None
    assert found.columns == ("trial", "state", "front", "top1", "p50_us", "lr", "cutout")


def test_a_floor_that_nobody_reaches_is_a_failed_gate() -> None:
    found = sweep(min_top1=99.0)
    assert isinstance(found.problem, AccuracyGate)
    assert not any(row["front"] for row in found.rows)
    assert "no trial reaches 99 %" in str(found.problem)


def test_a_setting_that_fails_is_on_record_with_its_reason_and_the_next_is_tried() -> None:
    def objective(model: str, values: Setting, number: int) -> Outcome:
        if number == 1:
            raise AccelError("the training loss became nan")
        if number == 2:
            raise MissingError("cuda:0 ran out of memory")
        return worth(model, values, number)

    found = sweep(objective)
    assert [(row["state"], row["reason"]) for row in found.rows] == [
        ("complete", None),
        ("failed", "the training loss became nan"),
        ("failed", "cuda:0 ran out of memory"),
        ("complete", None),
    ]
    assert found.columns[-1] == "reason"


def test_an_error_that_every_trial_would_have_stops_the_sweep_at_once_and_counts_as_none() -> None:
    begun = []

    def objective(model: str, values: Setting, number: int) -> Outcome:
        begun.append(number)
        raise DatasetMissing("cifar10 is not in the cache", remedy="accel data fetch cifar10")

    with pytest.raises(DatasetMissing):
        sweep(objective)
    assert begun == [0]
    assert len(rates(sweep(resume=True))) == 4


def test_a_sweep_of_which_everything_fails_ends_early_with_the_first_reason() -> None:
    begun = []

    def objective(model: str, values: Setting, number: int) -> Outcome:
        begun.append(number)
        raise ConfigError(f"batch_size is more than the images ({number})")

    with pytest.raises(AccelError, match=r"all 5 trials failed, the first because: batch_size is more than the images \(0\)"):
        sweep(objective, trials=20)
    assert len(begun) == 5


def test_an_error_that_is_not_ours_leaves_its_trial_on_record() -> None:
    def objective(model: str, values: Setting, number: int) -> Outcome:
        raise ZeroDivisionError("division by zero")

    with pytest.raises(ZeroDivisionError):
        sweep(objective)
    (row,) = rows(opened())
    assert (row["state"], row["reason"]) == ("failed", "ZeroDivisionError: division by zero")


def test_an_interrupt_keeps_what_is_finished_and_the_setting_that_ran_is_tried_again() -> None:
    interrupted = []

    def objective(model: str, values: Setting, number: int) -> Outcome:
        if number == 2 and not interrupted:
            interrupted.append(values["lr"])
            raise KeyboardInterrupt
        return worth(model, values, number)

    with pytest.raises(KeyboardInterrupt):
        sweep(objective)
    assert [row["state"] for row in rows(opened())] == ["complete", "complete", "lost", "waiting"]
    found = sweep(objective, resume=True)
    assert [row["state"] for row in found.rows] == ["complete", "complete", "lost", "complete", "complete"]
    assert rates(found)[2] == interrupted[0]


def test_a_study_that_exists_is_refused_unless_it_is_to_be_resumed_and_then_goes_on() -> None:
    first = sweep(trials=3)
    with pytest.raises(UsageError, match=r"there is a study resnet18 in .*journal\.log already") as caught:
        sweep(trials=3)
    assert caught.value.remedy.startswith("--resume goes on with it")
    more = sweep(trials=5, resume=True)
    assert rates(more)[:3] == rates(first)
    assert len(rates(more)) == 5
    assert rates(sweep(trials=5, study_name="other")) == rates(more)  # in one go, by the same seed
    assert rates(sweep(trials=2, resume=True)) == rates(more)  # nothing is left to do


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"min_top1": 90.0}, "min_top1 = None, and 90.0"),
        ({"overrides": {"limit": 7}}, "recipes.resnet18.limit = 0, and 7 was"),
        ({"runtime": "eager:bf16"}, "timed"),
    ],
)
def test_what_would_not_compare_with_the_trials_of_a_study_is_refused(changed: dict[str, Any], said: str) -> None:
    sweep(trials=1)
    with pytest.raises(UsageError, match=said):
        sweep(resume=True, **changed)


def test_another_machine_is_refused_because_its_latencies_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(trials=1)
    monkeypatch.setattr("accel.device.name", lambda device: "Another CPU")
    with pytest.raises(UsageError, match=r"has device = .*, and Another CPU was asked for"):
        sweep(resume=True)


def test_the_seed_decides_what_is_tried() -> None:
    assert rates(sweep(study_name="one")) == rates(sweep(study_name="two"))
    assert rates(sweep(study_name="one", resume=True)) != rates(sweep(study_name="three", seed=1))


def test_of_two_workers_that_both_took_the_last_trial_the_later_gives_way() -> None:
    sweep(trials=1)
    found = opened()
    found.ask()  # another worker's, which runs
    late = found.ask()
    spaces = {"resnet18": {"lr": space.Parameter(0.1, 0.2)}}
    with pytest.raises(study.Passed):
        study._attempt(found, late, spaces, worth, 2, None)
    found.tell(late, state=optuna.trial.TrialState.FAIL)
    assert [store.state(trial) for trial in found.get_trials()] == ["complete", "running", "surplus"]
    assert [row["trial"] for row in rows(found)] == [0, 1]


def test_a_process_is_known_by_host_boot_number_and_start() -> None:
    own = store.here()
    assert store.alive(own) is True
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert store.alive({**own, "pid": gone.pid}) is False
    assert store.alive({**own, "started": "1"}) is False  # its number is another's now
    assert store.alive({**own, "boot": "an earlier one"}) is False
    assert store.alive({**own, "host": "another"}) is None
    assert store.alive({**own, "space": "another container"}) is None


def test_what_another_host_was_at_is_left_alone_until_it_is_taken_over() -> None:
    sweep(trials=1)
    elsewhere = opened().ask()
    elsewhere.suggest_float("lr", 0.01, 1.0, log=True)
    elsewhere.set_user_attr(store.WORKER, {**store.here(), "host": "another"})
    assert [row["state"] for row in sweep(trials=2, resume=True).rows] == ["complete", "running"]
    found = sweep(trials=2, resume=True, take_over=True)
    assert [row["state"] for row in found.rows] == ["complete", "lost", "complete"]
    assert found.rows[1]["reason"] == "its process ended on another"
    assert found.rows[2]["lr"] == found.rows[1]["lr"]


def test_a_setting_that_kills_its_process_three_times_has_failed() -> None:
    sweep(trials=1)
    for _ in range(store.MOST_ATTEMPTS):
        trial = opened().ask()
        trial.suggest_float("lr", 0.01, 1.0, log=True)
        trial.set_user_attr(store.WORKER, {**store.here(), "started": "1"})
        store.reap(opened())
    found = sweep(trials=3, resume=True)
    assert [row["state"] for row in found.rows] == ["complete", "lost", "lost", "failed", "complete"]


def test_a_database_takes_a_worker_for_dead_whose_heartbeat_has_stopped(tmp_path: Path) -> None:
    place = f"sqlite:///{tmp_path / 'study.db'}"
    sweep(trials=1, storage=place)
    elsewhere = opened(place).ask()
    rate = elsewhere.suggest_float("lr", 0.01, 1.0, log=True)
    elsewhere.set_user_attr(store.WORKER, {**store.here(), "host": "another"})
    elsewhere.storage.record_heartbeat(elsewhere._trial_id)
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', ?)", (f"-{store.GRACE_S + 1} seconds",))
    found = sweep(trials=3, storage=place, resume=True)
    assert [row["state"] for row in found.rows if row["lr"] == rate] == ["lost", "complete"]
    assert [row["state"] for row in found.rows].count("complete") == 3


def test_of_several_models_each_has_a_space_of_its_own() -> None:
    tried: dict[str, list[Setting]] = {"student_a": [], "student_b": []}

    def objective(model: str, values: Setting, number: int) -> Outcome:
        tried[model].append(values)
        return Outcome(50, {"student_a": 10.0, "student_b": 20.0}[model])

    found = sweep(objective, model="student_a,student_b", space={**SPACE, "student_b": {"lr": {"low": 5.0, "high": 6.0}}}, trials=8)
    assert all(values["lr"] <= 1 for values in tried["student_a"])
    assert all(5 <= values["lr"] <= 6 for values in tried["student_b"])
    assert {row["model"] for row in found.rows} == {"student_a", "student_b"}
    assert found.columns == ("trial", "state", "front", "top1", "p50_us", "model", "lr", "cutout")


@pytest.mark.parametrize("sampler", study.SAMPLERS)
def test_both_samplers_go_beyond_their_random_start(sampler: str) -> None:
    def objective(model: str, values: Setting, number: int) -> Outcome:
        away = abs(values["lr"] - 0.3)
        return Outcome(90 - away, 100 + away)

    found = rates(sweep(objective, trials=60, sampler=sampler))
    assert len(set(found[-12:]) - set(found[:-12])) >= 3
    assert sum(abs(rate - 0.3) for rate in found[-12:]) < 0.8 * sum(abs(rate - 0.3) for rate in found[:12])


def test_names_that_do_not_exist_are_refused_before_anything_is_written() -> None:
    for wrong in ({"model": "resnet19"}, {"sampler": "grid"}, {"runtime": "cafe:fp32"}, {"plot": "front.bmp"}, {"trials": 0}):
        with pytest.raises((UnknownName, UsageError)):
            sweep(**wrong)
    with pytest.raises(MissingError, match="cannot be used"):
        sweep(storage="sqlite:////nowhere/at/all/study.db")
    with pytest.raises(MissingError, match=r"storage firebird://me:\*\*\*@host/db cannot be used"):
        sweep(storage="firebird://me:secret@host/db")


def test_the_command_prints_the_trials_draws_the_front_and_ends_with_130_on_ctrl_c(
    accel_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "space.toml").write_text("".join(f"{field} = false\n" for field in FIXED) + "[cutout]\nchoices = [0, 8]\n")

    def measure(self: Any, model: str, values: Setting, number: int) -> Outcome:
        if number == 2 and not Path("interrupted").exists():
            Path("interrupted").touch()
            raise KeyboardInterrupt
        return worth(model, values, number)

    monkeypatch.setattr(sweeping.Trials, "measure", measure)
    command = ["sweep", "resnet18", "--trials", "4", "--space", "space.toml", "--device", "cpu", "--plot", "front.png", "--format"]
    ran = accel_cli(*command, "csv")
    assert (ran.code, ran.out) == (130, "")
    ran = accel_cli(*command, "csv", "--resume")
    assert ran.code == 0, ran.err
    table = list(csv.DictReader(io.StringIO(ran.out)))
    assert [row["state"] for row in table] == ["complete", "complete", "lost", "complete", "complete"]
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads(accel_cli(*command, "json", "--resume").out)) == 5


OPTIONS = (
    "m --trials 3 --storage s --study n --resume --take-over --min-top1 1 --epochs 2 --space f --sampler nsga2 --runtime eager:fp32 "
    "--rounds 2 --recipe r --dataset d --image-size 8 --batch-size 9 --limit 10 --seed 1 --device cpu --plot p.svg"
)


def test_every_option_reaches_the_api(accel_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import inspect

    parameters = inspect.signature(api.sweep).parameters
    seen: dict[str, Any] = {}

    def record(model: str, **named: Any) -> None:
        seen.update(named, model=model)
        raise UsageError("recorded")

    monkeypatch.setitem(api.__dict__, "sweep", record)
    assert accel_cli("sweep", *OPTIONS.split()).code == 2
    assert seen.keys() == parameters.keys() - {"objective"}
    assert [name for name, value in seen.items() if value == parameters[name].default and name != "progress"] == []
    assert seen["overrides"] == {"dataset": "d", "image_size": 8, "batch_size": 9, "limit": 10}
