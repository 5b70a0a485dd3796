"""The contexts of one loaded engine: opened when calls overlap, never more than a limit, lent to one call at a time.

A service of a hundred threads needs as many contexts as calls that run at once, not a hundred: each has buffers, on a GPU a stream
and workspace, under torch the weights again. Beyond the limit a call waits for one that ends.

Some runtimes keep what they recorded for the thread that recorded it (`one_thread`). Of those the thread that loaded the engine has a
context of its own, and the calls of all others are run by the pool's threads, which have theirs.
"""

from __future__ import annotations

import functools
import os
import queue
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from accel.device import driver
from accel.errors import UsageError
from accel.runtimes.session import Session
from accel.types import EngineSource

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")

ON_GPU = 4
"""Contexts on a GPU where nobody says how many: what fills it at batch 1, and memory for few."""

THREAD_NAME = "accel-context"


def default_limit(device: str) -> int:
    """One a core that this process may use on a CPU, at most 8; ON_GPU on a GPU."""
    if device != "cpu":
        return ON_GPU
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)


class Contexts:
    """Sessions of one source.

    Args:
        limit: how many there may be.

    Attributes:
        natives, one_thread: of a session, known after `open`.
        checked: what the golden samples said, where they were run; see `accel.load`.
    """

    def __init__(self, source: EngineSource, limit: int) -> None:
        self.source, self.limit = source, limit
        self.checked: dict[str, Any] | None = None
        self.natives: dict[str, str] = {}
        self.one_thread = False
        self._idle: queue.SimpleQueue[Session | None] = queue.SimpleQueue()
        self._local = threading.local()
        self._lock = threading.RLock()
        self._warming = threading.Lock()
        # A session of one thread is closed with its thread; here they are only known.
        self._all: weakref.WeakSet[Session] = weakref.WeakSet()
        self._count = 0
        self._closed = self._opened = False
        self._executor: ThreadPoolExecutor | None = None

    def open(self) -> None:
        """Open the first context, so that what cannot run is told now and not by the first call."""
        with self._lock:
            if self._opened or self._closed:
                return
            first = self._open()
            self._opened, self._count = True, 1
            self.natives, self.one_thread = first.natives, first.one_thread
            if first.one_thread:
                self._local.session = first
            else:
                self._idle.put(first)

    def run(self, work: Callable[[Session], T]) -> T:
        """Call `work` with a context that nobody else uses meanwhile; waits for one where all are in use.

        Raises:
            UsageError: the engine is closed.
        """
        if self.one_thread:
            return self._run_bound(work)
        session = self._borrow()
        try:
            return work(session)
        finally:
            self._give_back(session)

    @property
    def executor(self) -> ThreadPoolExecutor:
        """Threads for calls that must not block their own, as many as they have contexts; started when they are needed."""
        with self._lock:
            if self._closed:
                raise _closed()
            if self._executor is None:
                from concurrent.futures import ThreadPoolExecutor

                mark = functools.partial(setattr, self._local, "ours", True)
                # The thread that loaded a one_thread engine has one of the contexts.
                self._executor = ThreadPoolExecutor(max(1, self.limit - self.one_thread), THREAD_NAME, initializer=mark)
            return self._executor

    def warm_up(self, calls: int) -> int:
        """Open all contexts, run each `calls` times on its own buffers, and say how many there are.

        Of a runtime that keeps to one thread only the context of the thread that asks is run.
        """

        def work(session: Session) -> None:
            with session.entered():
                for _ in range(calls):
                    session.runtime.enqueue(session.runtime.home)
            synchronize(session.stream)

        from accel.device import synchronize

        if self.one_thread:
            self.run(work)
            return 1
        lent: list[Session] = []
        # One at a time: two that hold some of the contexts each would wait for one another.
        with self._warming:
            try:
                while len(lent) < self.limit:
                    lent.append(self._borrow())
                    work(lent[-1])
            finally:
                for session in lent:
                    self._give_back(session)
        return self.limit

    @property
    def count(self) -> int:
        """How many contexts are open."""
        return self._count

    def close(self) -> None:
        """Close what is idle; a context in a call is closed when the call ends, and calls that wait for one are refused."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            executor, self._executor = self._executor, None
            bound = list(self._all) if self.one_thread else []
        self._drain()
        for session in bound:
            _close_unless_busy(session)
        self._local = threading.local()
        if executor is not None:
            # What waits in it finds the engine closed, and says so to whoever awaits it.
            executor.shutdown(wait=False)

    def _open(self) -> Session:
        session = Session(self.source)
        self._all.add(session)
        return session

    def _borrow(self) -> Session:
        if self._closed:
            raise _closed()
        try:
            session = self._idle.get_nowait()
        except queue.Empty:
            session = self._another()
        if session is None:
            self._idle.put(None)
            raise _closed()
        if session.stream is not None:
            self._make_current()
        return session

    def _another(self) -> Session | None:
        """A new context where the limit allows one, else the next that comes back."""
        with self._lock:
            room = self._count < self.limit and not self._closed
            self._count += room
        if not room:
            return self._idle.get()
        try:
            return self._open()
        except BaseException:
            with self._lock:
                self._count -= 1
            raise

    def _give_back(self, session: Session) -> None:
        if self._closed:
            self._drop(session)
            return
        self._idle.put(session)
        # Closed in between: whoever drains last takes this one too.
        if self._closed:
            self._drain()

    def _drain(self) -> None:
        while True:
            try:
                session = self._idle.get_nowait()
            except queue.Empty:
                break
            if session is not None:
                self._drop(session)
        # For those that wait: each hands it on.
        self._idle.put(None)

    def _drop(self, session: Session) -> None:
        session.close()
        with self._lock:
            self._count -= 1

    def _make_current(self) -> None:
        """The GPU's context on this thread, which may never have called an engine."""
        if getattr(self._local, "current", None) is not self:
            driver.activate(self.source.device)
            self._local.current = self

    def _run_bound(self, work: Callable[[Session], T]) -> T:
        if self._closed:
            raise _closed()
        session: Session | None = getattr(self._local, "session", None)
        if session is None and not getattr(self._local, "ours", False):
            return self.executor.submit(self._run_bound, work).result()
        if session is None:
            session = self._local.session = self._open()
            with self._lock:
                self._count += 1
        with session.turn:
            if self._closed:
                session.close()
                raise _closed()
            try:
                return work(session)
            finally:
                if self._closed:
                    session.close()


def _close_unless_busy(session: Session) -> None:
    """Close it, unless it is in a call: the call closes it at its end."""
    if session.turn.acquire(blocking=False):
        try:
            session.close()
        finally:
            session.turn.release()


def _closed() -> UsageError:
    return UsageError("the engine is closed", remedy="load it again with accel.load")
