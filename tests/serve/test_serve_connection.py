"""What a full server answers over raw sockets, by the connection itself or by the application, and what httptools alone would get wrong."""

from __future__ import annotations

import contextlib
import gc
import json
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from serve_http import LONG_S, Running, ScriptedEngine, request, scripted, serving
from test_serve_metrics import samples

for _package in ("starlette", "uvicorn", "httptools", "prometheus_client"):
    pytest.importorskip(_package, reason="the extra serve is not installed")

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: E402

from accel.serve import app, connection, server  # noqa: E402
from accel.serve.workers import Workers  # noqa: E402

BODY = json.dumps(request()).encode()
INFER, PREDICT = "/v2/models/net/infer", "/predict"

direct = pytest.mark.skipif(
    not hasattr(HttpToolsProtocol, "_start_asgi_task"), reason="with this uvicorn the application makes every refusal"
)


def head(path: str = INFER, length: int | None = len(BODY), *more: str, version: str = "1.1") -> bytes:
    lines = [f"POST {path} HTTP/{version}", "Host: x", *([] if length is None else [f"Content-Length: {length}"]), *more]
    return "\r\n".join([*lines, "", ""]).encode()


class Wire:
    """A socket, and the answers that come out of it."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=LONG_S)
        self.pieces: list[bytes] = []
        self._rest = b""

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self.socket.sendall(part)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer."""
        while not (found := re.match(rb"HTTP/1.1 (\d+) [^\r]*\r\n(.*?)\r\n\r\n", self._rest, re.DOTALL)):
            self._more()
        headers = dict(line.split(": ", 1) for line in found[2].decode().split("\r\n"))
        end = found.end() + int(headers["content-length"])
        while len(self._rest) < end:
            self._more()
        body, self._rest = self._rest[found.end() : end], self._rest[end:]
        return int(found[1]), headers, body

    def ended(self) -> bool:
        return self._rest == b"" and self.socket.recv(1) == b""

    def _more(self) -> None:
        piece = self.socket.recv(1 << 16)
        assert piece, "the connection ended"
        self.pieces.append(piece)
        self._rest += piece


@contextlib.contextmanager
def wired(port: int) -> Iterator[Wire]:
    wire = Wire(port)
    with wire.socket:
        yield wire


class Full:
    """A server whose one place is taken, until it is let go on."""

    def __init__(self, running: Running, engine: ScriptedEngine, inside: Any) -> None:
        self.port, self._running, self._engine, self._inside = running.port, running, engine, inside

    def go_on(self) -> None:
        self._engine.held.set()
        assert self._inside.result().status == 200
        self._running.until(lambda: self._running.service.gate.running == 0)

    def counted(self) -> tuple[float, float, float]:
        """What /metrics has of refusals: rejected, answered 503, and timed beside those that were let in."""
        found = samples(self._running.get("/metrics").body.decode())
        requests = {labels: value for labels, value in found["accel_requests_total"].items() if labels[1] in ("infer", "predict")}
        refused = sum(value for (code, _), value in requests.items() if code == "503")
        timed = sum(value for (endpoint,), value in found["accel_request_seconds_count"].items() if endpoint in ("infer", "predict"))
        return found["accel_rejected_total"][("full",)], refused, timed - (sum(requests.values()) - refused)


@contextlib.contextmanager
def filled() -> Iterator[Full]:
    engine = ScriptedEngine()
    with serving(scripted(engine), slots=1, timeout=LONG_S) as running, ThreadPoolExecutor(1) as client:
        engine.held.clear()
        try:
            inside = client.submit(running.infer, request())
            running.until(lambda: running.service.gate.running == 1)
            yield Full(running, engine, inside)
        finally:
            engine.held.set()


@pytest.fixture
def full() -> Iterator[Full]:
    with filled() as found:
        yield found


@pytest.fixture(params=[pytest.param("connection", marks=direct), "application"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Full]:
    """A full server that refuses in the one place, or as with a uvicorn that has not the method that the other stands on."""
    if request.param == "application":
        monkeypatch.setattr(connection, "protocol", lambda *_: HttpToolsProtocol)
    with filled() as found:
        yield found


@pytest.mark.parametrize("path", [INFER, PREDICT])
def test_a_refusal_is_the_same_wherever_it_is_made(either: Full, path: str) -> None:
    with wired(either.port) as wire:
        wire.send(head(path), BODY)
        status, headers, body = wire.answer()
    assert (status, json.loads(body)) == (503, {"error": "all 1 places are taken; come again"})
    assert list(headers) == ["date", "content-type", "content-length", "retry-after"]
    assert (headers["content-type"], headers["retry-after"]) == ("application/json", "1")
    assert either.counted() == (1, 1, 1)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_the_body_of_a_refused_request_is_dropped_and_its_connection_serves_the_next(either: Full, chunked: bool) -> None:
    with wired(either.port) as wire:
        if chunked:
            wire.send(head(INFER, None, "Transfer-Encoding: chunked"))
        else:
            wire.send(head(INFER, 10 * len(BODY)))
        assert wire.answer()[0] == 503  # before anything of the body
        for _ in range(10):
            wire.send(b"%x\r\n%s\r\n" % (len(BODY), BODY) if chunked else BODY)
        wire.send(b"0\r\n\r\n" if chunked else b"", head(), BODY)
        assert wire.answer()[0] == 503
        either.go_on()
        wire.send(head(), BODY)
        status, _, body = wire.answer()
    assert (status, json.loads(body)["outputs"][0]["data"]) == (200, [3.0, 5.0, 7.0])
    assert either.counted() == (2, 2, 2)


@pytest.mark.parametrize(("version", "more"), [("1.1", ("Connection: close",)), ("1.0", ())])
def test_who_wants_no_more_is_refused_and_the_connection_closed(full: Full, version: str, more: tuple[str, ...]) -> None:
    with wired(full.port) as wire:
        wire.send(head(INFER, len(BODY), *more, version=version) + BODY)
        status, headers, _ = wire.answer()
        assert (status, headers.get("connection", "close")) == (503, "close")  # older ones of uvicorn close it without a word
        assert wire.ended()
    assert full.counted() == (1, 1, 1)


def test_who_asks_whether_to_go_on_is_refused_instead(full: Full) -> None:
    with wired(full.port) as wire:
        wire.send(head(INFER, len(BODY), "Expect: 100-continue"))
        assert wire.answer()[0] == 503


@direct
def test_a_plain_refusal_is_one_packet_and_never_reaches_the_application(full: Full, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any) -> None:
        raise AssertionError("a task was made for it")

    monkeypatch.setattr(app.Measured, "__call__", never)
    with wired(full.port) as wire:
        for _ in range(20):
            wire.send(head(), BODY)
            assert wire.answer()[0] == 503
    assert len(wire.pieces) == 20


def test_pipelined_requests_are_answered_in_turn_however_many(full: Full) -> None:
    # All behind one that the application answers; a connection that refused them one out of the other would run out of stack.
    number = 3000
    with wired(full.port) as wire:
        wire.send(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n" + head(PREDICT, 0) * number + b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        answers = [wire.answer()[0] for _ in range(number + 2)]
    assert answers == [200, *[503] * number, 200]
    assert full.counted() == (number, number, number)


def test_who_does_not_read_what_he_is_sent_delays_nobody_and_gets_it_in_the_end(full: Full) -> None:
    number = 40_000
    with wired(full.port) as wire:
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        sender = threading.Thread(target=wire.send, args=(head(PREDICT, 0) * number,))
        sender.start()
        with wired(full.port) as other:
            for _ in range(50):
                other.send(head(), BODY)
                assert other.answer()[0] == 503
        answers = {wire.answer()[0] for _ in range(number)}
        sender.join(LONG_S)
    assert answers == {503}
    assert full.counted() == (number + 50,) * 3


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"POST /predict HTTP/1.1\r\nX: ", b"x"),
        (b"POST /predict HTTP/1.1\r\n", b"X: y\r\n"),
        (b"POST /predict?", b"x"),
        (head(PREDICT, None, "Transfer-Encoding: chunked") + b"0\r\n", b"X: y\r\n"),
    ],
    ids=["one header", "many headers", "target", "trailers"],
)
def test_a_head_without_an_end_is_cut_off(start: bytes, more: bytes) -> None:
    piece = more * (8192 // len(more))
    with serving(scripted(), slots=1) as running, wired(running.port) as wire:
        wire.send(start)
        with contextlib.suppress(ConnectionError):
            # Four times what fits into the limit and the sockets' buffers.
            for _ in range(4096):
                wire.send(piece)
            raise AssertionError("32 MB of it were read")
        assert running.infer(request()).status == 200


def test_a_long_body_in_small_pieces_is_no_head(adding: Running) -> None:
    body = b" " * (2 * connection.HEAD_BYTES - len(BODY)) + BODY
    assert len(body) < 2 * adding.service.tensor_limit
    body = body[-adding.service.tensor_limit :]
    with wired(adding.port) as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.send(head(INFER, len(body)), *(body[start : start + 1000] for start in range(0, len(body), 1000)))
        assert wire.answer()[0] == 200


UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA")
"""Of every request of java.net.http.HttpClient over plain HTTP. uvicorn's own class drops the body: its issue 2722."""


@pytest.mark.parametrize("together", [True, False], ids=["one piece", "two pieces"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_an_offer_of_another_protocol_is_passed_over_and_the_connection_lives_on(full: Full, together: bool, chunked: bool) -> None:
    start = head(INFER, None, "Transfer-Encoding: chunked", *UPGRADE) if chunked else head(INFER, len(BODY), *UPGRADE)
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY) if chunked else BODY
    with wired(full.port) as wire:
        for status in (503, 200, 200):
            wire.send(*([start + body] if together else [start, body]))
            found = wire.answer()
            assert found[0] == status
            if status == 503:
                full.go_on()
        assert json.loads(found[2])["outputs"][0]["data"] == [3.0, 5.0, 7.0]
        wire.send(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert wire.answer()[0] == 200
    assert full.counted() == (1, 1, 1)


def test_a_client_that_offers_another_protocol_later_keeps_its_connection(adding: Running) -> None:
    with wired(adding.port) as wire:
        for more in ((), UPGRADE, ()):
            wire.send(head(INFER, len(BODY), *more) + BODY)
            assert wire.answer()[0] == 200
        wire.send(b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert wire.answer()[0] in (400, 404, 405)


def test_a_pipelined_offer_of_another_protocol_ends_the_connection(full: Full) -> None:
    with wired(full.port) as wire:
        wire.send(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n" + head(INFER, len(BODY), *UPGRADE) + BODY)
        assert wire.answer()[0] == 400
        with contextlib.suppress(ConnectionError):
            assert wire.ended()


def test_what_is_no_http_is_400_and_the_connection_closed(adding: Running) -> None:
    with wired(adding.port) as wire:
        wire.send(b"HELO x\r\n\r\n")
        status, headers, _ = wire.answer()
        assert (status, headers["connection"]) == (400, "close")
        assert wire.ended()


def test_what_was_there_before_the_first_request_is_not_collected_while_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = []
    service = type("Service", (), {"warm": staticmethod(lambda: None), "gate": type("Gate", (), {"running": 0})})()

    class Server:
        def run(self, sockets: list[socket.socket]) -> None:
            frozen.append(gc.get_freeze_count())

    monkeypatch.setattr(server, "build", lambda *_: Server())
    assert server.run(service, Workers(1), server.listen("127.0.0.1", 0), lambda: None)
    assert frozen[0] > 10_000
    assert gc.get_freeze_count() == 0
