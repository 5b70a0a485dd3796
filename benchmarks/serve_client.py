"""The load of serve_load.py: one kind of request over long-lived connections, one after another or at given times.

Raw HTTP on sockets: a request is bytes that were made beforehand, short enough for the socket's buffer; an answer is its status and when
its last byte came. One thread without tasks or futures: generator and server share the CPUs, and what a request costs here the server has
not, and the next request is late by. It stands on select(), whose timeouts are of microseconds; those of epoll are of whole milliseconds.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import selectors
import socket
import time
from collections.abc import Iterator, Sequence

CLOSED = 0
"""Instead of a status: the connection ended before the answer."""

CHUNK = 1 << 16


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


class Connection:
    """One keep-alive connection with at most one request on its way."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer, self._whole = bytearray(), 0
        self._due = self._sent = 0.0

    def ask(self, request: bytes, due: float | None = None) -> None:
        self._sent = time.perf_counter()
        self._due = self._sent if due is None else due
        # A connection that the server closed is found out by reading.
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(request)

    def read(self) -> Answer | None:
        """What has come, without waiting for more than there is; the answer once it is whole."""
        try:
            data = self.socket.recv(CHUNK)
        except ConnectionError:
            data = b""
        done = time.perf_counter()
        self._buffer += data
        if data and not self._complete():
            return None
        status = int(self._buffer[9:12]) if data else CLOSED
        self._buffer, self._whole = bytearray(), 0
        return Answer(self._due, self._sent, done, status)

    def _complete(self) -> bool:
        if not self._whole:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return False
            head = bytes(self._buffer[:end]).lower()
            self._whole = end + 4 + int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        return len(self._buffer) >= self._whole


class Pool:
    """Connections to one address; more are opened when none is idle. A context manager, which closes them."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._selector = selectors.SelectSelector()
        self._idle: list[Connection] = []
        self._busy = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self._selector.get_map().values()):
            key.data.socket.close()
        self._selector.close()

    def fill(self, count: int) -> None:
        """So many connections, all idle."""
        self._idle += [self._open() for _ in range(count - len(self._idle))]

    def in_turn(self, request: bytes, clients: int, seconds: float) -> list[Answer]:
        """A closed loop: each client asks as soon as it is answered."""
        until, answers = time.perf_counter() + seconds, []
        for _ in range(clients):
            self._ask(request)
        while self._busy:
            for answer in self._answers(None):
                answers.append(answer)
                if answer.done < until:
                    self._ask(request)
        return answers

    def at_times(self, request: bytes, times: Sequence[float]) -> list[Answer]:
        """An open loop: a request at each of `times` (seconds from now), whatever became of those before it."""
        began, answers = time.perf_counter(), []
        due = collections.deque(began + moment for moment in times)

        def send() -> None:
            while due and due[0] <= time.perf_counter():
                self._ask(request, due.popleft())

        while due or self._busy:
            for answer in self._answers(max(0.0, due[0] - time.perf_counter()) if due else None):
                answers.append(answer)
                send()
            send()
        return answers

    def _ask(self, request: bytes, due: float | None = None) -> None:
        connection = self._idle.pop() if self._idle else self._open()
        self._busy += 1
        connection.ask(request, due)

    def _answers(self, timeout: float | None) -> Iterator[Answer]:
        """Wait up to `timeout` seconds (None: as long as it takes), then all answers that are there."""
        for key, _ in self._selector.select(timeout):
            connection: Connection = key.data
            answer = connection.read()
            if answer is None:
                continue
            asked = connection not in self._idle
            if answer.status == CLOSED or not asked:
                self._forget(connection)
            else:
                self._idle.append(connection)
            if asked:
                self._busy -= 1
                yield answer

    def _forget(self, connection: Connection) -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()
        if connection in self._idle:
            self._idle.remove(connection)

    def _open(self) -> Connection:
        connection = Connection(self._address)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        return connection
