"""Bad input: each with one clear message on stderr, no traceback, and its exit code."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Cli = Callable[..., Any]


def refused(ran: Any, code: int, *said: str) -> None:
    assert ran.code == code, ran.err
    assert "Traceback" not in ran.err
    for text in said:
        assert text in ran.err


def factory(weights: Path, *more: str | Path) -> list[str | Path]:
    return ["export", "nets:build", "--weights", weights, "--input", "1x3x8x8", "--name", "tiny", "--device", "cpu", *more]


def test_unknown_model(accel_cli: Cli) -> None:
    refused(accel_cli("export", "resnet81"), 2, "no model called 'resnet81'", "mobilenetv3_small, naivenet, resnet18")


def test_unknown_format(accel_cli: Cli) -> None:
    refused(accel_cli("export", "--to", "tflite"), 2, "no export format called 'tflite'", "onnx, tensorrt, tensorrt-rtx, torchscript")


def test_unknown_option(accel_cli: Cli) -> None:
    refused(accel_cli("export", "--fp61"), 2, "--fp61")


def test_unknown_precision_of_a_variant(accel_cli: Cli, tiny: Path) -> None:
    refused(accel_cli("bench", "tiny", "--runtime", "onnxruntime:int4"), 2, "no precision called 'int4'")


def test_contradicting_precisions(accel_cli: Cli) -> None:
    refused(accel_cli("export", "--fp16", "--precision", "fp32"), 2, "contradict")


def test_fp16_on_a_runtime_that_cannot(accel_cli: Cli, tiny: Path) -> None:
    ran = accel_cli("bench", "tiny", "--runtime", "onnxruntime:fp16", "--no-baseline", "--device", "cpu")
    refused(ran, 4, "onnxruntime:fp16 is REFUSED: no FP16 kernels on this CPU")


def test_a_gpu_that_is_not_there(accel_cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accel.device import driver

    monkeypatch.setattr(driver, "gpu_available", lambda: (False, "no NVIDIA driver was found"))
    refused(accel_cli("verify", "tiny", "--device", "cuda"), 4, "no NVIDIA driver was found", "--device cpu")


def test_missing_extra(accel_cli: Cli, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused(accel_cli(*factory(tiny_weights, "--out", tmp_path)), 4, "onnx is not installed", "pip install 'accel-engines[onnx]'")
    assert list(tmp_path.glob("*.accel")) == []


def test_missing_data_offline(accel_cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCEL_OFFLINE", "1")
    wanted = "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04"
    refused(accel_cli("data", "fetch", "cifar10"), 4, "ACCEL_OFFLINE", wanted, "test_images.npy", "--from PATH")
    ran = accel_cli("verify", "tiny", "--variant", "ort:fp32", "--data", "cifar10", "--device", "cpu")
    refused(ran, 4, "UNVERIFIED", wanted)


def test_a_bundle_that_was_never_exported(accel_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(accel_cli("inspect", "mine"), 4, "engines/mine.accel is no bundle", "accel export mine --to onnx")


def test_a_folder_that_has_no_name_has_none_in_the_remedy(accel_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(accel_cli("inspect", "."), 4, ". is no bundle", "accel export MODEL --to onnx")


# One name learned is enough: verify and bench take the other's as well.
@pytest.mark.parametrize("option", ["--runtime", "--variant"])
@pytest.mark.parametrize("command", ["verify", "bench"])
def test_truncated_engine(accel_cli: Cli, tiny: Path, command: str, option: str) -> None:
    file = tiny / "onnx-fp32" / "model.onnx"
    file.write_bytes(file.read_bytes()[:200])
    ran = accel_cli(command, "tiny", "--device", "cpu", option, "onnxruntime")
    refused(ran, 5, "model.onnx (200 bytes) has SHA-256")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda data: data["engines"][0].update(precision=16), "'precision'"),
        (lambda data: data.update(schema_version=99), "99"),
        (lambda data: data.pop("golden_sha256"), "lacks the key 'golden_sha256'"),
        (lambda data: data.update(extra=1), "'extra'"),
    ],
)
def test_edited_manifest(accel_cli: Cli, tiny: Path, edit: Callable[[dict[str, Any]], Any], said: str) -> None:
    data = json.loads((tiny / "accel.json").read_text())
    edit(data)
    (tiny / "accel.json").write_text(json.dumps(data))
    refused(accel_cli("bench", "tiny"), 5, "accel.json", said)


def test_code_of_a_stranger(accel_cli: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "another user"))
    refused(accel_cli("verify", "tiny", "--device", "cpu"), 5, "was not exported by this user", "--trusted")


def test_no_space_left_while_a_bundle_is_written(accel_cli: Cli, tiny: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = (tiny / "accel.json").read_bytes()
    monkeypatch.setattr(shutil, "copyfile", full)
    refused(accel_cli(*factory(tiny_weights, "--batch", "2")), 4, "no space left on the disk")
    assert (tiny / "accel.json").read_bytes() == before
    assert not (tiny / "onnx-fp32-b2").exists()
    assert list(tiny.parent.glob(".*.part")) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_no_space_left_for_what_is_printed() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "accel", "config"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 4
    assert "no space left on the disk" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(["/bin/sh", "-c", f"'{sys.executable}' -m accel config --format json | true"], capture_output=True, text=True)
    assert done.stderr == ""


def test_a_reader_that_goes_away_between_two_prints_is_no_error(tiny: Path) -> None:
    # What was printed after the reader had gone ended in exit code 1, an internal error, without a word.
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-u", "-m", "accel", "inspect", str(tiny.absolute())]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_pipe_that_breaks_elsewhere_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    from accel import cli, config

    def broken(*given: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(config, "resolve", broken)
    monkeypatch.setattr(cli, "_nobody_reads", lambda: False)
    with pytest.raises(BrokenPipeError):
        cli.main(["config"])


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize(("command", "code"), [("config", 0), ("inspect no-such-bundle", 4)])
def test_closed_streams_change_no_exit_code(closed: str, command: str, code: int) -> None:
    done = subprocess.run(["/bin/sh", "-c", f"'{sys.executable}' -m accel {command} {closed}"], capture_output=True, text=True)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_the_rules_of_a_table_gets_the_table(kind: str) -> None:
    done = subprocess.run([sys.executable, "-m", "accel", "config"], capture_output=True, env={**os.environ, "PYTHONIOENCODING": kind})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"bench.rounds" in done.stdout


def test_a_folder_that_is_a_file_is_named(accel_cli: Cli, tiny_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    ran = accel_cli(*factory(tiny_weights, "--out", tmp_path / "taken" / "engines"))
    refused(ran, 4, f"{tmp_path}/taken", "cannot be used: Not a directory", "--out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(accel_cli: Cli, tiny_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    ran = accel_cli(*factory(tiny_weights, "--out", tmp_path / "locked"))
    refused(ran, 4, f"{tmp_path}/locked", "cannot be used: Permission denied", "--out")


def test_a_file_that_is_taken_away_meanwhile_is_named(accel_cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accel.bench import model

    monkeypatch.setattr(model, "columns", lambda *given: (tiny / "onnx-fp32" / "gone.onnx").stat())
    ran = accel_cli("bench", "tiny", "--runtime", "ort:fp32", "--no-baseline", "--no-verify", "--rounds", "1", "--device", "cpu")
    refused(ran, 4, "gone.onnx cannot be used: No such file or directory", "bring it back")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_cache_that_may_not_be_written_is_named(accel_cli: Cli, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    from accel import config

    def locked(*given: object) -> None:
        raise OSError(code, os.strerror(code), "/cache/locks/bench-cpu.lock")

    monkeypatch.setattr(config, "resolve", locked)
    refused(accel_cli("config"), 4, f"/cache/locks/bench-cpu.lock cannot be used: {os.strerror(code)}", "ACCEL_CACHE_DIR")


def test_a_mistake_in_the_settings_file(accel_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "accel.toml").write_text("[bench]\niteratons = 5\n")
    refused(accel_cli("bench", "tiny"), 2, "line 2", "did you mean bench.iterations?")


def test_debug_shows_the_traceback_too(accel_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCEL_DEBUG", "1")
    ran = accel_cli("export", "resnet81")
    assert ran.code == 2
    assert "Traceback" in ran.err


def test_an_unexpected_error_is_left_to_python(monkeypatch: pytest.MonkeyPatch) -> None:
    from accel import cli, config

    monkeypatch.setattr(config, "resolve", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["config"])


def test_ctrl_c_in_an_export_leaves_the_bundle_as_it_was(
    accel_cli: Cli, tiny: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accel.verify import parity

    def interrupted(source: object, golden: object) -> None:
        signal.raise_signal(signal.SIGINT)

    before = (tiny / "accel.json").read_bytes()
    monkeypatch.setattr(parity, "run", interrupted)
    refused(accel_cli(*factory(tiny_weights, "--batch", "2")), 130, "interrupted; what was recorded is kept")
    assert (tiny / "accel.json").read_bytes() == before
    assert sorted(path.name for path in tiny.parent.iterdir() if path.suffix == ".part") == []


def test_ctrl_c_in_a_bench_keeps_what_was_recorded_and_the_same_command_goes_on(tiny: Path, tmp_path: Path) -> None:
    plan = ["--warmup", "2", "--iterations", "30", "--rounds", "3"]
    command = [sys.executable, "-m", "accel", "bench", "tiny", "--runtime", "ort:fp32", "--no-baseline", "--no-verify", *plan]
    # The test is about the record, not about where `accel` is installed.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ["PYTHONPATH"]])}
    first = subprocess.Popen([*command, "--device", "cpu"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        recorded = wait_for_rows(tmp_path / "results" / "local", first)
        first.send_signal(signal.SIGINT)
        _, stderr = first.communicate(timeout=60)
    finally:
        first.kill()
    assert first.returncode == 130, stderr
    assert stderr == "accel: interrupted; what was recorded is kept\n"

    second = subprocess.run([*command, "--device", "cpu"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert second.returncode == 0, second.stderr
    (folder,) = (tmp_path / "results" / "local").iterdir()
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [row["timestamp_utc"] for row in rows[: len(recorded)]] == [row["timestamp_utc"] for row in recorded]
    assert sorted((row["round"], row["latency_kind"]) for row in rows) == [(n, kind) for n in range(3) for kind in ("e2e_us", "host_us")]


def wait_for_rows(results: Path, process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """Wait until the first run is on record."""
    while process.poll() is None:
        for path in results.glob("*/results.jsonl"):
            if (text := path.read_text()).endswith("\n"):
                return [json.loads(line) for line in text.splitlines()]
        os.sched_yield()
    raise AssertionError(f"the bench ended before it was interrupted: {process.communicate()[1]}")


def test_data_without_labels_is_said_to_be_left_aside(accel_cli: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accel.bench import verification

    said: list[str] = []
    monkeypatch.setattr(verification.logger, "warning", lambda text, *given: said.append(text % given))
    np.savez(tmp_path / "plain.npz", images=np.zeros((3, 3, 8, 8), np.float32))
    ran = accel_cli("verify", "tiny", "--variant", "onnxruntime:fp32", "--data", f"npz:{tmp_path}/plain.npz", "--device", "cpu")
    assert ran.code == 0, ran.err
    assert said == [f"npz:{tmp_path}/plain.npz has no labels: parity with the golden samples is all that is judged"]
