"""Ctrl-C and foreign code: what calls back may drop an interrupt, and what cannot be stopped must not see the interpreter end under it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_abandoned: list[threading.Thread] = []


def abandon(thread: threading.Thread) -> None:
    """Note that nobody waits any more for `thread`, which is inside foreign code that cannot be stopped."""
    _abandoned.append(thread)


def abandoned() -> bool:
    """Whether such a thread still runs: a process that ends as Python ends it, taking apart what the thread uses, is likely to crash."""
    return any(thread.is_alive() for thread in _abandoned)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """An interrupt that comes inside the block is handled at its end, by whatever handles it outside: a KeyboardInterrupt, mostly.

    For calls into a library that calls Python back: Python handles a signal in the next line that the main thread runs, which is then
    one of the callback's. On another thread than the main one nothing changes: no signal is handled there.
    """
    outside, came = signal.getsignal(signal.SIGINT), list[tuple[int, FrameType | None]]()
    if callable(outside) and threading.current_thread() is threading.main_thread() and _set(lambda *told: came.append(told)):
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, outside)
            if came:
                outside(*came[0])
    else:
        yield


def _set(handler: Callable[[int, FrameType | None], None]) -> bool:
    """Whether it could be set: a subinterpreter may set none, and handles no signals either."""
    try:
        signal.signal(signal.SIGINT, handler)
    except ValueError:
        return False
    return True
