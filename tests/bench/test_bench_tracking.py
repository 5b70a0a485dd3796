"""`accel bench --track mlflow`: the set is followed from before it runs to its files, in a real SQLite store."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
mlflow = pytest.importorskip("mlflow", reason="the extra track is not installed")

from report.report_sets import write_set  # noqa: E402

from accel import api  # noqa: E402
from accel.api import benching  # noqa: E402
from accel.bench.results import open_results  # noqa: E402
from accel.errors import MissingError  # noqa: E402


def tracked(tiny: Path, monkeypatch: pytest.MonkeyPatch, run_set: Any) -> Any:
    """Bench the tiny bundle with `run_set` in the harness's place."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(benching, "run_set", run_set)
    return api.bench("tiny", "eager:fp32", device="cpu", track="mlflow", command="accel bench tiny")


def runs() -> list[Any]:
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{Path('runs/mlflow.db').resolve()}")
    return list(client.search_runs([client.get_experiment_by_name("accel-bench").experiment_id], order_by=["attributes.start_time DESC"]))


def test_a_set_is_tracked_from_its_plan_to_its_files(tiny: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("runs").mkdir()
    shutil.copy(empty_store, "runs/mlflow.db")

    def run_set(*given: Any, **named: Any) -> Any:
        assert [run.info.status for run in runs()] == ["RUNNING"]
        results = open_results(write_set(Path("set")))
        results.description["environment"] = {"cpu_model": "Some CPU"}
        (results.folder / "results.csv").write_text("")
        return results

    tracked(tiny, monkeypatch, run_set)
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.data.params["plan.name"] == "CPU quick plan"
    assert run.data.tags["accel.command"] == "accel bench tiny"
    assert run.data.metrics["host_us/p50_us/compile:fp16"] == pytest.approx(202, rel=1e-3)
    kept = Path("runs/mlartifacts") / run.info.run_id / "artifacts"
    assert {path.name for path in kept.iterdir()} == {"results.jsonl", "results.csv", "table.md"}

    def interrupted(*given: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tracked(tiny, monkeypatch, interrupted)
    assert [run.info.status for run in runs()] == ["KILLED", "FINISHED"]


def test_no_set_begins_without_its_store(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("ACCEL_TRACK_URI", "http://127.0.0.1:9")
    with pytest.raises(MissingError, match="cannot be used"):
        tracked(tiny, monkeypatch, lambda *given, **named: pytest.fail("a set began"))
