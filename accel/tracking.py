"""Follow a run while it goes on: nothing, or MLflow's store; its own files it writes in any case.

A store that cannot be reached refuses a run before it begins. One that fails later costs one warning, and the run goes on: what was not
sent is tried once more when it ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol
from urllib.parse import urlsplit, urlunsplit

from accel.errors import AccelError, ConfigError, MissingError
from accel.files import offline, write_text
from accel.optional import require

logger = logging.getLogger(__name__)

NONE, MLFLOW = "none", "mlflow"
KINDS = (NONE, MLFLOW)

MEMORY = "tracking.json"
"""In a run's folder: which run of which store it is, so that a resumed run is the same one there."""

LIMITS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""What MLflow is told unless the environment says otherwise. By its own numbers it takes four minutes to find that nobody listens."""

MOST_METRICS, MOST_PARAMS, LONGEST_PARAM, LONGEST_TAG = 1000, 100, 6000, 5000
"""Of one request, and in characters: MLflow refuses more."""

TERMINATED = 143
"""128 + SIGTERM: what a shell calls the exit of a process that was told to end."""

Files = Sequence[tuple[Path, str]]
"""What is kept with a run: (file, folder among its artifacts)."""


class Tracker(Protocol):
    """Called in this order: `open`, `start`, then `note` and `epoch` any number of times, then `finish` or `fail`.

    Only `open` and `start` raise.
    """

    def open(self) -> None:
        """Reach the store; raises AccelError."""

    def start(self, name: str, params: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]] = (), *, resumed: bool = False) -> None:
        """Begin a run, or go on with the one whose rows were `earlier`; raises AccelError."""

    def note(self, params: Mapping[str, Any]) -> None:
        """Further parameters."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Metrics at the step `row["epoch"]`; what is None or no finite number is left out."""

    def finish(self, metrics: Mapping[str, Any], params: Mapping[str, Any], files: Files) -> None:
        """The run has succeeded."""

    def fail(self, error: BaseException) -> None:
        """The run has failed, or, by an interrupt or a signal, was killed."""


class Untracked:
    """The Tracker that does nothing."""

    def open(self) -> None: ...
    def start(self, name: str, params: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]] = (), *, resumed: bool = False) -> None: ...
    def note(self, params: Mapping[str, Any]) -> None: ...
    def epoch(self, row: Mapping[str, Any]) -> None: ...
    def finish(self, metrics: Mapping[str, Any], params: Mapping[str, Any], files: Files) -> None: ...
    def fail(self, error: BaseException) -> None: ...


UNTRACKED = Untracked()


@contextlib.contextmanager
def followed(tracker: Tracker) -> Iterator[None]:
    """Open `tracker`; tell it if the block fails. Until then SIGTERM, by which schedulers end a job, ends it like an interrupt."""
    tracker.open()
    if tracker is UNTRACKED:
        yield
        return
    try:
        with terminated_by_exception():
            yield
    except BaseException as error:
        tracker.fail(error)
        raise


class MlflowTracker:
    """A run in MLflow's tracking store, through its client alone: no global state of MLflow's is touched.

    Args:
        uri: of the store: `sqlite:////absolute/path`, another database, or a server.
        artifacts: where a database keeps a new experiment's files; a server has a place of its own.
        folder: of the run, where its MEMORY lies; None remembers nothing.
    """

    def __init__(self, uri: str, *, experiment: str, artifacts: Path, tags: Mapping[str, str], folder: Path | None = None) -> None:
        self.uri, self.experiment, self.artifacts, self.tags, self.folder = uri, experiment, artifacts, dict(tags), folder
        self.run_id: str | None = None
        self._client: Any = None
        self._entities: Any = None
        self._experiment_id = ""
        self._metrics: list[Any] = []
        self._params: dict[str, str] = {}
        self._sent: dict[str, str] = {}
        self._there: set[int] = set()
        self._step = 0
        self._failed = False

    def open(self) -> None:
        """Connect, and make the experiment if it is new.

        Raises:
            ConfigError: the store is a folder of files. MissingExtra: MLflow, or what the store needs. MissingError: no answer.
        """
        check_uri(self.uri)
        set_limits()
        require("mlflow", extra="track")
        scheme = urlsplit(self.uri).scheme
        if scheme.startswith("sqlite"):
            require("alembic", extra="track")
            require("sqlalchemy", extra="track")
        tracking, self._entities = require("mlflow.tracking", extra="track"), require("mlflow.entities", extra="track")
        try:
            self._client = tracking.MlflowClient(tracking_uri=self.uri)
            found = self._client.get_experiment_by_name(self.experiment)
            if found is None:
                place = None if scheme in ("http", "https", "databricks") else self.artifacts.resolve().as_uri()
                self._experiment_id = self._client.create_experiment(self.experiment, artifact_location=place)
            elif found.lifecycle_stage == "deleted":
                remedy = "restore it, or choose another name with MLFLOW_EXPERIMENT_NAME"
                raise ConfigError(f"the experiment {self.experiment} of {self.shown} was deleted", remedy=remedy)
            else:
                self._experiment_id = found.experiment_id
        except AccelError:
            raise
        except Exception as error:  # whatever the store's client raises: MLflow's, the database's, the network's
            raise self._unreachable(error) from error

    def start(self, name: str, params: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]] = (), *, resumed: bool = False) -> None:
        try:
            known = self._remembered()
            if known is not None and resumed:
                self._go_on(known, earlier)
            else:
                if known is not None and known.info.status == "RUNNING":
                    self._client.set_terminated(known.info.run_id, "KILLED")  # nobody could when it was
                tags = {key: value[:LONGEST_TAG] for key, value in self.tags.items()}
                self.run_id = self._client.create_run(self._experiment_id, tags=tags, run_name=name).info.run_id
                self._metrics = [metric for row in earlier for metric in self._of_row(row)]
            self._step = max((row["epoch"] for row in earlier), default=0)
            self._params |= flattened(params)
            self._send()
        except Exception as error:  # as in open
            raise self._unreachable(error) from error
        if self.folder is not None:
            memory = {"tracking_uri": self.shown, "experiment": self.experiment, "run_id": self.run_id}
            write_text(self.folder / MEMORY, json.dumps(memory, indent=2) + "\n")
        logger.info("followed as run %s of the experiment %s in %s", self.run_id, self.experiment, self.shown)

    def note(self, params: Mapping[str, Any]) -> None:
        self._params |= flattened(params)
        self._try(self._send)

    def epoch(self, row: Mapping[str, Any]) -> None:
        self._step = row["epoch"]
        if self._step not in self._there:
            self._metrics += self._of_row(row)
        self._try(self._send)

    def finish(self, metrics: Mapping[str, Any], params: Mapping[str, Any], files: Files) -> None:
        self._metrics += self._of_row({"epoch": self._step, **metrics})
        self._params |= flattened(params)

        def conclude() -> None:
            self._send()
            for path, folder in files:
                self._client.log_artifact(self.run_id, str(path), folder or None)
            self._client.set_terminated(self.run_id, "FINISHED")

        self._try(conclude, last=True)

    def fail(self, error: BaseException) -> None:
        if self.run_id is None:
            return
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        said = (str(error) or type(error).__name__)[:LONGEST_TAG]

        def conclude() -> None:
            self._send()
            self._client.set_tag(self.run_id, "accel.error", said)
            self._client.set_terminated(self.run_id, status)

        self._try(conclude, last=True)

    @property
    def shown(self) -> str:
        """The store's address without a password."""
        return without_password(self.uri)

    def _unreachable(self, error: Exception) -> AccelError:
        said = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        if password := urlsplit(self.uri).password:
            said = said.replace(f":{password}@", ":***@")  # MLflow shows the address that it asked
        if isinstance(error, ModuleNotFoundError):
            return MissingError(f"the tracking store {self.shown} needs {error.name}", remedy=f"pip install {error.name}")
        remedy = "see that it runs, name another with MLFLOW_TRACKING_URI, or leave out --track"
        return MissingError(f"the tracking store {self.shown} cannot be used: {said}", remedy=remedy)

    def _remembered(self) -> Any:
        """The run that the folder names, if this store has it."""
        if self.folder is None or not (self.folder / MEMORY).is_file():
            return None
        try:
            wanted = json.loads((self.folder / MEMORY).read_text(encoding="utf-8"))["run_id"]
        except (ValueError, KeyError, TypeError):
            return None
        exceptions = require("mlflow.exceptions", extra="track")
        try:
            found = self._client.get_run(wanted)
        except exceptions.MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None  # followed in another store
            raise
        return found if found.info.lifecycle_stage == "active" else None

    def _go_on(self, known: Any, earlier: Sequence[Mapping[str, Any]]) -> None:
        """Each epoch once: what the store has stays, what did not reach it before the run was killed is sent now."""
        self.run_id = known.info.run_id
        self._client.update_run(self.run_id, status="RUNNING")
        self._sent = dict(known.data.params)
        there = {metric.step for metric in self._client.get_metric_history(self.run_id, "train_loss")}
        self._metrics = [metric for row in earlier if row["epoch"] not in there for metric in self._of_row(row)]
        self._there = there

    def _of_row(self, row: Mapping[str, Any]) -> list[Any]:
        step, now = int(row.get("epoch") or 0), int(time.time() * 1000)
        numbers = {key: value for key, value in row.items() if key != "epoch" and isinstance(value, int | float)}
        return [self._entities.Metric(key, float(value), now, step) for key, value in numbers.items() if math.isfinite(value)]

    def _send(self) -> None:
        """Send what waits; what arrived waits no more."""
        wanted = [(key, value) for key, value in self._params.items() if key not in self._sent]
        while wanted or self._metrics:
            params, metrics = wanted[:MOST_PARAMS], self._metrics[: MOST_METRICS - MOST_PARAMS]
            self._client.log_batch(self.run_id, metrics=metrics, params=[self._entities.Param(key, value) for key, value in params])
            self._sent |= dict(params)
            wanted, self._metrics = wanted[len(params) :], self._metrics[len(metrics) :]

    def _try(self, action: Callable[[], None], *, last: bool = False) -> None:
        """After a failure nothing is tried before the end: each try may have to wait for an answer that does not come."""
        if self._failed and not last:
            return
        try:
            action()
        except Exception as error:  # as in open; a run of hours must not end for its record
            if not self._failed:
                again = "" if last else "; the run goes on, and what is missing there is tried once more when it ends"
                logger.warning("%s%s", self._unreachable(error).message, again)
            self._failed = True
            return
        if self._failed and last:
            logger.warning("the tracking store %s answers again: nothing of the run is missing there", self.shown)


def set_limits() -> None:
    """Tell MLflow what LIMITS says, before it is imported."""
    for name, value in LIMITS.items():
        os.environ.setdefault(name, value)


def check_uri(uri: str) -> None:
    """Raise ConfigError for a store that MLflow refuses (a folder of files), or that ACCEL_OFFLINE forbids."""
    scheme = urlsplit(uri).scheme
    if scheme in ("", "file"):
        raise ConfigError(
            f"the tracking store {uri!r} is a folder of files, which MLflow no longer writes",
            remedy="name a database, as sqlite:////absolute/path/mlflow.db, or a server",
        )
    if offline() and not scheme.startswith("sqlite"):
        raise ConfigError(
            f"the tracking store {without_password(uri)} needs a connection, and ACCEL_OFFLINE is set",
            remedy="use a store of this machine, as sqlite:////absolute/path/mlflow.db",
        )


def without_password(uri: str) -> str:
    """`uri` with the password, if it has one, replaced by three asterisks."""
    parts = urlsplit(uri)
    if not parts.password:
        return uri
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}"))


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings with dots between their keys, every value as text that MLflow takes; lists are JSON, None is left out."""
    found: dict[str, str] = {}
    for key, value in values.items():
        name = allowed(f"{prefix}{key}")
        if isinstance(value, Mapping):
            found |= flattened(value, f"{name}.")
        elif value is not None:
            found[name] = (json.dumps(value) if isinstance(value, list | tuple) else str(value))[:LONGEST_PARAM]
    return found


def allowed(name: str) -> str:
    """A name as MLflow takes it: `+` becomes a dot (`eager:fp16.graph`), anything else that is strange an underscore."""
    return "".join(letter if letter.isalnum() or letter in "_-./ :" else "_" for letter in name.replace("+", "."))


@contextlib.contextmanager
def terminated_by_exception() -> Iterator[None]:
    """Let SIGTERM, by which schedulers end a job, end the block by SystemExit(TERMINATED): what is open is closed, and can say so."""
    # Only where nobody else has said what SIGTERM does, and where Python lets it be said.
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(*_: Any) -> NoReturn:
        raise SystemExit(TERMINATED)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
