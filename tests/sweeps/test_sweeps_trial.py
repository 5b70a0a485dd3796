"""A trial as it is: trained in a process of its own, exported, timed by the harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("PIL.Image")
optuna = pytest.importorskip("optuna", reason="the extra sweep is not installed")

from accel import api, trainers  # noqa: E402
from accel.api import trial_process  # noqa: E402
from accel.api.trial_process import measure_apart  # noqa: E402
from accel.bench.results import open_results  # noqa: E402
from accel.errors import AccelError, DatasetMissing  # noqa: E402
from accel.types import Variant  # noqa: E402


@pytest.fixture
def photos(tmp_path: Path) -> str:
    from trainers.test_train_folder import draw

    draw(tmp_path / "photos" / "train", {"bright": 200, "dark": 10}, 30, ((8, 8),))
    return f"imagefolder:{tmp_path / 'photos'}"


def recipe(dataset: str) -> dict[str, Any]:
    changes = {"dataset": dataset, "image_size": 8, "batch_size": 16, "epochs": 1, "split": "45k/5k", "amp": "off"}
    return trainers.default_recipe("student_a").replaced(changes).to_dict()


@pytest.mark.slow
def test_a_sweep_trains_and_times_a_model_on_the_cpu(photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow, because it starts a process that imports torch to train and another to time, and exports between."""
    pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    shared = {"dataset": photos, "image_size": 8, "batch_size": 16}
    found = api.sweep("student_a", trials=1, epochs=1, overrides=shared, device="cpu", space={"lr": {"low": 0.01, "high": 0.02}})
    (row,) = found.rows
    assert (row["state"], row["front"], found.problem) == ("complete", "*", None)
    folder = tmp_path / "runs" / "sweeps" / "student_a" / "trial-0000"
    facts = json.loads((folder / "run.json").read_text())
    assert (row["top1"], facts["top1"]) == (facts["val_top1"], None)  # held-out images; the test set was not looked at
    (timed,) = (folder / "latency").iterdir()
    rows = open_results(timed).rows
    assert {item["variant"] for item in rows} == {"eager:fp32"}
    assert row["p50_us"] == pytest.approx(next(item["p50_us"] for item in rows if item["latency_kind"] == "host_us"))
    assert 0.01 <= trainers.read_recipe(folder / "recipe.toml").lr <= 0.02
    assert "epoch 1" in (folder / "trial.log").read_text()


@pytest.mark.gpu
def test_trials_on_a_gpu_are_timed_in_a_graph_with_nobody_beside_them(photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    monkeypatch.chdir(tmp_path)
    shared = {"dataset": photos, "image_size": 8, "batch_size": 16}
    found = api.sweep("student_a", trials=2, epochs=2, overrides=shared, device="cuda:0", min_top1=0.0)
    assert [row["state"] for row in found.rows] == ["complete", "complete"], found.rows
    (timed,) = (tmp_path / "runs" / "sweeps" / "student_a" / "trial-0001" / "latency").iterdir()
    rows = open_results(timed).rows
    assert {(item["variant"], item["verdict"]) for item in rows} == {("eager:fp32+graph", "UNVERIFIED")}
    assert not any(item["other_pids"] for item in rows)


def test_an_error_of_the_training_process_is_what_it_was(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissing, match="is not a folder"):
        measure_apart("student_a", recipe(f"imagefolder:{tmp_path / 'absent'}"), tmp_path / "out", "cpu", "eager:fp32", 1)


def test_a_training_process_that_dies_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(AccelError, match="ended with status 1") as caught:
        measure_apart("student_a", recipe("cifar10"), tmp_path / "out", "cpu", "eager:fp32", 1)
    assert caught.value.remedy == f"see {tmp_path / 'out' / 'trial.log'}"


def test_a_latency_that_was_refused_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from report.report_sets import write_set

    results = open_results(write_set(tmp_path / "set", {"eager:fp32": {"host_us": 100, "verdict": "INVALID", "reason": "another process"}}))
    monkeypatch.setattr(trial_process, "export", lambda *given, **named: [type("Done", (), {"bundle": tmp_path})])
    monkeypatch.setattr(trial_process, "bench", lambda *given, **named: type("Benched", (), {"results": results}))
    with pytest.raises(AccelError, match="eager:fp32 was not timed: INVALID, another process"):
        trial_process.latency(tmp_path, Variant.parse("eager:fp32"), "cpu", 1)
