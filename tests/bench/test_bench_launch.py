from __future__ import annotations

import json
import stat
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np
import pytest

from accel.bench import launch
from accel.bench.clock import HostClock
from accel.bench.launch import interpreter, rebuilt, spawn, worker_environment
from accel.errors import AccelError, BundleMissing, CorruptArtifact, DatasetMissing, RuntimeUnavailable


def fake_python(folder: Path, body: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def request(bundle=None, mode="identify", variant="eager:fp32") -> dict:
    path = str(bundle.path) if bundle else "/nowhere.accel"
    return {"mode": mode, "bundle": path, "variant": variant, "device": "cpu", "batch": 1, "threads": None}


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def test_a_worker_answers_from_another_process(bundle, tmp_path, importable):
    pytest.importorskip("torch")

    answer = spawn(request(bundle), sys.executable, tmp_path / "work")

    assert answer["refusal"] is None
    assert len(answer["identity"]) == 64


def test_a_second_interpreter_is_really_used(bundle, tmp_path, importable):
    pytest.importorskip("torch")
    venv.create(tmp_path / "other", with_pip=False, symlinks=True)
    python = tmp_path / "other/bin/python"
    (site,) = (tmp_path / "other/lib").glob("python*/site-packages")
    # This environment's packages stand in for those that a foreign environment has installed; accel itself comes by PYTHONPATH.
    (site / "borrowed.pth").write_text(str(Path(np.__file__).parents[1]))

    with pytest.raises(AccelError, match="exited with status 7") as caught:
        spawn(
            request(), fake_python(tmp_path, f'{python} -c "import sys; print(sys.executable, file=sys.stderr)"; exit 7'), tmp_path / "work"
        )
    answer = spawn(request(bundle), str(python), tmp_path / "work")

    assert str(python) in str(caught.value)
    assert answer["executable"] == str(python) != sys.executable


def test_the_error_of_a_worker_arrives_with_its_class_and_exit_code(tmp_path):
    with pytest.raises(BundleMissing, match="nowhere") as caught:
        spawn(request(), sys.executable, tmp_path / "work")

    assert (caught.value.exit_code, caught.value.remedy) == (4, "accel export nowhere --to onnx")


def test_a_segmentation_fault_becomes_a_clear_error(tmp_path):
    python = fake_python(tmp_path, "echo 'the last words' >&2; kill -SEGV $$")

    with pytest.raises(AccelError, match=r"worker of eager:fp32 \(measure\) was killed by SIGSEGV.*\nthe last words") as caught:
        spawn(request(mode="measure"), python, tmp_path / "work")

    assert "accel.bench.worker" in (caught.value.remedy or "")


def test_the_out_of_memory_killer_is_named(tmp_path):
    with pytest.raises(AccelError, match="SIGKILL") as caught:
        spawn(request(), fake_python(tmp_path, "kill -KILL $$"), tmp_path / "work")

    assert "memory" in (caught.value.remedy or "")


def test_a_worker_that_says_nothing_is_reported_with_its_status(tmp_path):
    with pytest.raises(AccelError, match="status 3 without an answer; it wrote nothing"):
        spawn(request(), fake_python(tmp_path, "exit 3"), tmp_path / "work")


def test_a_stale_answer_is_never_read(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work/answer.json").write_text('{"refusal": null}')

    with pytest.raises(AccelError, match="without an answer"):
        spawn(request(), fake_python(tmp_path, "exit 0"), tmp_path / "work")


def test_an_interpreter_that_is_not_there_is_missing(tmp_path):
    with pytest.raises(RuntimeUnavailable, match="/no/python"):
        spawn(request(), "/no/python", tmp_path / "work")


def test_an_interrupt_kills_the_worker(tmp_path, monkeypatch):
    started = []

    class Interrupted(subprocess.Popen):
        def wait(self, timeout=None):
            if not started:
                started.append(self)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(launch.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        spawn(request(), fake_python(tmp_path, "sleep 600"), tmp_path / "work")

    assert started[0].returncode == -9


def test_a_worker_ends_when_its_coordinator_is_gone(bundle, tmp_path, importable):
    answer = tmp_path / "answer.json"
    asked = {**request(bundle), "answer": str(answer), "arrays": "", "leash": True, "mode": "identify"}
    (tmp_path / "request.json").write_text(json.dumps(asked))
    waiting = "import time; from accel.bench import worker; worker.MODES['identify'] = lambda *_: time.sleep(600)\n"
    code = f"{waiting}import pathlib; worker.main(pathlib.Path({str(tmp_path / 'request.json')!r}))"
    (tmp_path / "shim").mkdir()
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, env=worker_environment(tmp_path / "shim"))

    process.stdin.close()

    assert process.wait(timeout=60) == 130
    assert not answer.exists()


def test_a_worker_sees_accel_and_none_of_our_other_packages(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)

    environment = worker_environment(tmp_path)

    assert environment["PYTHONPATH"] == str(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["accel"]


def test_compiling_workers_share_their_caches_unless_the_user_says_where(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCEL_CACHE_DIR", "/cache")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_me")  # as Inductor itself sets it
    environment = worker_environment(tmp_path)

    assert (environment["TORCHINDUCTOR_CACHE_DIR"], environment["TRITON_CACHE_DIR"]) == ("/cache/inductor", "/mine")


def test_workers_keep_bytecode_of_their_own_where_none_is_written_beside_the_sources(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCEL_CACHE_DIR", "/cache")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)

    def empty(name):
        (tmp_path / name).mkdir()
        return tmp_path / name

    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert "PYTHONPYCACHEPREFIX" not in worker_environment(empty("a"))

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    environment = worker_environment(empty("b"))
    assert environment["PYTHONPYCACHEPREFIX"] == "/cache/bytecode"
    assert "PYTHONDONTWRITEBYTECODE" not in environment

    monkeypatch.setenv("PYTHONPYCACHEPREFIX", "/mine")
    assert worker_environment(empty("c"))["PYTHONPYCACHEPREFIX"] == "/mine"


SHOW_CACHES = (
    'echo "$ACCEL_CACHE_DIR $TORCHINDUCTOR_CACHE_DIR $TRITON_CACHE_DIR $CUDA_CACHE_PATH" >&2\n'
    'ls -A "$ACCEL_CACHE_DIR" >&2; touch "$ACCEL_CACHE_DIR/left"; exit 7'
)


def caches_of_a_run(folder: Path, **plan) -> list[str]:
    """What a measuring worker is told of its caches, and what lies in them."""
    with pytest.raises(AccelError, match="status 7") as caught:
        spawn({**request(mode="measure"), "plan": plan}, fake_python(folder, SHOW_CACHES), folder / "work")
    return caught.value.message.partition("stderr:\n")[2].split()


def test_a_plan_that_rebuilds_gives_every_worker_empty_caches_that_end_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "shared"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/mine")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    monkeypatch.setenv("CUDA_CACHE_PATH", "/mine")
    root = tmp_path / "work" / "caches"

    for _ in range(2):
        assert caches_of_a_run(tmp_path, rebuild=True) == [str(root), *(str(root / name) for name in ("inductor", "triton", "cuda"))]
        assert not root.exists()


def test_a_plan_that_does_not_rebuild_shares_the_caches(tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(shared))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH"):
        monkeypatch.setenv(name, "/mine")

    first, second = (caches_of_a_run(tmp_path, rebuild=False) for _ in range(2))

    assert first == [str(shared), "/mine", "/mine", "/mine"]
    assert second == [*first, "left"]


def test_a_worker_is_told_when_it_was_started(tmp_path):
    before = HostClock.now_ns()
    with pytest.raises(AccelError, match="status 3"):
        spawn(request(), fake_python(tmp_path, "exit 3"), tmp_path / "work")
    asked = json.loads((tmp_path / "work" / "request.json").read_text())
    assert before < asked["spawned_ns"] < HostClock.now_ns()


def test_the_interpreter_is_the_environments_then_the_settings_then_this_one(monkeypatch):
    assert interpreter("onnxruntime", {}) == sys.executable
    assert interpreter("onnxruntime", {"onnxruntime": "/a"}) == "/a"
    monkeypatch.setenv("ACCEL_BENCH_PYTHON_ONNXRUNTIME", "/b")
    assert interpreter("onnxruntime", {"onnxruntime": "/a"}) == "/b"


def test_errors_of_every_class_are_rebuilt():
    for kind in (DatasetMissing, CorruptArtifact, AccelError):
        error = rebuilt({"type": kind.__name__, "message": "m", "remedy": "r", "exit_code": kind.exit_code})
        assert (type(error), error.message, error.remedy, error.exit_code) == (kind, "m", "r", kind.exit_code)
    assert type(rebuilt({"type": "Strange", "message": "m", "remedy": None, "exit_code": 5})) is AccelError


def test_a_worker_imports_nothing_heavy_before_its_runtime():
    code = (
        "import sys, accel.bench.worker, accel.verify.opened, accel.verify.predict, accel.runtimes, accel.device;"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'rich', 'scipy', 'PIL', 'cuda', 'typer', 'filelock', 'platformdirs'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])

    assert printed.stdout.strip() == "[]"
