"""Start a worker in a process of its own, under the interpreter of its runtime, and bring its answer back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from accel import errors
from accel.bench import affinity
from accel.bench.clock import HostClock
from accel.errors import AccelError, RuntimeUnavailable
from accel.files import cache_dir
from accel.progress import Progress, silent

Request = dict[str, Any]
Answer = dict[str, Any]
Launcher = Callable[[Request, str, Path, Progress], Answer]
"""(request, interpreter, folder for request, answer and arrays, progress) → answer; raises what the worker reported."""

ARRAYS = "arrays.npz"
"""Where a launcher leaves the worker's arrays, in the folder that it was given."""

STDERR_TAIL = 2000
"""Characters of a crashed worker's stderr that its error shows."""

COMPILERS = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
"""Variable → the folder of that compiler in the cache folder."""

_POLL_S = 0.25


def interpreter(runtime: str, chosen: Mapping[str, str]) -> str:
    """The Python of `runtime`: `ACCEL_BENCH_PYTHON_<RUNTIME>`, else the settings' `[bench.python]`, else this one."""
    return os.environ.get(f"ACCEL_BENCH_PYTHON_{runtime.upper().replace('-', '_')}") or chosen.get(runtime) or sys.executable


def spawn(request: Request, python: str, folder: Path, progress: Progress = silent) -> Answer:
    """Run `python -m accel.bench.worker` on `request` and read its answer.

    Only a request that asks for progress is polled: while a run is timed the coordinator sleeps in one wait. A worker that times on a
    GPU gets the CPUs of the GPU's NUMA node; one whose plan rebuilds gets caches of its own, empty and gone with it.

    Raises:
        AccelError: the one that the worker reported, or a description of how it died.
        RuntimeUnavailable: the interpreter cannot be started.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.json" for name in ("request", "answer", "progress")}
    for name in ("answer", "progress"):
        paths[name].unlink(missing_ok=True)
    near = affinity.near(request["device"]) if request["mode"] == "measure" else None
    full = {**request, "answer": str(paths["answer"]), "arrays": str(folder / ARRAYS), "leash": True, "spawned_ns": HostClock.now_ns()}
    if progress is not silent and request["mode"] == "verify":
        full["progress"] = str(paths["progress"])
    paths["request"].write_text(json.dumps(full), encoding="utf-8")
    log = folder / "stderr.txt"
    with tempfile.TemporaryDirectory(prefix="accel-path-") as shim, empty_caches(request, folder) as own, open(log, "wb") as stderr:
        environment = {**worker_environment(Path(shim)), **own}
        if request["mode"] == "measure":
            # Inductor would start a pool of compiler processes, which live on beside what is timed; verifying has filled its cache.
            environment.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        command = [python, "-m", "accel.bench.worker", str(paths["request"])]
        try:
            # stdin is a leash: it closes when this process dies in any way, and the worker then ends itself. Its own session keeps
            # the terminal's Ctrl-C from it, so that only we decide how it stops.
            with affinity.inherited(near):
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=stderr, stderr=stderr, env=environment, start_new_session=True
                )
        except OSError as error:
            raise RuntimeUnavailable(
                f"the interpreter {python!r} of {request.get('variant', 'the worker')} cannot be started: {error}",
                remedy="set [bench.python] or ACCEL_BENCH_PYTHON_<RUNTIME> to a Python that has the runtime",
            ) from error
        try:
            if "progress" in full:
                _follow(process, paths["progress"], progress)
            code = process.wait()
        finally:
            _end(process)
    if not paths["answer"].is_file():
        raise crash(request, python, code, log)
    answer: Answer = json.loads(paths["answer"].read_text(encoding="utf-8"))
    if "error" in answer:
        raise rebuilt(answer["error"])
    return answer


def worker_environment(shim: Path) -> dict[str, str]:
    """The environment of a worker: `accel` importable without our other packages, which a foreign interpreter must not see.

    `shim` is an empty folder; it gets a link named `accel` and goes to the front of PYTHONPATH.
    """
    (shim / "accel").symlink_to(Path(__file__).resolve().parents[1], target_is_directory=True)
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(shim), inherited] if inherited else [str(shim)])
    # Workers share what compilers cache: the first run of a variant pays for the build, later rounds and sets do not.
    cache = cache_dir()
    caches = {"ACCEL_CACHE_DIR": cache} | {name: cache / part for name, part in COMPILERS.items()}
    # Once Inductor was used in this process, it has put its default into the environment: that is no user's choice.
    inductors = str(Path(tempfile.gettempdir()) / "torchinductor_")
    chosen = {name: value for name, value in os.environ.items() if name not in caches or not value.startswith(inductors)}
    if sys.dont_write_bytecode:
        # Without bytecode every process of a set would compile torch's sources anew: importing torch and Inductor took 13 to 18 s in a
        # container with PYTHONDONTWRITEBYTECODE. Nothing is written beside the sources, as the user wants.
        caches["PYTHONPYCACHEPREFIX"] = cache / "bytecode"
        chosen.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**{name: str(folder) for name, folder in caches.items()}, **chosen, "PYTHONPATH": path}


@contextlib.contextmanager
def empty_caches(request: Request, folder: Path) -> Iterator[dict[str, str]]:
    """The variables that lead a worker's compilers to caches with nothing in them, where its plan says so; they end with the block.

    The user's own choices are overruled: what lies there is not empty. TensorRT's plans and timings go by ACCEL_CACHE_DIR, of which a
    worker that times needs nothing else; CUDA_CACHE_PATH is where the driver keeps what it compiled from PTX.
    """
    if request["mode"] != "measure" or not request.get("plan", {}).get("rebuild"):
        yield {}
        return
    root = folder.resolve() / "caches"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    try:
        yield {"ACCEL_CACHE_DIR": str(root), "CUDA_CACHE_PATH": str(root / "cuda")} | {
            name: str(root / part) for name, part in COMPILERS.items()
        }
    finally:
        shutil.rmtree(root, ignore_errors=True)


def crash(request: Request, python: str, code: int, log: Path) -> AccelError:
    """What can be said of a worker that left no answer: the signal or status, and the end of its stderr."""
    tail = log.read_text(encoding="utf-8", errors="replace")[-STDERR_TAIL:].strip() if log.is_file() else ""
    how = f"exited with status {code} without an answer"
    remedy = f"run it alone to see why: {python} -m accel.bench.worker {log.parent / 'request.json'}"
    if code < 0:
        with contextlib.suppress(ValueError):
            how = f"was killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            remedy = "most likely the system ran out of memory: close other programs or choose a smaller batch"
    said = f"; the end of its stderr:\n{tail}" if tail else "; it wrote nothing to stderr"
    return AccelError(f"the worker of {request.get('variant', '?')} ({request['mode']}) {how}{said}", remedy=remedy)


def rebuilt(data: Mapping[str, Any]) -> AccelError:
    """The AccelError that a worker described, of its own class where we have it."""
    kind = getattr(errors, str(data["type"]), None)
    error = AccelError(data["message"], remedy=data.get("remedy"))
    if isinstance(kind, type) and issubclass(kind, AccelError):
        # Subclasses may take other arguments; the text is already final, so only the class is restored.
        error.__class__ = kind
    error.exit_code = int(data["exit_code"])
    return error


def _follow(process: subprocess.Popen[bytes], path: Path, progress: Progress) -> None:
    last = ""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_POLL_S)
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if text and text != last:
            last = text
            step, done, total = json.loads(text)
            progress(step, done, total)
        if process.returncode is not None:
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing behind, whatever interrupted us: the worker's whole session goes, compiler subprocesses included."""
    if process.stdin is not None:
        process.stdin.close()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
