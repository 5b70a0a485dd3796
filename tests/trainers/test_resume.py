"""A run that is killed goes on as if it had not been; whatever ends it, its last whole epoch stays."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from accel import datasets, trainers  # noqa: E402
from accel.checkpoint import read_checkpoint  # noqa: E402
from accel.errors import AccelError, ConfigError, CorruptArtifact, DiskFull, IncompatibleArtifact, MissingError  # noqa: E402
from accel.trainers import snapshot, train  # noqa: E402
from accel.trainers.run import Log  # noqa: E402

EPOCHS = 3


class Killed(Exception):
    pass


def killed_after(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run ends once the state of `epoch` (counted from 1) is on the disk, in the midst of the one after."""
    from accel.trainers import loop

    real = loop.stop_unless_finite

    def stop(losses, number):
        if number == epoch:
            monkeypatch.setattr(loop, "stop_unless_finite", real)
            raise Killed
        real(losses, number)

    monkeypatch.setattr(loop, "stop_unless_finite", stop)


def without_times(path: Path) -> list[list[str]]:
    return [line.split(",")[:-3] for line in path.read_text().splitlines()]


def test_the_log_of_a_run_that_was_begun_before_a_column_was_there_goes_on_with_it_empty(tmp_path):
    old = {"epoch": 1, "lr": 0.1, "train_loss": 2.0, "train_top1": 30.0, "val_top1": None, "test_top1": None}
    log = Log(tmp_path, [{**old, "images_per_s": 100.0, "epoch_s": 1.5}])
    log.add({**old, "epoch": 2, "images_per_s": 200.0, "epoch_s": 0.5, "data_wait_s": 0.25})
    lines = log.texts()["log.csv"].splitlines()
    assert [line.split(",")[-2:] for line in lines] == [["epoch_s", "data_wait_s"], ["1.5", ""], ["0.5", "0.25"]]


@pytest.mark.parametrize(
    "changes",
    [
        {"flip": "random", "amp": "bf16"},
        {"optimizer": "muon", "accumulate": 2, "mixup": 0.3, "randaugment": 1, "rotation": 10.0},
        {"optimizer": "adamw", "lr": 0.01, "split": "45k/5k", "schedule": "triangular"},
    ],
    ids=["sgd", "muon", "adamw"],
)
@pytest.mark.parametrize("epoch", [1, EPOCHS - 1])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tiny, tmp_path, monkeypatch, changes, epoch):
    wanted = {"epochs": EPOCHS, **changes}
    whole = train("tiny", recipe=tiny, overrides=wanted, out=tmp_path / "whole", device="cpu")
    killed_after(epoch, monkeypatch)
    with pytest.raises(Killed):
        train("tiny", recipe=tiny, overrides=wanted, out=tmp_path / "cut", device="cpu")
    assert not (tmp_path / "cut" / "checkpoint.json").exists()
    torch.manual_seed(99)  # another process would not have this one's generator
    steps = []
    resumed = train("tiny", recipe=tiny, out=tmp_path / "cut", device="cpu", resume=True, progress=lambda *told: steps.append(told))
    assert resumed.sha256 == whole.sha256
    assert resumed.top1 == whole.top1
    assert resumed.recipe == whole.recipe
    assert without_times(tmp_path / "cut" / "log.csv") == without_times(tmp_path / "whole" / "log.csv")
    assert not (tmp_path / "cut" / "state.pt").exists()
    assert not (tmp_path / "whole" / "state.pt").exists()


def test_a_run_that_ended_while_it_was_tested_trains_no_more(tiny, tmp_path, monkeypatch):
    whole = train("tiny", recipe=tiny, out=tmp_path / "whole", device="cpu")

    def full(self, *, test_top1):
        raise DiskFull("no space")

    with monkeypatch.context() as patch:
        patch.setattr(Log, "finish", full)
        with pytest.raises(DiskFull):
            train("tiny", recipe=tiny, out=tmp_path / "cut", device="cpu")
    steps = []
    resumed = train("tiny", out=tmp_path / "cut", recipe=tiny, device="cpu", resume=True, progress=lambda *told: steps.append(told[0]))
    assert resumed.sha256 == whole.sha256
    assert "train" not in steps


def test_a_full_disk_leaves_the_state_of_the_epoch_before(tiny, tmp_path, monkeypatch):
    real, written = Path.write_bytes, []

    def write_bytes(self, data):
        written.append(self.name)
        if len(written) == 2:
            real(self, bytes(data)[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(DiskFull, match=r"state\.pt") as caught:
        train("tiny", recipe=tiny, overrides={"epochs": 3}, out=tmp_path, device="cpu")
    assert caught.value.exit_code == 4
    assert snapshot.read(tmp_path)["epoch"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.partial.csv", "log.partial.jsonl", "state.pt"]


@pytest.mark.parametrize("name", ["weights.safetensors", "checkpoint.json"])
def test_a_disk_that_fills_up_under_a_file_of_the_checkpoint_leaves_the_old_one_and_the_state(tiny, tmp_path, name):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    before = train("tiny", recipe=tiny, out=tmp_path, device="cpu")
    (tmp_path / f".{name}.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(DiskFull, match=rf"no space left on the disk while writing .*{re.escape(name)}") as caught:
        train("tiny", recipe=tiny, overrides={"seed": 1}, out=tmp_path, device="cpu")
    assert caught.value.exit_code == 4
    assert "free some space" in caught.value.remedy
    assert read_checkpoint(tmp_path).sha256 == before.sha256
    assert snapshot.read(tmp_path)["epoch"] == 2
    assert train("tiny", recipe=tiny, out=tmp_path, device="cpu", resume=True).seed == 1


KILLED = """
import os, signal, sys
from trainable_net import TINY, pictures
from accel import datasets, trainers
from accel.cli import main
from accel.trainers import loop
trainers.MODELS["tiny"] = "trainable_net:build"
trainers.default_recipe = lambda name: TINY
datasets.load = lambda name, split: pictures({"train": 200, "test": 50}[split], split)
folder, by, during = sys.argv[1], signal.Signals[sys.argv[2]], int(sys.argv[3])
real = loop.stop_unless_finite
def stop(losses, epoch):
    real(losses, epoch)
    if epoch == during:
        os.kill(os.getpid(), by)
loop.stop_unless_finite = stop
sys.exit(main(["train", "tiny", "--epochs", "3", "--seed", "1", "--out", folder, "--device", "cpu"]))
"""
"""FOLDER SIGNAL EPOCH: `accel train` gets the signal in the midst of EPOCH, counted from 0."""


def run_killed(folder: Path, by: str, during: int) -> subprocess.CompletedProcess[str]:
    threads = str(torch.get_num_threads())  # sums are rounded by how they are shared out
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": threads}
    command = [sys.executable, "-c", KILLED, folder, by, str(during)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_process_that_is_killed_leaves_the_old_checkpoint_and_a_state_to_go_on_from(tiny, tmp_path):
    before = train("tiny", recipe=tiny, out=tmp_path / "cut", device="cpu")
    ran = run_killed(tmp_path / "cut", "SIGKILL", 1)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    assert read_checkpoint(tmp_path / "cut").sha256 == before.sha256
    assert snapshot.read(tmp_path / "cut")["epoch"] == 1
    resumed = train("tiny", recipe=tiny, out=tmp_path / "cut", device="cpu", resume=True)
    whole = train("tiny", recipe=tiny, overrides={"epochs": 3, "seed": 1}, out=tmp_path / "whole", device="cpu")
    assert resumed.sha256 == whole.sha256 != before.sha256


@pytest.mark.parametrize(("by", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_process_that_is_told_to_end_says_what_it_leaves(tiny, tmp_path, by, code):
    before = train("tiny", recipe=tiny, out=tmp_path, device="cpu")
    ran = run_killed(tmp_path, by, 0)
    assert ran.returncode == code, ran.stderr
    assert "accel: the training was stopped: no epoch was over\n" in ran.stderr
    ran = run_killed(tmp_path, by, 1)
    assert ran.returncode == code, ran.stderr
    state = tmp_path / "state.pt"
    assert f"accel: the training was stopped: --resume goes on from the last whole epoch in {state}" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert read_checkpoint(tmp_path).sha256 == before.sha256
    assert snapshot.read(tmp_path)["epoch"] == 1


def test_a_loss_that_is_not_finite_and_memory_that_runs_out_leave_state_and_checkpoint(tiny, tmp_path, monkeypatch):
    before = train("tiny", recipe=tiny, out=tmp_path, device="cpu")
    from accel.trainers import loop

    real = loop.stop_unless_finite

    def not_finite(losses, epoch):
        real([*losses, float("nan")] if epoch == 1 else losses, epoch)

    def out_of_memory(losses, epoch):
        if epoch == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    for failure, error in ((not_finite, AccelError), (out_of_memory, MissingError)):
        monkeypatch.setattr(loop, "stop_unless_finite", failure)
        with pytest.raises(error, match=r"loss became nan in epoch 2|ran out of memory"):
            train("tiny", recipe=tiny, overrides={"epochs": 3}, out=tmp_path, device="cpu")
        assert snapshot.read(tmp_path)["epoch"] == 1
        assert read_checkpoint(tmp_path).sha256 == before.sha256


def test_a_run_is_resumed_as_it_began_or_not_at_all(tiny, tmp_path, monkeypatch, caplog):
    with pytest.raises(MissingError, match="no unfinished run"):
        train("tiny", recipe=tiny, out=tmp_path, device="cpu", resume=True)
    killed_after(1, monkeypatch)
    with pytest.raises(Killed):
        train("tiny", recipe=tiny, out=tmp_path, device="cpu")
    with pytest.raises(ConfigError, match=r"lr = 0\.5 was asked for; the run to resume has 0\.2"):
        train("tiny", recipe=tiny, overrides={"lr": 0.5}, out=tmp_path, device="cpu", resume=True)
    with monkeypatch.context() as patch:
        other = datasets.load
        patch.setattr(datasets, "load", lambda name, split: type(other(name, split))(**{**vars(other(name, split)), "sha256": "f" * 64}))
        with pytest.raises(IncompatibleArtifact, match="trained with the dataset 000"):
            train("tiny", recipe=tiny, out=tmp_path, device="cpu", resume=True)
    train("tiny", recipe=tiny, out=tmp_path, device="cpu")
    assert "--resume would have gone on" in caplog.text


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"not a state"])
def test_a_damaged_state_is_refused(tiny, tmp_path, monkeypatch, damage):
    killed_after(1, monkeypatch)
    with pytest.raises(Killed):
        train("tiny", recipe=tiny, out=tmp_path, device="cpu")
    path = tmp_path / snapshot.STATE_FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptArtifact, match=r"state\.pt cannot be read"):
        train("tiny", recipe=tiny, out=tmp_path, device="cpu", resume=True)


def test_a_state_of_another_schema_or_with_code_is_refused(tmp_path):
    torch.save({"schema": 99, "recipe": {}}, tmp_path / "state.pt")
    with pytest.raises(CorruptArtifact, match="schema 99"):
        snapshot.read(tmp_path)
    torch.save({"schema": 1, "recipe": {}, "code": Path("x")}, tmp_path / "state.pt")
    with pytest.raises(CorruptArtifact, match=r"cannot be read"):
        snapshot.read(tmp_path)


def test_resume_is_an_option_of_the_command(accel_cli, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainers, "default_recipe", lambda name: tiny)
    ran = accel_cli("train", "tiny", "--resume", "--out", "cut", "--device", "cpu")
    assert (ran.code, "no unfinished run" in ran.err) == (4, True)
    killed_after(1, monkeypatch)
    with pytest.raises(Killed):
        accel_cli("train", "tiny", "--seed", "3", "--out", "cut", "--device", "cpu")
    ran = accel_cli("train", "tiny", "--resume", "--out", "cut", "--device", "cpu")
    assert ran.code == 0, ran.err
    assert read_checkpoint(tmp_path / "cut").seed == 3
