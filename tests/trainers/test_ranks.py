"""Several processes train as one would: the same gradient, one checkpoint, one log, one message when something fails."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("PIL.Image")

import ranked  # noqa: E402
from test_train_folder import draw  # noqa: E402

from accel.checkpoint import read_checkpoint  # noqa: E402
from accel.errors import ConfigError, DeviceUnavailable, UsageError  # noqa: E402
from accel.optional import installed  # noqa: E402
from accel.trainers import ranks, snapshot  # noqa: E402
from accel.trainers.ranks import ALONE, Ranks  # noqa: E402

if not torch.distributed.is_available():
    pytest.skip("this torch trains in one process only", allow_module_level=True)

CHILD = Path(ranked.__file__)
OPTIONS = ["--image-size", "8", "--batch-size", "16", "--epochs", "2", "--device", "cpu", "--limit", "48"]
LIMIT_S = 120


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", *ranks.VARIABLES)}
    return {**kept, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}


def torchrun(*command: str | Path, count: int = 2) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run([*launcher, *map(str, command)], env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False)


def two(*command: str | Path) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of two processes that nobody watches over."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={**environment(), **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ended = [process.communicate(timeout=LIMIT_S) for process in started]
    return [(process.returncode, *said) for process, said in zip(started, ended, strict=True)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("photos")
    for part, count in (("train", 30), ("val", 4)):
        draw(folder / part, {"bright": 200, "dark": 10}, count, ((8, 8),))
    return f"imagefolder:{folder}"


def loaded(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def test_two_processes_learn_what_one_does_go_on_as_they_began_and_stop_together(tmp_path):
    ended = two(CHILD, "loop", tmp_path)
    together, alone = loaded(tmp_path / "two.npz"), ranked.learned(ALONE)
    assert set(together) == set(alone)
    for name, want in alone.items():
        np.testing.assert_allclose(together[name], want, rtol=1e-5, atol=1e-6, err_msg=name)
    assert max(np.abs(alone[name]).max() for name in alone if name.startswith("grad.")) > 1e-2
    for name, compiled in loaded(tmp_path / "compiled.npz").items():
        np.testing.assert_allclose(compiled, alone[f"grad.{name}"], rtol=1e-5, atol=1e-6, err_msg=name)

    whole, again, other = (loaded(tmp_path / f"{name}.npz") for name in ("whole0", "again0", "whole1"))
    assert all(np.array_equal(whole[name], again[name]) for name in whole)
    assert np.array_equal(whole["6.weight"], other["6.weight"])
    assert not np.array_equal(whole["1.running_mean"], other["1.running_mean"])  # of each one's own part of the batches

    # On rank 1 the loss of the very last step is not a number: no gradient carries that to rank 0.
    assert [code for code, _, _ in ended] == [1, 1], ended
    said = "the training loss became nan in epoch 2, step 12 of 12; no checkpoint was written or changed"
    assert sum(text.count(said) for _, _, text in ended) == 1
    assert not any("Traceback" in text for _, _, text in ended), ended


def test_torchrun_trains_one_checkpoint_with_one_log_and_one_tracked_run(photos, tmp_path, monkeypatch):
    followed = ("--track", "mlflow") if installed("mlflow") and installed("sqlalchemy") else ()
    monkeypatch.setenv("ACCEL_RUNS_DIR", str(tmp_path))
    ran = torchrun("-m", "accel", "train", "student_a", "--dataset", photos, *OPTIONS, "--out", tmp_path / "whole", *followed)
    assert ran.returncode == 0, ran.stderr
    whole = read_checkpoint(tmp_path / "whole")
    assert ran.stdout == f"{tmp_path / 'whole'} (top-1 {whole.top1:.2f} %)\n"
    assert len(re.findall(r"^accel: epoch \d", ran.stderr, re.MULTILINE)) == 2
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["processes"] == 2
    with open(tmp_path / "whole" / "log.csv", newline="") as stream:
        assert [row["epoch"] for row in csv.DictReader(stream)] == ["1", "2"]
    files = {"weights.safetensors", "checkpoint.json", "recipe.toml", "log.csv", "log.jsonl", "run.json", "golden.npz", "settings.json"}
    files |= {"tracking.json"} if followed else set()
    assert {path.name for path in (tmp_path / "whole").iterdir()} == files
    if followed:
        with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
            assert store.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
            assert store.execute("SELECT step FROM metrics WHERE key = 'train_loss' ORDER BY step").fetchall() == [(1,), (2,)]


def test_one_process_that_runs_out_of_memory_ends_all_and_says_so_once(photos, tmp_path):
    command = ["train", "student_a", "--dataset", photos, *OPTIONS, "--out", tmp_path / "out"]
    ended = two(CHILD, "memory", *command)
    assert [code for code, _, _ in ended] == [1, 4], ended
    texts = [text for _, _, text in ended]
    assert "accel: rank 1 of 2: cpu ran out of memory training student_a with batch_size = 16\n  to mend it: --batch-size 8" in texts[1]
    assert "memory" not in texts[0]
    assert not any("Traceback" in text for text in texts), texts
    assert snapshot.read(tmp_path / "out")["epoch"] == 1


def test_a_process_that_nobody_started_with_others_is_alone(monkeypatch):
    for name in ("WORLD_SIZE", *ranks.VARIABLES):
        monkeypatch.delenv(name, raising=False)
    assert ranks.from_environment() is ALONE
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert ranks.from_environment() is ALONE
    with ranks.joined("cpu") as mine:
        assert mine is ALONE
    assert not torch.distributed.is_initialized()


def test_torchruns_variables_say_who_a_process_is_and_missing_ones_are_named(monkeypatch):
    given = {"WORLD_SIZE": "6", "RANK": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert ranks.from_environment() == Ranks(4, 6, 1, 3)
    assert not Ranks(4, 6, 1, 3).leads
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(UsageError, match="WORLD_SIZE = 6 asks for training in several processes: MASTER_ADDR not set") as caught:
        ranks.from_environment()
    assert "torchrun" in caught.value.remedy


def test_each_process_takes_the_gpu_of_its_local_rank(monkeypatch):
    mine = Ranks(3, 4, 1, 2)
    assert mine.device("cpu") == "cpu"
    assert ALONE.device("cuda:3") == "cuda:3"
    with pytest.raises(UsageError, match="cuda:0 was asked for in 4 processes"):
        mine.device("cuda:0")
    seen = {"available": False, "count": 0}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen["available"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen["count"])
    assert mine.device("auto") == "cpu"
    with pytest.raises(DeviceUnavailable, match=r"2 processes on this host ask for a GPU each; torch .* sees 0 GPUs"):
        mine.device("cuda")
    seen |= {"available": True, "count": 2}
    assert mine.device("auto") == mine.device("cuda") == "cuda:1"
    seen["count"] = 1
    with pytest.raises(DeviceUnavailable, match="sees 1 GPUs") as caught:
        mine.device("auto")
    assert caught.value.remedy == "--nproc-per-node 1"


def test_a_batch_that_cannot_be_shared_out_names_one_that_can():
    assert Ranks(0, 4).share(64) == 16
    with pytest.raises(ConfigError, match="batch_size = 50 cannot be shared out evenly among 4 processes") as caught:
        Ranks(0, 4).share(50)
    assert caught.value.remedy == "--batch-size 48"


def test_dropout_differs_by_rank_and_epoch_and_repeats(monkeypatch):
    def drawn(rank: int, epoch: int) -> float:
        Ranks(rank, 2).reseed(7, epoch)
        return float(torch.rand(()))

    assert len({drawn(rank, epoch) for rank in range(2) for epoch in range(3)}) == 6
    assert drawn(1, 2) == drawn(1, 2)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ALONE.reseed(7, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_of_several_is_resumed_by_as_many(tiny, tmp_path, monkeypatch):
    from accel.errors import IncompatibleArtifact

    inputs = {"dataset": "0" * 64, "teachers": [], "number of processes": 2}
    with pytest.raises(IncompatibleArtifact, match="was trained with the number of processes 2, and found 1"):
        snapshot.demand_same({"inputs": inputs}, {**inputs, "number of processes": 1}, tmp_path / "state.pt")


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_two_gpus_train_together_over_nccl(tmp_path, mode):
    if torch.cuda.device_count() < 2:
        pytest.skip("fewer than two GPUs")
    draw(tmp_path / "photos" / "train", {"bright": 200, "dark": 10}, 64, ((32, 32),))
    draw(tmp_path / "photos" / "val", {"bright": 200, "dark": 10}, 16, ((32, 32),))
    (tmp_path / "recipe.toml").write_text(f'compile = true\ncompile_mode = "{mode}"\naccumulate = 2\n')
    options = ["--image-size", "32", "--batch-size", "32", "--epochs", "30", "--recipe", tmp_path / "recipe.toml", "--device", "cuda"]
    ran = torchrun(
        "-m", "accel", "train", "resnet18", "--dataset", f"imagefolder:{tmp_path / 'photos'}", *options, "--out", tmp_path / "out"
    )
    assert ran.returncode == 0, ran.stderr
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert facts["processes"] == 2
    assert facts["compilation"]["used"], facts["compilation"]
    assert read_checkpoint(tmp_path / "out").top1 >= 75


@pytest.mark.gpu
def test_one_gpu_that_fails_ends_the_other_over_nccl(photos, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("fewer than two GPUs")
    options = [option if option != "cpu" else "cuda" for option in OPTIONS]
    failed = torchrun(CHILD, "memory", "train", "student_a", "--dataset", photos, *options, "--no-compile", "--out", tmp_path / "out")
    assert failed.returncode == 1
    assert failed.stderr.count("ran out of memory training student_a with batch_size = 16") == 1, failed.stderr
    assert snapshot.read(tmp_path / "out")["epoch"] == 1
