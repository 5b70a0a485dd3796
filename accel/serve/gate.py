"""Who is let in: no more than may run at once, nobody waits in line, and nobody any more once the server is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from accel.serve.reply import Refusal
from accel.serve.workers import Workers

T = TypeVar("T")

RETRY_AFTER = {"Retry-After": "1"}
FULL, DRAINING = "full", "draining"


class Turned(Refusal):
    """503: nothing of the request was done; `reason` is FULL or DRAINING."""

    def __init__(self, reason: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(503, message, {**RETRY_AFTER, **(headers or {})})
        self.reason = reason


class Gate:
    """Admission to the workers. Of one thread, the event loop's.

    A request takes a slot when its body is there, and the slot is free again when the thread is: one that is answered 504 goes on
    to hold its slot until its run ends, since the thread cannot be stopped, and no other request is then let in to wait behind it.

    Args:
        slots: requests that have a thread or are about to get it; as many as `workers` has threads, so that nobody waits.
        timeout: seconds of one request, from its head to its answer.

    Attributes:
        running: slots that are taken.
        requests: requests that were let in and are not answered yet; those whose body is still arriving are among them.
    """

    def __init__(self, workers: Workers, slots: int, timeout: float) -> None:
        self._workers, self.slots, self.timeout = workers, slots, timeout
        self.running = self.requests = 0
        self.draining = False
        self._idle: asyncio.Event | None = None

    @property
    def is_full(self) -> bool:
        return self.running >= self.slots

    def closed(self) -> Turned | None:
        """Why a request that comes now would not be let in; None if it would be."""
        if self.draining:
            return Turned(DRAINING, "the server is stopping", {"Connection": "close"})
        return self.full() if self.is_full else None

    def full(self) -> Turned:
        """What a request is told that comes when `is_full`."""
        return Turned(FULL, f"all {self.slots} places are taken; come again")

    @contextlib.contextmanager
    def entered(self) -> Iterator[Callable[[], float]]:
        """Let a request in; yields what tells the seconds that it has left. Raises Turned before its body is read."""
        if (turned := self.closed()) is not None:
            raise turned
        clock = asyncio.get_running_loop().time
        until = clock() + self.timeout
        self.requests += 1
        try:
            yield lambda: max(0.0, until - clock())
        finally:
            self.requests -= 1
            self._tell()

    async def run(self, task: Callable[[], T], seconds: float) -> T:
        """`task`'s result, from a thread.

        Raises:
            Turned: all slots are taken. Refusal: 504, it took more than `seconds`. Beside these whatever `task` raises.
        """
        if self.is_full:
            raise self.full()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self.running += 1
        self._workers.submit(task).add_done_callback(functools.partial(self._done, loop, answer))
        # wait_for(wrap_future()) would take the loop two rounds more, and under load a round is all that came meanwhile.
        timer = loop.call_later(seconds, self._expire, answer)
        try:
            return await answer
        finally:
            timer.cancel()

    def drain(self) -> None:
        """Let nobody in any more."""
        self.draining = True

    async def idle(self) -> None:
        """Wait until all who were let in are answered and all slots are free."""
        self._idle = asyncio.Event()
        self._tell()
        await self._idle.wait()

    def _expire(self, answer: asyncio.Future[T]) -> None:
        if not answer.done():
            answer.set_exception(Refusal(504, f"there was no answer within {self.timeout:g} s"))

    def _done(self, loop: asyncio.AbstractEventLoop, answer: asyncio.Future[T], ran: Future[T]) -> None:
        # In the worker's thread. A loop that is closed has nobody left to tell.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._free, answer, ran)

    def _free(self, answer: asyncio.Future[T], ran: Future[T]) -> None:
        self.running -= 1
        self._tell()
        if answer.done():
            return
        if (error := ran.exception()) is not None:
            answer.set_exception(error)
        else:
            answer.set_result(ran.result())

    def _tell(self) -> None:
        if self._idle is not None and self.running == 0 and self.requests == 0:
            self._idle.set()
