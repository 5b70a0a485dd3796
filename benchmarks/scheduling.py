"""Processes for the jobs of `trainings.py`: which begins when and on which GPU, what ends it, and what is on record of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accel.errors import ConfigError
from accel.files import write_text
from accel.trainers.recipe import Recipe
from benchmarks import trainings
from benchmarks.trainings import DONE, NEW, UNFINISHED, Job

ROOT = Path(__file__).resolve().parents[1]
POLL_S, GRACE_S = 0.2, 20.0
"""Between two looks at the processes; from the interrupt until what still runs is killed."""

WAITING, FAILED, REFUSED, STOPPED = "waiting", "failed", "refused", "stopped"
"""What a job can be beside DONE, UNFINISHED and NEW: for its teachers; ended by itself; another recipe lies there; by the deadline."""

SUMMARY = "summary.json"


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    gpus: names for CUDA_VISIBLE_DEVICES; `cpu` for none.
    deadline: seconds from the begin; None sets none.
    pace: what an estimate is multiplied by.
    trainer: the command before the model's name.
    further: field of Recipe → value of every job, for trials.
    in_order: jobs begin as they are given, not by what the longest row waits for.
    """

    out: Path
    gpus: tuple[str, ...] = ("0",)
    per_gpu: int = 1
    deadline: float | None = None
    pace: float = 1.0
    trainer: tuple[str, ...] = (sys.executable, "-m", "accel", "train")
    further: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    in_order: bool = False


@dataclasses.dataclass
class Running:
    process: subprocess.Popen[bytes]
    gpu: str
    begun: float


class Host:
    """The jobs of one call and their processes.

    Args:
        now, wait: the clock and the pause between two looks; tests bring their own.
        on_change: called after every job that ended.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        options: Options,
        now: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
        on_change: Callable[[Host], None] = lambda host: None,
    ) -> None:
        self.jobs, self.options, self._now, self._wait, self._on_change = {job.name: job for job in jobs}, options, now, wait, on_change
        self.recipes: dict[str, Recipe] = {job.name: job.recipe(options.further) for job in jobs}
        self.running: dict[str, Running] = {}
        self.status: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self.begun = now()
        options.out.mkdir(parents=True, exist_ok=True)
        self._earlier = {row["job"]: row for row in read_summary(options.out)}
        self.wall_s: dict[str, float] = {name: row["wall_s"] for name, row in self._earlier.items() if row.get("wall_s")}
        self.gpu: dict[str, str] = {name: row["gpu"] for name, row in self._earlier.items() if row.get("gpu")}
        for name in self.jobs:
            self._look(name)

    def run(self) -> None:
        """Begin, watch and end; on an interrupt everything that runs is interrupted too."""
        try:
            while True:
                self._reap()
                if self.left_s() <= 0:
                    break
                self._begin_what_fits()
                if not self.running:
                    break
                self._wait(POLL_S)
        finally:
            self._stop()

    def left_s(self) -> float:
        """Until the deadline."""
        deadline = self.options.deadline
        return float("inf") if deadline is None else deadline - (self._now() - self.begun)

    def _look(self, name: str) -> None:
        try:
            self.status[name] = trainings.state(self.folder(name), self.recipes[name])
        except ConfigError as error:
            self.status[name], self.notes[name] = REFUSED, str(error)

    def folder(self, name: str) -> Path:
        return self.options.out / name

    def _begin_what_fits(self) -> None:
        left = {name: trainings.remaining_s(job, self.folder(name), self.recipes[name]) for name, job in self._open().items()}
        order = {} if self.options.in_order else trainings.chains(self._open().values(), left)
        for name in sorted(left, key=lambda name: -order.get(name, 0.0)):
            missing = self._missing(name)
            if missing:
                self.notes[name] = f"waits for {', '.join(missing)}"
                continue
            needed = left[name] * self.options.pace
            if needed > self.left_s():
                self.notes[name] = f"needs about {needed:.0f} s, {self.left_s():.0f} s were left"
                continue
            free = [gpu for gpu in self.options.gpus if self._load(gpu) < self.options.per_gpu]
            if free:
                self._begin(name, min(free, key=self._load))

    def _open(self) -> dict[str, Job]:
        """What is neither running nor at its end, in the order of the table."""
        return {name: job for name, job in self.jobs.items() if name not in self.running and self.status[name] in (NEW, UNFINISHED)}

    def _missing(self, name: str) -> list[str]:
        """The teachers whose checkpoint is not there; one that came here without its weights teaches nobody."""
        found = []
        for teacher in self.jobs[name].teachers:
            if self.status[teacher] != DONE:
                found.append(teacher)
            elif not (self.folder(teacher) / "weights.safetensors").is_file():
                found.append(f"the weights of {teacher}")
        return found

    def _load(self, gpu: str) -> int:
        return sum(running.gpu == gpu for running in self.running.values())

    def _begin(self, name: str, gpu: str) -> None:
        job, out = self.jobs[name], self.options.out
        recipe_file = out / f"{name}.recipe.toml"
        write_text(recipe_file, self.recipes[name].to_toml())
        resumed = self.status[name] == UNFINISHED
        device = "cpu" if gpu == "cpu" else "cuda:0"
        command = [*self.options.trainer, job.model, "--recipe", recipe_file.name, "--out", name, "--device", device]
        command += ["--resume"] if resumed else []
        with open(out / f"{name}.log", "ab") as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            # A group of its own: an interrupt typed at this script reaches a training once, from here. No session of its own: whatever
            # ends this script's session ends its trainings too.
            process = subprocess.Popen(command, cwd=out, env=self._environment(gpu), stdout=log, stderr=log, process_group=0)
        self.running[name], self.gpu[name] = Running(process, gpu, self._now()), gpu
        self.notes.pop(name, None)
        say(f"{self._now() - self.begun:6.0f} s  {'resumes' if resumed else 'begins '}  {name} on {gpu}")

    def _environment(self, gpu: str) -> dict[str, str]:
        given = dict(os.environ)
        visible = [name for name in given.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        threads = max(1, (os.cpu_count() or 1) // (len(self.options.gpus) * self.options.per_gpu))
        # Side by side, each would compile and compute with as many threads as the host has cores.
        defaults = {"OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_COMPILE_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        path = os.pathsep.join([str(ROOT), *filter(None, [given.get("PYTHONPATH")])])
        # The number of a GPU counts among those that this script may see.
        chosen = visible[int(gpu)] if gpu.isdigit() and int(gpu) < len(visible) else gpu
        return {**defaults, **given, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "" if gpu == "cpu" else chosen}

    def _reap(self, stopped: bool = False) -> None:
        for name, running in list(self.running.items()):
            code = running.process.poll()
            if code is None:
                continue
            del self.running[name]
            self.wall_s[name] = round(self.wall_s.get(name, 0.0) + self._now() - running.begun, 1)
            self._look(name)
            if self.status[name] != DONE and not stopped:
                self.status[name] = FAILED
                self.notes[name] = f"exit code {code}: {last_line(self.options.out / f'{name}.log')}"
            elif self.status[name] != DONE:
                self.status[name], self.notes[name] = STOPPED, "interrupted; the same command resumes it"
            say(f"{self._now() - self.begun:6.0f} s  {self.status[name]:8} {name}  {self.notes.get(name, '')}")
            self._on_change(self)

    def _stop(self) -> None:
        for running in self.running.values():
            running.process.send_signal(signal.SIGINT)
        for running in self.running.values():
            # By the clock of the system, whatever `now` is: processes end in its time.
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(GRACE_S)
        for running in self.running.values():
            # The group: a compiler's workers outlive their parent where it was killed.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.process.pid, signal.SIGKILL)
            running.process.wait()
        self._reap(stopped=True)
        self._on_change(self)

    def rows(self) -> list[dict[str, Any]]:
        """One a job, as summary.json has them; those of earlier calls' other jobs stay."""
        return [*(self._row(job) for job in self.jobs.values()), *(row for name, row in self._earlier.items() if name not in self.jobs)]

    def _row(self, job: Job) -> dict[str, Any]:
        name, status = job.name, self.status[job.name]
        facts = trainings.facts(self.folder(name))
        waits = status == NEW and bool(self._missing(name))
        return {
            "job": name,
            "model": job.model,
            "seed": job.seed,
            "groups": sorted(job.groups),
            "status": "running" if name in self.running else WAITING if waits else status,
            "note": "" if status == DONE else self.notes.get(name, ""),
            "bar": job.bar,
            "reached": None if job.bar is None or facts["top1"] is None else facts["top1"] >= job.bar,
            "epochs": self.recipes[name].epochs,
            **facts,
            "gpu": self.gpu.get(name),
            "wall_s": self.wall_s.get(name),
        }


def read_summary(out: Path) -> list[dict[str, Any]]:
    """The rows of an earlier call; none without a readable summary."""
    try:
        rows: list[dict[str, Any]] = json.loads((out / SUMMARY).read_text(encoding="utf-8"))["jobs"]
    except (OSError, ValueError, KeyError):
        return []
    return rows


def write_summary(host: Host) -> None:
    given = {key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(host.options).items()}
    kept = {key: given[key] for key in ("gpus", "per_gpu", "deadline", "pace", "further")}
    write_text(host.options.out / SUMMARY, json.dumps({"options": kept, "jobs": host.rows()}, indent=1) + "\n")


def last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    # What mends an error stands in a line of its own below it.
    return " ".join(line.strip() for line in lines[-2:]) if lines and "to mend it" in lines[-1] else lines[-1] if lines else ""


def say(text: str) -> None:
    print(text.rstrip(), file=sys.stderr, flush=True)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the block, and the processes that it starts, though this one was started in the background."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {which: signal.signal(which, stop) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
