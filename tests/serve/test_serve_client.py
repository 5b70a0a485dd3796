"""The load generator of benchmarks/serve_load.py against a server with a script in it: no answer is lost, invented or counted twice."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "serve_client.py"
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        spec = importlib.util.spec_from_file_location("serve_client", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "serve_client", module)
        spec.loader.exec_module(module)
        yield module


@contextlib.contextmanager
def answering(answer: Callable[[socket.socket, int], object]) -> Iterator[tuple[str, int]]:
    """A server that calls `answer` with the socket and the number of the request, over all connections, for each request."""
    numbers, lock = iter(range(10**6)), threading.Lock()

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while connection.recv(len(REQUEST), socket.MSG_WAITALL):
                with lock:
                    number = next(numbers)
                answer(connection, number)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()
        listening.shutdown(socket.SHUT_RDWR)


def test_clients_in_turn_ask_again_when_they_are_answered(client: Any) -> None:
    def in_pieces(connection: socket.socket, _: int) -> None:
        time.sleep(0.01)
        for at in range(0, len(OK), 9):
            connection.sendall(OK[at : at + 9])

    with answering(in_pieces) as address, client.Pool(*address) as pool:
        answers = pool.in_turn(REQUEST, 2, 0.2)
    assert {answer.status for answer in answers} == {200}
    assert 4 <= len(answers) <= 42
    assert all(answer.due == answer.sent and answer.seconds >= 0.01 for answer in answers)


def test_requests_at_given_times_wait_for_nobody(client: Any) -> None:
    def slow_then_busy(connection: socket.socket, number: int) -> None:
        time.sleep(0.3 if number == 0 else 0)
        connection.sendall(OK if number == 0 else BUSY)

    with answering(slow_then_busy) as address, client.Pool(*address) as pool:
        pool.fill(1)
        answers = pool.at_times(REQUEST, [0.0, 0.05, 0.05, 0.1])
    assert [answer.status for answer in answers] == [503, 503, 503, 200]
    assert answers[-1].seconds >= 0.3
    began = answers[-1].due
    assert [round(answer.due - began, 3) for answer in answers] == [0.05, 0.05, 0.1, 0.0]
    assert all(answer.sent >= answer.due for answer in answers)


def test_a_request_whose_connection_ends_is_an_answer_that_says_so_and_an_idle_one_that_ends_is_none(client: Any) -> None:
    def close_the_second(connection: socket.socket, number: int) -> None:
        if number != 1:
            connection.sendall(OK)
        if number in (1, 2):
            connection.shutdown(socket.SHUT_RDWR)

    with answering(close_the_second) as address, client.Pool(*address) as pool:
        answers = pool.at_times(REQUEST, [0.0, 0.1, 0.2, 0.3])
    assert [answer.status for answer in answers] == [200, client.CLOSED, 200, 200]
