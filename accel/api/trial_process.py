"""Train one setting of a sweep in a process of its own: `python -m accel.api.trial_process REQUEST.json`.

So nothing of it is left when its latency is measured, no context on the GPU and no memory, and a crash is one failed trial.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from accel.bench.launch import rebuilt
from accel.bench.worker import describe
from accel.errors import AccelError
from accel.progress import Progress, silent

POLL_S = 0.5
STDERR_TAIL = 500
"""Characters of a crashed process's stderr that its error shows."""


def train_apart(model: str, recipe: dict[str, Any], out: Path, device: str, progress: Progress = silent) -> float:
    """Train `model` by all of `recipe`, whose split holds images back, into `out`; returns the top-1 on those, in percent.

    Its log is `train.log` in `out`, where the weights are as well.

    Raises:
        AccelError: what the training raised, or how its process died.
    """
    out.mkdir(parents=True, exist_ok=True)
    request, answer, log = out / "request.json", out / "answer.json", out / "train.log"
    request.write_text(json.dumps({"model": model, "recipe": recipe, "out": str(out), "device": device}), encoding="utf-8")
    answer.unlink(missing_ok=True)
    package = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])}
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(request)],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=stream,
            env=environment,
            start_new_session=True,
        )
        try:
            _follow(process, out / "log.partial.csv", recipe["epochs"], progress)
        finally:
            _end(process)
    if not answer.is_file():
        tail = log.read_text(encoding="utf-8", errors="replace")[-STDERR_TAIL:].strip()
        raise AccelError(f"the process that trained it ended with status {process.returncode}: {tail}", remedy=f"see {log}")
    said = json.loads(answer.read_text(encoding="utf-8"))
    request.unlink()
    answer.unlink()
    if "error" in said:
        raise rebuilt(said["error"])
    top1: float = said["val_top1"]
    return top1


def _follow(process: subprocess.Popen[bytes], log: Path, epochs: int, progress: Progress) -> None:
    while process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=POLL_S)
        done = max(log.read_text(encoding="utf-8").count("\n") - 1, 0) if log.is_file() else 0
        progress("train", done, epochs)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing behind, whatever interrupted us."""
    if process.stdin is not None:
        process.stdin.close()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _hold_leash() -> None:
    """End with the sweep: its end of our stdin closes however it dies."""
    while os.read(0, 1):
        continue
    os._exit(130)


def main(path: Path) -> int:
    import logging

    logging.basicConfig(level=logging.INFO, format="accel: %(message)s")
    threading.Thread(target=_hold_leash, name="leash", daemon=True).start()
    request = json.loads(path.read_text(encoding="utf-8"))
    out = Path(request["out"])
    said: dict[str, Any]
    try:
        from accel import trainers

        trainers.train(request["model"], out=out, recipe=trainers.Recipe(**request["recipe"]), device=request["device"])
        said = {"val_top1": json.loads((out / "run.json").read_text(encoding="utf-8"))["val_top1"]}
    except AccelError as error:
        said = {"error": describe(error)}
    partial = out / "answer.part"
    partial.write_text(json.dumps(said), encoding="utf-8")
    os.replace(partial, out / "answer.json")
    return 0


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
