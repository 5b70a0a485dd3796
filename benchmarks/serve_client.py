"""The load of serve_load.py: one kind of request over long-lived connections, one after another or at given times.

Raw HTTP on asyncio transports: a request is bytes that were made beforehand, an answer is its status and when its last byte came. The loop
stands on select(), whose timeouts are of microseconds; those of epoll are of whole milliseconds.
"""

from __future__ import annotations

import asyncio
import dataclasses
import selectors
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

CLOSED = 0
"""Instead of a status: the connection ended before the answer."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """One request. Seconds of one clock.

    Attributes:
        due: when it should have been sent; `sent` is when it was.
        status: of HTTP, or CLOSED.
    """

    due: float
    sent: float
    done: float
    status: int

    @property
    def seconds(self) -> float:
        """From when it was due: what a client waits that does not know of our delays."""
        return self.done - self.due


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on its way."""

    def __init__(self) -> None:
        self._buffer, self._whole = bytearray(), 0
        self._answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._whole:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._buffer[:end]).lower()
            self._whole = end + 4 + int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(self._buffer) >= self._whole:
            status = int(self._buffer[9:12])
            self._buffer, self._whole = bytearray(), 0
            self._end(status)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(CLOSED)

    def ask(self, request: bytes) -> asyncio.Future[int]:
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answer

    def _end(self, status: int) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)


class Pool:
    """Connections to one address; more are opened when none is idle."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._idle: list[Connection] = []
        self.opened = 0

    async def fill(self, count: int) -> None:
        self._idle += [await self._open() for _ in range(count - len(self._idle))]

    async def ask(self, request: bytes, due: float | None = None) -> Answer:
        connection = self._idle.pop() if self._idle else await self._open()
        sent = time.perf_counter()
        status = await connection.ask(request)
        done = time.perf_counter()
        if status != CLOSED:
            self._idle.append(connection)
        return Answer(sent if due is None else due, sent, done, status)

    def close(self) -> None:
        for connection in self._idle:
            connection.transport.close()

    async def _open(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, *self._address)
        self.opened += 1
        return connection


async def in_turn(pool: Pool, request: bytes, clients: int, seconds: float) -> list[Answer]:
    """A closed loop: each client asks as soon as it is answered."""
    until = time.perf_counter() + seconds

    async def client() -> list[Answer]:
        answers = []
        while time.perf_counter() < until:
            answers.append(await pool.ask(request))
        return answers

    return [answer for answers in await asyncio.gather(*(client() for _ in range(clients))) for answer in answers]


async def at_times(pool: Pool, request: bytes, times: Sequence[float]) -> list[Answer]:
    """An open loop: a request at each of `times` (seconds from now), whatever became of those before it."""
    began, tasks = time.perf_counter(), []
    for moment in times:
        wait = began + moment - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(pool.ask(request, due=began + moment)))
    return list(await asyncio.gather(*tasks))


def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """`asyncio.run` on select()."""
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()
