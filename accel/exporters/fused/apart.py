"""`chains.Chains` in a process of their own: a candidate that kills its CUDA context ends that process, and neither search nor export.

What goes wrong on the GPU itself, as an address outside its memory, ends a context for good, and with it whatever else its process has on
the GPU. So candidates run in `python -m accel.exporters.fused.apart`, and where one of them ends it another is started, without that one.

Requests come on its stdin and answers go to its stdout: a line of JSON each, and the bytes that the line announces.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from accel import errors
from accel.errors import AccelError
from accel.exporters.fused.chains import Chains, Part, Room, opened_in
from accel.exporters.fused.network import Network
from accel.types import Kernel

SILENT_S = 60.0
"""Longest that the process may say nothing: it tells what it begins to time, which takes milliseconds; importing CUDA takes seconds."""
CLOSING_S = 20.0
DEAD = 3
"""Its exit code where its context is gone."""
COMMAND: Sequence[str] = (sys.executable, "-m", "accel.exporters.fused.apart")


class Died(AccelError):
    """A candidate ended its process.

    Attributes:
        at: which of those that were compared; None: the one that was added, or it is not known.
    """

    def __init__(self, message: str, at: int | None = None) -> None:
        super().__init__(message, remedy="leave --tune out, and report it with this message")
        self.at = at


class CannotMeasure(AccelError):
    """There is no process in which anything could be timed."""


@dataclasses.dataclass(frozen=True)
class Killed:
    """Kernels that ended the process that they ran in, by the keys that they were added with, and what was said of it."""

    keys: frozenset[Any]
    error: str


@contextlib.contextmanager
def opened(network: Network, on: str, input_dtype: str, arena_bytes: int) -> Iterator[Apart]:
    """As `chains.opened`, in a process of their own."""
    found = Apart(Room.of(network, input_dtype, arena_bytes), on)
    try:
        yield found
    finally:
        found.close()


class Apart:
    """As `chains.Chains`.

    Attributes:
        killed: what has ended the process so far; nothing of it is run again.
    """

    def __init__(self, room: Room, on: str) -> None:
        self._room, self._on = room, on
        self._again: dict[Any, Callable[[], Part]] = {}
        self._numbers: dict[Any, int] = {}
        self._there: set[Any] = set()
        self._worker: Worker | None = Worker(room, on)
        self.killed: list[Killed] = []

    def __contains__(self, key: Any) -> bool:
        return key in self._again and not self._is_killed([key])

    def add(self, key: Any, part: Part, again: Callable[[], Part] | None = None) -> None:
        """As `Chains.add`.

        Args:
            again: makes `part` once more, for another process; `part` itself is kept where it is not given.

        Raises:
            Died: its first launch ended the process. CannotMeasure: no process can be had. Beside that as `Chains.add`.
        """
        self._put(key, part)
        self._again[key] = again or (lambda: part)

    def compare(self, chains: Sequence[Sequence[Any]], single: bool = False) -> list[list[float]]:
        """As `Chains.compare`; infinite for a chain that ended the process, too: the others are timed once more, without it.

        Raises:
            Died: the first of them did. CannotMeasure: no process can be had. Beside that as `Chains.compare`.
        """
        while True:
            ready = [index for index, keys in enumerate(chains) if not self._is_killed(keys)]
            if 0 not in ready:
                raise Died(next(one.error for one in self.killed if one.keys <= set(chains[0])))
            try:
                turns = self._compared([chains[index] for index in ready], single)
            except Died as error:
                at = 0 if error.at is None else ready[error.at]
                # The kernels that the first has not; none: then it is the first once more.
                other = frozenset(chains[at]) - frozenset(chains[0])
                self._bury(other or frozenset(chains[0]), error.message)
                if not other:
                    raise
                continue
            rows = [dict(zip(ready, turn, strict=True)) for turn in turns]
            return [[row.get(index, float("inf")) for index in range(len(chains))] for row in rows]

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _compared(self, chains: Sequence[Sequence[Any]], single: bool) -> list[list[float]]:
        for key in dict.fromkeys(key for keys in chains for key in keys):
            if key not in self._there:
                try:
                    self._put(key, self._again[key]())
                except Died:
                    at = next(index for index, keys in enumerate(chains) if key in keys)
                    raise Died(self.killed[-1].error, at) from None
        asked = {"do": "compare", "chains": [[self._numbers[key] for key in keys] for keys in chains], "single": single}
        found: list[list[float]] = self._ask(asked)
        return found

    def _put(self, key: Any, part: Part) -> None:
        number = self._numbers.setdefault(key, len(self._numbers))
        asked = {
            "do": "add",
            "key": number,
            "kernels": [dataclasses.asdict(kernel) for kernel in part.kernels],
            "offset": part.offset,
            "state_bytes": part.state_bytes,
        }
        try:
            self._ask(asked, part.cubin, part.weights)
        except Died as error:
            self._bury(frozenset([key]), error.message)
            raise
        self._there.add(key)

    def _ask(self, asked: Mapping[str, Any], *more: bytes) -> Any:
        if self._worker is None:
            self._worker = Worker(self._room, self._on)
        try:
            return self._worker.ask(asked, *more)
        except (Died, CannotMeasure):
            self._worker.kill()
            self._worker = None
            self._there.clear()
            raise

    def _bury(self, keys: frozenset[Any], error: str) -> None:
        if not any(one.keys == keys for one in self.killed):
            self.killed.append(Killed(keys, error))

    def _is_killed(self, keys: Sequence[Any]) -> bool:
        return any(one.keys <= set(keys) for one in self.killed)


def started() -> subprocess.Popen[bytes]:
    """The process. Its own session keeps the terminal's Ctrl-C from it; it ends when its stdin does."""
    package = Path(__file__).resolve().parents[3]
    paths = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths}
    pipe = subprocess.PIPE
    return subprocess.Popen(COMMAND, stdin=pipe, stdout=pipe, env=environment, start_new_session=True, bufsize=0)


class Worker:
    """One process, started at once and asked later: it imports and makes its context while others compile."""

    def __init__(self, room: Room, on: str) -> None:
        try:
            self._process = started()
        except OSError as error:
            raise CannotMeasure(f"a process that times candidates cannot be started: {error}", remedy="leave --tune out") from error
        self._read, self._is_open = b"", False
        self._opening = {"do": "open", "on": on, **dataclasses.asdict(room)}
        self._send(self._opening)
        self._is_opening = True

    def ask(self, asked: Mapping[str, Any], *more: bytes) -> Any:
        """What it answers.

        Raises:
            Died: it ended over that, its context did, or it said nothing for SILENT_S. CannotMeasure: it did before it was asked anything.
            Beside that what it raised.
        """
        if not self._is_open:
            self._open()
        self._send(asked, *more)
        return self._answer()

    def _open(self) -> None:
        if not self._is_opening:  # it was refused before
            self._send(self._opening)
        self._is_opening = False
        try:
            self._answer()
        except Died as error:
            raise CannotMeasure(f"no candidate can be timed: {error.message}", remedy="leave --tune out") from error
        self._is_open = True

    def close(self) -> None:
        """Wait for its end, which frees what it has on the GPU: whoever comes next has it to itself."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        self._ended()
        self.kill()

    def kill(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            # The driver may take its time with a kernel that does not end; the next process is not kept waiting for ever.
            self._ended()
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):
                pipe.close()

    def _ended(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=CLOSING_S)
        return self._process.poll()

    @property
    def _stdin(self) -> Any:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _stdout(self) -> Any:
        assert self._process.stdout is not None
        return self._process.stdout

    def _send(self, asked: Mapping[str, Any], *more: bytes) -> None:
        line = line_of({**asked, "bytes": [len(data) for data in more]})
        # Of a process that has ended the answer will say so.
        with contextlib.suppress(OSError):
            for data in (line, *more):
                view = memoryview(data)
                while view:
                    view = view[self._stdin.write(view) or 0 :]

    def _answer(self) -> Any:
        at: int | None = None
        while True:
            said = self._line(at)
            if "at" in said:
                at = said["at"]
            elif "died" in said:
                raise Died(said["died"], at)
            elif "error" in said:
                raise _rebuilt(said["error"])
            else:
                return said["done"]

    def _line(self, at: int | None) -> Mapping[str, Any]:
        until = time.monotonic() + SILENT_S
        while b"\n" not in self._read:
            if not select.select([self._stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                raise Died(f"nothing was heard from its process for {SILENT_S:g} s", at)
            data = os.read(self._stdout.fileno(), 1 << 16)
            if not data:
                raise Died(f"its process ended with status {self._ended()}", at)
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        said: Mapping[str, Any] = json.loads(line)
        return said


def _rebuilt(said: Mapping[str, Any]) -> AccelError:
    """The AccelError that the process described, of its own class where it is one of accel.errors."""
    kind = getattr(errors, said["type"], None)
    error = AccelError(said["message"], remedy=said["remedy"])
    if isinstance(kind, type) and issubclass(kind, AccelError):
        # Subclasses may take other arguments; the text is already final.
        error.__class__ = kind
    return error


def line_of(said: Mapping[str, Any]) -> bytes:
    return json.dumps(said).encode() + b"\n"


# In the process itself.

Request = tuple[Mapping[str, Any], list[bytes]]


def requests_of(stream: BinaryIO) -> Iterator[Request]:
    while line := stream.readline():
        asked = json.loads(line)
        yield asked, [stream.read(size) for size in asked["bytes"]]


GONE: list[Any] = []
"""What belongs to a context that is gone: giving it back would fail, and say so."""


def serve(requests: Iterator[Request], say: Callable[[Mapping[str, Any]], None]) -> None:
    """Answer requests until there are no more, or until the context is gone: nothing may be asked of the driver then."""
    with contextlib.ExitStack() as stack:
        chains: Chains | None = None
        for asked, more in requests:
            try:
                if chains is None:
                    room = Room(tuple(asked["image"]), asked["input_dtype"], asked["arena_bytes"], asked["classes"])
                    chains = stack.enter_context(opened_in(room, asked["on"]))
                    say({"done": None})
                else:
                    say({"done": _carried_out(chains, asked, more, say)})
            except AccelError as error:
                if chains is not None and not chains.lives():
                    GONE.append((stack.pop_all(), chains, error))
                    say({"died": _first(error).message})
                    return
                say({"error": _described(_first(error))})


def _carried_out(chains: Chains, asked: Mapping[str, Any], more: Sequence[bytes], say: Callable[[Mapping[str, Any]], None]) -> Any:
    if asked["do"] == "compare":
        return chains.compare(asked["chains"], asked["single"], lambda index: say({"at": index}))
    kernels = tuple(Kernel(**{**of, "layers": tuple(of["layers"])}) for of in asked["kernels"])
    chains.add(asked["key"], Part(kernels, more[0], asked["offset"], more[1], asked["state_bytes"]))
    return None


def _described(error: AccelError) -> Mapping[str, Any]:
    return {"type": type(error).__name__, "message": error.message, "remedy": error.remedy}


def _first(error: AccelError) -> AccelError:
    """What went wrong first: where a context is gone, giving things back goes wrong behind it."""
    while isinstance(error.__context__, AccelError):
        error = error.__context__
    return error


def main() -> None:
    """The process: stdout is for answers alone, what else is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def say(said: Mapping[str, Any]) -> None:
        answers.write(line_of(said))

    serve(_followed(sys.stdin.buffer), say)
    sys.stderr.flush()
    # Not by way of finalisers: of a context that is gone each of them would complain.
    os._exit(DEAD)


def _followed(stream: BinaryIO) -> Iterator[Request]:
    """Requests, read by a thread of its own, which ends this process when whoever asks has closed them or died, whatever it is doing;
    the driver frees what it has."""
    waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()

    def read() -> None:
        for request in requests_of(stream):
            waiting.put(request)
        os._exit(0)

    threading.Thread(target=read, name="requests", daemon=True).start()
    while True:
        yield waiting.get()


if __name__ == "__main__":
    main()
