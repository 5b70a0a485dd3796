"""What `--track mlflow` leaves in a real SQLite store, read back through MLflow's own client; and the logs that every run writes."""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
import shutil
import signal
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("mlflow", reason="the extra track is not installed")

from accel import api, tracking, trainers  # noqa: E402
from accel.api.tracking import of_set, parameters  # noqa: E402
from accel.bench.plan import MeasurementPlan  # noqa: E402
from accel.bench.results import open_results  # noqa: E402
from accel.errors import AccelError, ConfigError, MissingError, UnknownName  # noqa: E402
from accel.files import sha256_file  # noqa: E402
from accel.tracking import MlflowTracker  # noqa: E402
from accel.trainers import loop  # noqa: E402


@pytest.fixture
def world(tiny: Any, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose `runs/mlflow.db` is there; the tiny model is trained as if accel had a recipe for it."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_") and name not in tracking.LIMITS]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainers, "default_recipe", lambda name: tiny)
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_store, tmp_path / "runs" / "mlflow.db")
    return tmp_path


def client(folder: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'runs' / 'mlflow.db'}")


def runs(folder: Path, experiment: str = "accel") -> list[Any]:
    """Of an experiment, the newest first."""
    asked = client(folder)
    return list(asked.search_runs([asked.get_experiment_by_name(experiment).experiment_id], order_by=["attributes.start_time DESC"]))


def history(folder: Path, run: Any, metric: str) -> list[tuple[int, float]]:
    return sorted((item.step, item.value) for item in client(folder).get_metric_history(run.info.run_id, metric))


def train(**given: Any) -> Any:
    return api.train("tiny", device="cpu", track="mlflow", **given)


def in_epoch(number: int, monkeypatch: pytest.MonkeyPatch, action: Any) -> None:
    """`action` is called once an epoch, with its number counted from 1, before its row is logged; what it raises ends the run."""
    real = loop.stop_unless_finite

    def stop(losses: list[float], epoch: int) -> None:
        if epoch + 1 == number:
            action()
        real(losses, epoch)

    monkeypatch.setattr(loop, "stop_unless_finite", stop)


def interrupted() -> None:
    raise KeyboardInterrupt


def terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_tracked_run_is_read_back_whole(world: Path) -> None:
    checkpoint = train(overrides={"accumulate": 2})
    (run,) = runs(world)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "tiny")

    recipe = {"model": "tiny", "lr": "0.2", "amp": "off", "batch_size": "64", "accumulate": "2", "loader": "gpu", "teacher": ""}
    around = {"workers": "0", "images_per_update": "128", "train_images": "200", "processes": "1", "device": "cpu"}
    compiled = {"compilation.used": "False", "compilation.reason": "not compiled on a CPU", "versions.torch": version("torch")}
    assert {**recipe, **around, **compiled}.items() <= run.data.params.items()

    with open("runs/tiny/log.csv", newline="") as stream:
        logged = list(csv.DictReader(stream))
    seen = history(world, run, "train_loss")
    assert [(str(step), f"{value:.6g}") for step, value in seen] == [(row["epoch"], row["train_loss"]) for row in logged]
    assert run.data.metrics["top1"] == checkpoint.top1
    assert {"lr", "train_top1", "images_per_s", "epoch_s", "test_top1"} - run.data.metrics.keys() == {"test_top1"}

    kept = world / "runs" / "mlartifacts" / run.info.run_id / "artifacts"
    assert {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()} == {
        "recipe.toml",
        "log.csv",
        "log.jsonl",
        "run.json",
        "checkpoint/weights.safetensors",
        "checkpoint/checkpoint.json",
    }
    assert sha256_file(kept / "checkpoint" / "weights.safetensors") == checkpoint.sha256
    assert json.loads((world / "runs/tiny/tracking.json").read_text())["run_id"] == run.info.run_id


def test_the_log_is_csv_and_one_object_of_json_an_epoch_tracked_or_not(world: Path) -> None:
    api.train("tiny", device="cpu")
    with open("runs/tiny/log.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    objects = [json.loads(line) for line in Path("runs/tiny/log.jsonl").read_text().splitlines()]
    assert [item["epoch"] for item in objects] == [1, 2]
    assert list(objects[0]) == list(table[0])
    assert (objects[0]["test_top1"], objects[0]["val_top1"]) == (None, None)
    assert f"{objects[1]['test_top1']:.6g}" == table[1]["test_top1"]
    assert not list(Path("runs/tiny").glob("*.partial.*"))
    assert not Path("runs/tiny/tracking.json").exists()


def test_a_run_that_fails_says_so_with_its_reason(world: Path) -> None:
    with pytest.raises(AccelError, match="loss became"):
        train(overrides={"lr": 1e30})
    (run,) = runs(world)
    assert run.info.status == "FAILED"
    assert "the training loss became" in run.data.tags["accel.error"]


@pytest.mark.parametrize(("how", "raised"), [(interrupted, KeyboardInterrupt), (terminated, SystemExit)], ids=["Ctrl-C", "SIGTERM"])
def test_a_killed_run_is_marked_as_killed_and_goes_on_as_the_same_run(world: Path, monkeypatch: pytest.MonkeyPatch, how, raised) -> None:
    with monkeypatch.context() as patch:
        in_epoch(2, patch, how)
        with pytest.raises(raised):
            train(overrides={"epochs": 3})
    (run,) = runs(world)
    assert run.info.status == "KILLED"
    assert [step for step, _ in history(world, run, "train_loss")] == [1]

    train(resume=True)
    (again,) = runs(world)
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    assert [step for step, _ in history(world, again, "train_loss")] == [1, 2, 3]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_next_run_marks_one_that_was_killed_outright(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        in_epoch(2, patch, interrupted)
        patch.setattr(MlflowTracker, "fail", lambda self, error: None)  # SIGKILL leaves no time for it
        with pytest.raises(KeyboardInterrupt):
            train()
    assert [run.info.status for run in runs(world)] == ["RUNNING"]
    train()
    assert [run.info.status for run in runs(world)] == ["FINISHED", "KILLED"]


def test_a_store_that_cannot_be_reached_refuses_the_run_before_it_begins(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCEL_OFFLINE", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with pytest.raises(MissingError, match=r"store http://me:\*\*\*@127.0.0.1:9 cannot be used") as caught:
        train()
    assert "secret" not in str(caught.value)
    assert not Path("runs/tiny").exists()


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "./mlruns"])
def test_a_folder_of_files_is_refused_with_what_to_name(world: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match="folder of files") as caught:
        train()
    assert "sqlite:///" in caught.value.remedy


def test_offline_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCEL_OFFLINE", "1")
    tracking.check_uri("sqlite:////tmp/mlflow.db")
    with pytest.raises(ConfigError, match="ACCEL_OFFLINE"):
        tracking.check_uri("https://mlflow.example")


def test_another_store_is_unknown() -> None:
    with pytest.raises(UnknownName, match="wandb"):
        api.train("resnet18", track="wandb")


class Flaky:
    """MLflow's client, whose requests fail between two moments."""

    def __init__(self, real: Any) -> None:
        self.real, self.down, self.asked = real, False, 0

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            self.asked += self.down
            if self.down:
                raise OSError(errno.ECONNREFUSED, "Connection refused")
            return getattr(self.real, name)(*given, **named)

        return call


@pytest.mark.parametrize("returns", [False, True])
def test_a_store_that_fails_later_costs_one_warning_and_no_run(world: Path, monkeypatch: pytest.MonkeyPatch, caplog, returns: bool) -> None:
    flaky: list[Flaky] = []
    real = MlflowTracker.open

    def opened(self: MlflowTracker) -> None:
        real(self)
        self._client = Flaky(self._client)
        flaky.append(self._client)

    monkeypatch.setattr(MlflowTracker, "open", opened)
    in_epoch(2, monkeypatch, lambda: setattr(flaky[0], "down", True))
    if returns:
        real_test = trainers.run.top1

        def answers_again(*given: Any) -> Any:
            flaky[0].down = False
            return real_test(*given)

        monkeypatch.setattr(trainers.run, "top1", answers_again)
    checkpoint = train(overrides={"epochs": 4})
    assert checkpoint.top1 is not None
    (run,) = runs(world)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING and "tracking store" in record.message]
    assert "Connection refused; the run goes on" in warned[0]
    if returns:
        assert flaky[0].asked == 1  # nothing was tried while it was down but once
        assert "answers again" in warned[1]
        assert (run.info.status, [step for step, _ in history(world, run, "train_loss")]) == ("FINISHED", [1, 2, 3, 4])
    else:
        assert len(warned) == 1
        assert (run.info.status, [step for step, _ in history(world, run, "train_loss")]) == ("RUNNING", [1])


def test_the_store_is_the_first_of_accels_variable_mlflows_variable_the_file_and_the_runs_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    from accel.api.tracking import address, artifacts

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert address("", "default", Path("/r")) == "sqlite:////r/mlflow.db"
    assert address("sqlite:////f.db", "accel.toml:3", Path("/r")) == "sqlite:////f.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert address("sqlite:////f.db", "accel.toml:3", Path("/r")) == "http://server"
    assert address("sqlite:////e.db", "ACCEL_TRACK_URI", Path("/r")) == "sqlite:////e.db"
    assert artifacts("sqlite:////data/x/e.db", Path("/r")) == Path("/data/x/mlartifacts")
    assert artifacts("postgresql://host/db", Path("/r")) == Path("/r/mlartifacts")


def test_names_that_differ_in_a_sign_alone_stay_apart() -> None:
    assert tracking.allowed("top1/tensorrt:fp16-graph") == "top1/tensorrt:fp16-graph"
    assert tracking.allowed("top1/eager:fp16+graph") == "top1/eager:fp16.graph"
    assert tracking.flattened({"a": {"b": [1, 2], "c": None}, "d": True}) == {"a.b": "[1, 2]", "d": "True"}


def test_a_finished_set_is_read_back_with_its_plan_machine_and_percentiles(world: Path) -> None:
    from report.report_sets import write_set

    results = open_results(write_set(world / "set"))
    results.description["environment"] = {"gpu_name": "NVIDIA H200", "versions": {"torch": "2.15.0"}}
    uri = f"sqlite:///{world / 'runs' / 'mlflow.db'}"
    follower = MlflowTracker(uri, experiment="accel-bench", artifacts=world / "mlartifacts", tags={})
    with tracking.followed(follower):
        follower.start("resnet18 cuda:0", parameters("resnet18", "cuda:0", MeasurementPlan()))
        follower.finish(*of_set(results), [(world / "set" / "results.jsonl", "")])
    (run,) = runs(world, "accel-bench")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["host_us/p50_us/compile:fp16"] == pytest.approx(202, rel=1e-3)
    assert run.data.metrics["top1/eager:fp32"] == 95.22
    assert {f"device_us/{name}/eager:fp16" for name in ("p50_us", "p95_us", "mean_us")} <= run.data.metrics.keys()
    wanted = {"plan.iterations": "2000", "machine.gpu_name": "NVIDIA H200", "machine.versions.torch": "2.15.0"}
    wanted |= {"verdict/compile:fp16": "OK", "verdict/torchscript:fp16": "INVALID", "verdict/tensorrt:fp16": "MISSING"}
    assert wanted.items() <= run.data.params.items()
    assert [item.path for item in client(world).list_artifacts(run.info.run_id)] == ["results.jsonl"]
