"""The process in which fused candidates are timed (accel.exporters.fused.apart), as a thread of this one: on it the fake driver works.

Requests and answers go through pipes as they do between processes. A context that is gone is the driver's `fail`, which the next start
ends.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from accel.exporters.fused import apart


class Thread:
    """As subprocess.Popen, as far as apart.Worker goes."""

    pid = 2**22 + 1  # no process has it

    def __init__(self) -> None:
        (given, self._stdin), (self._stdout, said) = os.pipe(), os.pipe()
        self.stdin, self.stdout = io.FileIO(self._stdin, "w"), io.FileIO(self._stdout)
        self._thread = threading.Thread(target=self._run, args=(given, said))
        self._code: int | None = None
        self._thread.start()

    def _run(self, given: int, said: int) -> None:
        with os.fdopen(given, "rb") as requests, io.FileIO(said, "w") as answers:
            apart.serve(apart.requests_of(requests), lambda one: answers.write(apart.line_of(one)) and None)
            self._code = apart.DEAD if apart.GONE else 0

    def poll(self) -> int | None:
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        self._thread.join(timeout)
        assert not self._thread.is_alive()
        return self._code or 0


@contextlib.contextmanager
def nearby(starts: Callable[[], Any] = lambda: None) -> Iterator[list[Thread]]:
    """`starts` is called in front of each start. Yields those that were started."""
    found: list[Thread] = []

    def start() -> Thread:
        starts()
        found.append(Thread())
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apart, "started", start)
        patch.setattr(apart, "GONE", [])
        yield found
        # What a context had that is gone is given back to one that lives.
        starts()
        apart.GONE.clear()
        assert all(one.poll() is not None for one in found)
