"""Where a study lies, and which of its trials are still being worked on.

A trial names its process (host, boot, number, start). Whoever looks from the same host sees whether that process lives; of another host's,
a database tells by a heartbeat and a journal file does not. What a dead process was at is taken up again, twice at most.
"""

from __future__ import annotations

import functools
import os
import platform
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel.errors import MissingError, UsageError
from accel.optional import require
from accel.tracking import flattened, without_password

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

HEARTBEAT_S, GRACE_S = 60, 180
"""Of a database: how often a worker says that it lives, and the silence after which it is taken for dead."""

BUSY_S = 60
"""How long a process waits for a SQLite file that another one writes."""

WORKER, ENDED, REASON, ATTEMPT = "worker", "ended", "reason", "attempt"
"""A trial's attributes: its process; LOST, SURPLUS or FAILED; why; how often its setting was begun before."""

LOST, SURPLUS, FAILED = "lost", "surplus", "failed"
"""Its process ended meanwhile; others had all that were wanted already; the setting was tried and has no result."""

MOST_ATTEMPTS = 3


def open_storage(place: str) -> BaseStorage:
    """`place` is a database's URL, or the path of a journal file.

    Raises:
        MissingError: it cannot be reached, or needs a package. MissingExtra: optuna is absent.
    """
    optuna = require("optuna", extra="sweep")
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if "://" not in place:
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        journal = require("optuna.storages.journal", extra="sweep")
        found: BaseStorage = optuna.storages.JournalStorage(journal.JournalFileBackend(place))
        return found
    engine = {"connect_args": {"timeout": BUSY_S}} if place.startswith("sqlite") else {"pool_pre_ping": True}
    try:
        found = optuna.storages.RDBStorage(
            place,
            engine_kwargs=engine,
            heartbeat_interval=HEARTBEAT_S,
            grace_period=GRACE_S,
            heartbeat_stale_trial_callback=again,
        )
    except Exception as error:  # whatever the database's driver raises
        cause, shown = error.__cause__ or error, without_password(place)
        if isinstance(cause, ModuleNotFoundError):
            raise MissingError(f"the storage {shown} needs {cause.name}", remedy=f"pip install {cause.name}") from error
        said = str(cause).strip().splitlines()[0]
        raise MissingError(
            f"the storage {shown} cannot be used: {said}", remedy="see that it runs, and that its address is right"
        ) from error
    return found


def open_study(storage: BaseStorage, name: str, *, resume: bool, place: str, about: Mapping[str, Any]) -> tuple[Study, bool]:
    """The study, and whether it is new. Of several workers that all resume, the first begins it.

    Args:
        about: what all of its trials have in common; kept with it.

    Raises:
        UsageError: it exists and was not to be resumed, or is about something else.
    """
    optuna = require("optuna", extra="sweep")
    exists = name in optuna.get_all_study_names(storage)
    if exists and not resume:
        shown = without_password(place)
        raise UsageError(f"there is a study {name} in {shown} already", remedy="--resume goes on with it; --study OTHER begins another")
    try:
        study: Study = optuna.create_study(
            study_name=name, storage=storage, directions=["maximize", "minimize"], load_if_exists=resume, sampler=None
        )
    except optuna.exceptions.DuplicatedStudyError as error:
        raise UsageError(f"another process began the study {name} just now", remedy="--resume works on it together") from error
    known = study.user_attrs.get("about")
    if known is None:
        study.set_user_attr("about", dict(about))
        study.set_metric_names(["top1", "p50_us"])
    had, asked = flattened(known or about), flattened(about)
    for key in sorted(had | asked):
        if had.get(key) != asked.get(key):
            raise UsageError(
                f"the study {name} has {key} = {had.get(key)}, and {asked.get(key)} was asked for",
                remedy="give the same, or begin another with --study OTHER",
            )
    return study, not exists


@functools.cache
def here() -> dict[str, Any]:
    """This process: comparable with one of the same host."""
    pid = os.getpid()
    return {"host": _host(), "boot": _text("/proc/sys/kernel/random/boot_id"), "space": _space(), "pid": pid, "started": _started(pid)}


def alive(worker: Mapping[str, Any]) -> bool | None:
    """Whether the process that `here` described lives; None if that cannot be known from this one."""
    own = here()
    if worker.get("host") != own["host"]:
        return None
    if worker.get("boot") != own["boot"]:
        return False  # the host has been restarted since
    if worker.get("space") != own["space"]:
        return None  # another container of this host
    try:
        os.kill(int(worker["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # The number may be another's by now.
    return bool(_started(int(worker["pid"])) == worker["started"])


def reap(study: Study, *, others: bool = False) -> list[int]:
    """End the trials whose process is dead, and put their settings back into the queue; returns their numbers.

    Args:
        others: also those of which nobody can say.
    """
    optuna = require("optuna", extra="sweep")
    states = optuna.trial.TrialState
    ended = []
    for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
        worker = trial.user_attrs.get(WORKER)
        lives = alive(worker) if worker else None
        if lives is False or (lives is None and others):
            final = trial.user_attrs.get(ATTEMPT, 0) + 1 >= MOST_ATTEMPTS
            try:
                _mark(study, trial, FAILED if final else LOST, f"its process ended on {(worker or {}).get('host', 'a host')}")
                study.tell(trial.number, state=states.FAIL)
            except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
                continue  # another worker saw it first
            ended.append(trial.number)
            again(study, trial)
    return ended


def again(study: Study, trial: FrozenTrial | Trial) -> None:
    """Put the setting of a trial that was lost back into the queue, unless it has been there often enough."""
    attempt = trial.user_attrs.get(ATTEMPT, 0) + 1
    if trial.params and attempt < MOST_ATTEMPTS:
        study.enqueue_trial(dict(trial.params), user_attrs={ATTEMPT: attempt})


def _mark(study: Study, trial: FrozenTrial, ended: str, reason: str) -> None:
    """Say how another process's trial ends, before it does: afterwards nothing can be added."""
    study._storage.set_trial_user_attr(trial._trial_id, ENDED, ended)
    study._storage.set_trial_user_attr(trial._trial_id, REASON, reason)


def state(trial: FrozenTrial) -> str:
    """`complete`, `failed`, `lost`, `surplus`, `running` or `waiting`."""
    name = trial.state.name.lower()
    if name != "fail":
        return str(name)
    if ENDED in trial.user_attrs:
        return str(trial.user_attrs[ENDED])
    # Ended by the heartbeat, which leaves no word.
    return LOST if trial.user_attrs.get(ATTEMPT, 0) + 1 < MOST_ATTEMPTS else FAILED


def _host() -> str:
    identity = _text("/etc/machine-id")
    return f"{platform.node()} {identity[:8]}".strip()


def _space() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _started(pid: int) -> str:
    """The process's start in ticks after boot; empty where /proc does not say, and then a number that was given anew is not noticed."""
    # The name, in brackets, may hold spaces.
    return next(iter(_text(f"/proc/{pid}/stat").rpartition(")")[2].split()[19:20]), "")


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
