"""One trial of a sweep, trained, exported and timed in a process of its own: `python -m accel.api.trial_process REQUEST.json`.

So a crash is one failed trial; and no worker of a sweep that waits for its turn has a context on the GPU, beside which nothing is timed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from accel.api.benching import bench
from accel.api.exporting import export
from accel.bench import summary
from accel.bench.launch import rebuilt
from accel.bench.worker import describe
from accel.errors import AccelError
from accel.files import write_text
from accel.progress import Progress, silent
from accel.runtimes import info
from accel.types import Variant

POLL_S = 0.5
MEASURED = ("OK", "UNVERIFIED")
"""Verdicts of a latency that counts: that nothing was verified on the test set is meant."""

PARTIAL = "log.partial.csv"
STDERR_TAIL = 500
"""Characters of a crashed process's stderr that its error shows."""


def measure_apart(
    model: str, recipe: dict[str, Any], out: Path, device: str, variant: str, rounds: int, progress: Progress = silent
) -> tuple[float, float]:
    """Train `model` by all of `recipe`, whose split holds images back, into `out`, and time it at batch 1 as `variant`.

    Returns:
        The top-1 on the held-out images in percent, and the median latency from host to result in microseconds. In `out` lie the
        checkpoint, the set in `latency`, and `trial.log`.

    Raises:
        AccelError: what the trial raised, or how its process died.
    """
    out.mkdir(parents=True, exist_ok=True)
    request, answer, log = out / "request.json", out / "answer.json", out / "trial.log"
    asked = {"model": model, "recipe": recipe, "out": str(out), "device": device, "variant": variant, "rounds": rounds}
    request.write_text(json.dumps(asked), encoding="utf-8")
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
            _follow(process, out, recipe["epochs"], progress)
        finally:
            _end(process)
    if not answer.is_file():
        tail = log.read_text(encoding="utf-8", errors="replace")[-STDERR_TAIL:].strip()
        raise AccelError(f"the process of the trial ended with status {process.returncode}: {tail}", remedy=f"see {log}")
    said = json.loads(answer.read_text(encoding="utf-8"))
    request.unlink()
    answer.unlink()
    if "error" in said:
        raise rebuilt(said["error"])
    return said["top1"], said["p50_us"]


def _follow(process: subprocess.Popen[bytes], out: Path, epochs: int, progress: Progress) -> None:
    while process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=POLL_S)
        with contextlib.suppress(FileNotFoundError):  # between the last epoch and the next line
            progress("train", (out / PARTIAL).read_text(encoding="utf-8").count("\n") - 1, epochs)


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


def measure(request: dict[str, Any]) -> dict[str, float]:
    """`top1` and `p50_us` of one request; raises AccelError."""
    from accel import trainers

    out = Path(request["out"])
    trainers.train(request["model"], out=out, recipe=trainers.Recipe(**request["recipe"]), device=request["device"])
    top1 = json.loads((out / "run.json").read_text(encoding="utf-8"))["val_top1"]
    return {"top1": top1, "p50_us": latency(out, Variant.parse(request["variant"]), request["device"], request["rounds"])}


def latency(checkpoint: Path, variant: Variant, device: str, rounds: int) -> float:
    """Median of calls from host to result, in microseconds, of a trained model at batch 1.

    Nothing is verified beyond the export's parity with the golden samples, which are train images: the test set is not for a sweep.

    Raises:
        AccelError: it cannot be exported, or the harness refuses what it timed.
    """
    format = info(variant.runtime).format
    with tempfile.TemporaryDirectory(prefix="accel-sweep-") as scratch:
        (done,) = export(
            str(checkpoint),
            format or "onnx",  # of a runtime without a file of its own the module is in the bundle whatever is exported
            precision=variant.precision if format else "fp32",
            batch=1,
            out=scratch,
            name="trial",
            device=device,
        )
        benched = bench(
            done.bundle,
            str(variant),
            rounds=rounds,
            max_rounds=rounds,
            device=device,
            out=checkpoint / "latency",
            verify=False,
            baseline=False,
            track="none",
        )
    (line,) = summary.lines(benched.results.rows, benched.results.samples())
    timed = line.latency.get(summary.HEADLINE)
    if line.verdict not in MEASURED or timed is None or timed.p50_us is None:
        raise AccelError(f"{variant} was not timed: {line.verdict}, {line.reason}", remedy=line.remedy)
    return timed.p50_us


def main(path: Path) -> int:
    logging.basicConfig(level=logging.INFO, format="accel: %(message)s")
    threading.Thread(target=_hold_leash, name="leash", daemon=True).start()
    request = json.loads(path.read_text(encoding="utf-8"))
    said: dict[str, Any]
    try:
        said = measure(request)
    except AccelError as error:
        said = {"error": describe(error)}
    write_text(path.with_name("answer.json"), json.dumps(said))
    return 0


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
