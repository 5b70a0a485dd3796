"""Processes that share one study, of which one is killed and started again: real processes, real stores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

optuna = pytest.importorskip("optuna", reason="the extra sweep is not installed")

import sweep_worker  # noqa: E402

from accel.sweeps import store  # noqa: E402
from accel.sweeps.rows import rows  # noqa: E402

LIMIT_S = 120


def started(folder: Path, *arguments: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, sweep_worker.__file__, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Any]:
    running = []

    def start(*arguments: Any) -> subprocess.Popen[str]:
        running.append(started(tmp_path, *arguments))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def until_it_hangs(process: subprocess.Popen[str]) -> tuple[int, float]:
    """The trial that the worker hangs in: number and learning rate."""
    last = ""
    for line in process.stdout:
        if line.strip() == "hanging":
            return int(last.split()[0]), float(last.split()[1])
        last = line
    raise AssertionError(process.stderr.read())


def settings_of(study: Any, state: str) -> list[float]:
    return [trial.params["lr"] for trial in study.get_trials() if store.state(trial) == state]


@pytest.mark.parametrize("kind", ["journal", "database"])
def test_two_workers_of_which_one_is_killed_and_started_again_end_with_every_trial_once(kind: str, worker: Any, tmp_path: Path) -> None:
    place = str(tmp_path / "study.log") if kind == "journal" else f"sqlite:///{tmp_path / 'study.db'}"
    wanted = 7
    first = worker(place, wanted, 3)
    number, rate = until_it_hangs(first)
    second = worker(place, wanted, 4)
    until_it_hangs(second)  # both are at work now
    first.send_signal(signal.SIGKILL)
    first.wait(LIMIT_S)

    again = worker(place, wanted)
    out, err = again.communicate(timeout=LIMIT_S)
    assert again.returncode == 0, err
    assert f"trial {number}: its process is dead; its setting is tried again" in err
    assert out.splitlines()[0].endswith(repr(rate))

    second.stdin.close()  # it hangs no more
    assert second.wait(LIMIT_S) == 0, second.stderr.read()
    study = optuna.load_study(study_name="resnet18", storage=store.open_storage(place))
    complete = settings_of(study, "complete")
    assert len(complete) == len(set(complete)) == wanted
    assert settings_of(study, "lost") == [rate]
    assert complete.count(rate) == 1
    assert not settings_of(study, "running")
    assert not settings_of(study, "waiting")
    shown = {row["trial"]: row for row in rows(study)}
    assert shown[number]["state"] == "lost"
    for row in shown.values():
        if row["state"] == "complete":
            assert (row["top1"], row["p50_us"]) == (sweep_worker.worth(row).top1, sweep_worker.worth(row).p50_us)
