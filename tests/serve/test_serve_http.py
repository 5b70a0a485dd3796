"""The service over a real socket: endpoints, limits, and what an overloaded, slow or stopping server answers."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import json
import signal
import socket
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serve_http import IMAGE, MASK, Running, ScriptedEngine, input_of, request, scripted, serving

from accel.errors import UsageError
from accel.serve import bodies, server
from accel.serve.gate import Gate
from accel.serve.reply import Refusal
from accel.serve.workers import Workers
from accel.types import TensorSpec

for _package in ("starlette", "uvicorn", "httptools", "prometheus_client"):
    pytest.importorskip(_package, reason="the extra serve is not installed")


def test_the_server_says_what_it_is(adding: Running) -> None:
    assert adding.get("/v2").json == {"name": "accel", "version": "0.0", "extensions": ["binary_tensor_data", "classification"]}
    assert adding.get("/v2/health/live").json == {"live": True}
    assert adding.get("/v2/health/ready").json == {"ready": True}
    assert adding.get("/v2/models/net/ready").json == {"name": "net", "ready": True}
    assert adding.get("/v2/models/net/versions/1").json["inputs"][1] == {"name": "mask", "datatype": "BOOL", "shape": [-1, 4]}


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v2/models/other", 404, "there is no model 'other'; this server has 'net'"),
        ("GET", "/v2/models/net/versions/2", 404, "net has no version '2'; it has '1'"),
        ("GET", "/v2/models/net/versions/2/ready", 404, "no version"),
        ("POST", "/v2/models/other/infer", 404, "there is no model"),
        ("GET", "/v2/models/net/config", 404, "Not Found"),
        ("GET", "/v2/models/net/infer", 405, "Method Not Allowed"),
        ("POST", "/predict", 404, "net takes no pictures"),
        ("POST", "/v2", 405, "Method Not Allowed"),
    ],
)
def test_what_there_is_not_is_an_error_in_json(adding: Running, method: str, path: str, status: int, message: str) -> None:
    answer = adding.ask(method, path, b"{}" if method == "POST" else None)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert message in answer.json["error"]


def sums(given: Any) -> Any:
    return given["image"].sum(axis=1)


def test_an_engine_answers_and_its_own_complaint_is_the_clients_error() -> None:
    with serving(scripted(ScriptedEngine(sums, (IMAGE,)))) as running:
        body = {"inputs": request()["inputs"][:1]}
        assert running.infer(body).json["outputs"][0]["data"] == [3.0, 5.0, 7.0]
        body["inputs"][0]["shape"] = [1, 6]
        answer = running.infer(body)
    assert answer.status == 400
    assert answer.json["error"].startswith(
        "input 'image': expected float32 of shape ('batch', 2, 3), received float32 of shape (1, 6); pass"
    )


def test_an_exception_nobody_expected_is_500_and_the_server_goes_on() -> None:
    def fail(given: Any) -> Any:
        if given["image"][0, 0, 0] == 0:
            raise ZeroDivisionError("secret")
        return sums(given)

    with serving(scripted(ScriptedEngine(fail, (IMAGE,))), slots=1) as running:
        body = {"inputs": request()["inputs"][:1]}
        answer = running.infer(body)
        assert (answer.status, answer.json) == (500, {"error": "an internal error; the server's log has more"})
        body["inputs"][0]["data"] = [1] * 6
        assert running.infer(body).status == 200


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)])
def test_a_compressed_body_is_decompressed(adding: Running, encoding: str, compress: Any) -> None:
    answer = adding.infer(compress(json.dumps(request()).encode()), Content_Encoding=encoding)
    assert answer.json["outputs"][0]["data"] == [3.0, 5.0, 7.0]


@pytest.mark.parametrize(
    ("encoding", "body", "status", "message"),
    [
        ("br", b"x", 415, "'br' is not supported"),
        ("gzip", b"no gzip", 400, "the body is not gzip"),
        ("gzip", gzip.compress(b"{}")[:-3], 400, "not one whole gzip stream"),
        ("gzip", gzip.compress(b"{}") + b"more", 400, "not one whole gzip stream"),
        ("gzip", gzip.compress(b" " * 50_000_000), 413, "over the limit"),
        ("deflate", zlib.compress(b" " * 50_000_000), 413, "over the limit"),
    ],
    ids=["unknown", "damaged", "cut", "followed", "gzip bomb", "deflate bomb"],
)
def test_a_compressed_body_that_cannot_be_is_refused(adding: Running, encoding: str, body: bytes, status: int, message: str) -> None:
    answer = adding.infer(body, Content_Encoding=encoding)
    assert answer.status == status
    assert message in answer.json["error"]


def test_the_limit_of_a_body_follows_from_the_models_inputs() -> None:
    kilobytes = 64 * 1024
    assert bodies.json_limit((IMAGE, MASK), 4) == bodies.tensor_limit((IMAGE, MASK), 4) == kilobytes + 4 * 10 * 32
    photographs = (TensorSpec("image", ("batch", 3, 224, 224)),)
    assert bodies.json_limit(photographs, 32) == kilobytes + 3 * 224 * 224 * 32
    assert bodies.tensor_limit(photographs, 32) == kilobytes + 32 * 3 * 224 * 224 * 4
    scans = (TensorSpec("image", ("batch", 64, 1024, 1024)),)
    assert bodies.tensor_limit(scans, 32) == bodies.json_limit(scans, 32) == kilobytes + 64 * 1024 * 1024 * 32


def test_a_body_that_says_that_it_is_too_long_is_refused_before_it_is_sent(adding: Running) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", adding.port, timeout=30)) as connection:
        connection.putrequest("POST", "/v2/models/net/infer")
        connection.putheader("Content-Length", str(adding.service.tensor_limit + 1))
        connection.endheaders()
        assert connection.getresponse().status == 413


def test_a_body_that_does_not_say_its_length_is_refused_as_soon_as_it_is_too_long(adding: Running) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", adding.port, timeout=30)) as connection:
        connection.putrequest("POST", "/v2/models/net/infer")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        sent = 0
        while sent <= adding.service.tensor_limit:
            connection.send(b"%x\r\n%s\r\n" % (65536, b" " * 65536))
            sent += 65536
        # The last chunk, which would end the body, was never sent.
        response = connection.getresponse()
        assert response.status == 413
        assert "over the limit" in json.loads(response.read())["error"]
    assert adding.service.ledger.held == 0


def test_all_bodies_together_hold_no_more_than_the_ledger_has() -> None:
    async def chunks(*sizes: int) -> AsyncIterator[bytes]:
        for size in sizes:
            yield b" " * size

    async def read(ledger: bodies.Ledger, *sizes: int) -> bytes:
        with bodies.Body(ledger, 100, None) as body:
            return await body.read(chunks(*sizes), 10)

    ledger = bodies.Ledger(most=120)
    ledger.take(50)
    assert len(asyncio.run(read(ledger, 40, 30))) == 70
    with pytest.raises(Refusal, match="too many large requests") as refused:
        asyncio.run(read(ledger, 40, 31))
    assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
    assert ledger.held == 50


def test_a_block_may_take_its_time_and_no_longer() -> None:
    async def sleep(seconds: float, most: float) -> str:
        with bodies.within(most):
            await asyncio.sleep(seconds)
        await asyncio.sleep(0.02)  # a timer that is left would end this one
        return "there"

    async def cancelled() -> None:
        task = asyncio.create_task(sleep(30, 30))
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    assert asyncio.run(sleep(0, 0.01)) == "there"
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(sleep(30, 0.01))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())


def test_who_waits_no_longer_leaves_the_place_taken_until_the_run_ends() -> None:
    workers, held = Workers(1), threading.Event()
    workers.start(lambda: None)
    gate = Gate(workers, 1, 30)

    async def give_up() -> None:
        task = asyncio.create_task(gate.run(held.wait, 30))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gate.is_full
        held.set()
        await gate.idle()
        assert gate.running == 0
        assert await gate.run(lambda: 7, 30) == 7

    asyncio.run(give_up())
    workers.close()


def test_a_body_that_does_not_come_is_408_and_takes_no_place() -> None:
    with serving(scripted(), slots=1, timeout=0.2) as running:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)) as connection:
            connection.putrequest("POST", "/v2/models/net/infer")
            connection.putheader("Content-Length", "10")
            connection.endheaders(b"{")
            assert connection.getresponse().status == 408
        assert running.infer(request()).status == 200


@pytest.fixture
def busy() -> Iterator[tuple[Running, ScriptedEngine, ThreadPoolExecutor]]:
    """A server with two places, whose engine waits until it is let go on."""
    engine = ScriptedEngine()
    with serving(scripted(engine), slots=2) as running, ThreadPoolExecutor(4) as clients:
        engine.held.clear()
        engine.entered.clear()
        try:
            yield running, engine, clients
        finally:
            engine.held.set()


def test_who_comes_when_all_places_are_taken_is_sent_away_and_the_others_are_answered(
    busy: tuple[Running, ScriptedEngine, ThreadPoolExecutor],
) -> None:
    running, engine, clients = busy
    inside = [clients.submit(running.infer, request(id=str(number))) for number in range(2)]
    running.until(lambda: b"accel_requests_running 2.0" in running.get("/metrics").body)
    for _ in range(3):
        answer = running.infer(request())
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert answer.json == {"error": "all 2 places are taken; come again"}
    assert running.get("/v2/health/ready").status == 200
    engine.held.set()
    assert [answer.result().json["id"] for answer in inside] == ["0", "1"]
    assert running.infer(request()).status == 200
    assert b'accel_rejected_total{reason="full"} 3.0' in running.get("/metrics").body


def test_a_run_over_its_time_is_504_and_keeps_its_place_until_it_ends() -> None:
    engine = ScriptedEngine()
    with serving(scripted(engine), slots=1, timeout=0.2) as running:
        engine.held.clear()
        answer = running.infer(request())
        assert (answer.status, answer.json) == (504, {"error": "there was no answer within 0.2 s"})
        assert running.infer(request()).status == 503
        engine.held.set()
        running.until(lambda: running.infer(request()).status == 200)
        assert running.service.gate.running == 0


def test_a_client_that_goes_away_gives_its_place_back(busy: tuple[Running, ScriptedEngine, ThreadPoolExecutor]) -> None:
    running, engine, _ = busy
    raw = json.dumps(request()).encode()
    head = f"POST /v2/models/net/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n\r\n".encode()
    for body in (raw, raw[:9]):
        with socket.create_connection(("127.0.0.1", running.port)) as gone:
            gone.sendall(head + body)
            assert len(body) < len(raw) or engine.entered.wait(30)
    engine.held.set()
    running.until(lambda: running.service.gate.running == running.service.gate.requests == 0)
    assert running.infer(request()).status == 200


def test_the_event_loop_answers_while_every_thread_computes(busy: tuple[Running, ScriptedEngine, ThreadPoolExecutor]) -> None:
    running, engine, clients = busy
    inside = [clients.submit(running.infer, request()) for _ in range(2)]
    running.until(lambda: running.service.gate.running == 2)
    assert running.get("/v2/health/live").status == 200
    engine.held.set()
    assert {answer.result().status for answer in inside} == {200}


def test_a_server_that_is_told_to_stop_is_not_ready_and_lets_nobody_in(adding: Running) -> None:
    gate = adding.service.gate
    gate.drain()
    try:
        assert (adding.get("/v2/health/live").status, adding.get("/v2/health/ready").json) == (200, {"ready": False})
        assert (adding.get("/v2/health/ready").status, adding.get("/v2/models/net/ready").status) == (503, 503)
        answer = adding.infer(request())
        assert (answer.status, answer.headers["Retry-After"], answer.headers["Connection"]) == (503, "1", "close")
    finally:
        gate.draining = False


def test_a_run_that_hangs_does_not_keep_the_server_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "GRACE_S", 0.1)
    engine = ScriptedEngine()
    with serving(scripted(engine), slots=1, timeout=0.1) as running:
        engine.held.clear()
        assert running.infer(request()).status == 504
        running.server.handle_exit(signal.SIGTERM, None)
        running.thread.join(10)
        assert not running.thread.is_alive()
        assert running.service.gate.running == 1
        engine.held.set()


def test_every_thread_has_run_before_the_first_request() -> None:
    threads = set()

    def noted(given: Any) -> Any:
        threads.add(threading.current_thread().name)
        return np.zeros((1, 3), np.float32)

    with serving(scripted(ScriptedEngine(noted, (IMAGE,))), slots=3):
        assert threads == {"accel-serve-0", "accel-serve-1", "accel-serve-2"}


def test_an_engine_that_fails_when_it_is_warmed_is_never_served() -> None:
    def fail(_: Any) -> Any:
        raise UsageError("no kernel")

    with pytest.raises(UsageError, match="no kernel"), serving(scripted(ScriptedEngine(fail, (IMAGE,)))):
        raise AssertionError("it was served")


def test_an_address_that_somebody_has_is_an_error_that_names_it() -> None:
    with server.listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1, port {port}"):
            server.listen("127.0.0.1", port)
    with pytest.raises(UsageError, match="cannot listen on no such host"):
        server.listen("no such host", 0)


NUMBERS = st.one_of(st.integers(-3, 2**40), st.floats(), st.booleans(), st.none(), st.text(max_size=3))
JUNK = st.recursive(
    NUMBERS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=8
)
KEYS = st.sampled_from(["id", "inputs", "outputs", "parameters"])
PARTS = st.sampled_from(["name", "shape", "datatype", "data", "parameters"])
PARAMETERS = st.fixed_dictionaries({}, optional={"binary_data_size": st.one_of(st.integers(-1, 60), JUNK), "classification": JUNK})
REQUESTS = st.one_of(
    st.builds(lambda key, value: request(**{key: value}), KEYS, JUNK),
    st.builds(lambda index, part, value: input_of(index, **{part: value}), st.integers(0, 1), PARTS, st.one_of(JUNK, PARAMETERS)),
    st.builds(lambda shape, data: input_of(0, shape=shape, data=data), st.lists(st.integers(0, 9), max_size=5), JUNK),
    st.builds(lambda parameters: request(outputs=[{"name": "logits", "parameters": parameters}]), PARAMETERS),
    JUNK,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(REQUESTS.map(lambda found: json.dumps(found).encode()), st.binary(max_size=60)),
    st.binary(max_size=40),
    st.one_of(st.none(), st.integers(-1, 400).map(str), st.text(alphabet="0123456789-+ e.", max_size=25)),
    st.sampled_from([None, "gzip", "deflate"]),
)
def test_no_request_whatever_is_an_error_of_the_server(
    adding: Running, head: bytes, binary: bytes, length: str | None, encoding: str | None
) -> None:
    headers = {} if length is None else {"Inference_Header_Content_Length": length}
    answer = adding.infer(head + binary, **headers, **({} if encoding is None else {"Content_Encoding": encoding}))
    assert answer.status in (200, 400, 413, 422), answer.body
    assert ("error" in answer.json) == (answer.status != 200) if answer.headers["content-type"] == "application/json" else True
    assert adding.service.gate.running == adding.service.gate.requests == adding.service.ledger.held == 0
