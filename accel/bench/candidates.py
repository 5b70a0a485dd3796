"""Before anything runs: which variants can run here, under which interpreter, and by which identity they are known."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accel.bench import flags, worker
from accel.bench.flags import Refused
from accel.bench.launch import Answer, Launcher, Request, interpreter
from accel.bench.settings import BenchSettings
from accel.engines import Bundle
from accel.errors import AccelError, MissingError
from accel.progress import silent
from accel.types import Variant


def threads_on(device: str, asked: int | None) -> int | None:
    """Intra-op threads of a worker: 1 beside a GPU, which does the work; on a CPU None leaves the runtime its default."""
    return asked if asked is not None or device == "cpu" else 1


@dataclasses.dataclass(frozen=True)
class Job:
    """What every worker of a set or verification is told.

    Attributes:
        folder: scratch files of the workers.
        launch: how a worker is started; tests pass one that stays in the process.
    """

    bundle: Bundle
    device: str
    batch: int
    threads: int | None
    settings: BenchSettings
    folder: Path
    launch: Launcher

    def request(self, mode: str, variant: Variant, **more: Any) -> Request:
        return {
            "schema_version": 1,
            "mode": mode,
            "bundle": str(self.bundle.path.resolve()),
            "variant": str(variant),
            "device": self.device,
            "batch": self.batch,
            "threads": self.threads,
            **more,
        }


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a variant is not run, or not to its end: a row's verdict, reason, remedy, exit code and the names of its refusals."""

    verdict: str
    reason: str
    remedy: str | None = None
    exit_code: int = 4
    refusals: tuple[str, ...] = ()

    @classmethod
    def refused(cls, found: Sequence[Refused]) -> Failure:
        """INVALID: what was held against it, at least one refusal."""
        return cls(**{**flags.invalid(found), "refusals": tuple(item.name for item in found)})

    @classmethod
    def of(cls, error: AccelError) -> Failure:
        verdict = "MISSING" if isinstance(error, MissingError) else "ERROR"
        return cls(verdict, error.message, error.remedy, error.exit_code)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A variant of a set.

    Attributes:
        python: the interpreter of its workers.
        identity: what its verification is looked up by; empty if it cannot run.
        entry: the bundle's engine that it runs; None where it runs the module.
        failure: why it cannot run here; None if it can.
    """

    variant: Variant
    python: str
    runtime_version: str | None = None
    identity: str = ""
    entry: str | None = None
    failure: Failure | None = None


def resolve(job: Job, variants: Sequence[Variant]) -> list[Candidate]:
    """Identify every variant; what cannot run becomes a candidate with a failure, never an exception."""
    return [_identify(job, variant) for variant in variants]


def _identify(job: Job, variant: Variant) -> Candidate:
    python = interpreter(variant.runtime, job.settings.python)
    request = job.request("identify", variant)
    try:
        found: Answer
        if python == sys.executable:
            # The same interpreter would say the same: no need to start one.
            found, _ = worker.answer(request)
        else:
            found = job.launch(request, python, job.folder, silent)
    except AccelError as error:
        return Candidate(variant, python, failure=Failure.of(error))
    if found["refusal"]:
        remedy = "choose another precision or runtime, or a machine that can run it" if job.device == "cpu" else "choose another precision"
        return Candidate(variant, python, failure=Failure("REFUSED", found["refusal"], remedy))
    return Candidate(variant, python, found["runtime_version"], found["identity"], found["entry"])
