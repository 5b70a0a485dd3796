"""Threads that run an engine, as many as may run at once; daemons, so that one that hangs keeps no process alive."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

Task = tuple[Callable[[], Any], "Future[Any]"]


class Workers:
    """`count` threads and one queue."""

    def __init__(self, count: int) -> None:
        self._queue: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=f"accel-serve-{number}", daemon=True) for number in range(count)]

    def start(self, warm: Callable[[], Any]) -> None:
        """Start the threads and call `warm` once in each of them, all at once; raises what one of them raised."""
        everybody = threading.Barrier(len(self._threads))

        def warm_up() -> None:
            # Nobody takes a second call before everybody has had the first.
            everybody.wait()
            warm()

        for thread in self._threads:
            thread.start()
        for warmed in [self.submit(warm_up) for _ in self._threads]:
            warmed.result()

    def submit(self, task: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._queue.put((task, future))
        return future

    def close(self) -> None:
        """Let the threads end once what they were given is done."""
        for _ in self._threads:
            self._queue.put(None)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            _run(*item)
            # While it waits for the next one, a thread must not hold the last one's body and answer.
            del item


def _run(task: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = task()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
