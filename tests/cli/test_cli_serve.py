"""`accel serve` as a process: what it says, how it is told to stop, and what it answers until then."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for _package in ("starlette", "uvicorn", "httptools", "prometheus_client", "PIL.Image"):
    pytest.importorskip(_package, reason="the extra serve is not installed")

Process = subprocess.Popen[str]


@pytest.fixture
def served(tiny: Path) -> Iterator[tuple[Process, int, str]]:
    """The tiny bundle by its name in the engines folder, on a free port; the process, the port and the line that said so."""
    command = [
        sys.executable,
        "-m",
        "accel",
        "serve",
        "tiny",
        "--port",
        "0",
        "--max-concurrency",
        "1",
        "--device",
        "cpu",
        "--timeout",
        "20",
    ]
    root = Path(__file__).resolve().parents[2]
    where = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ["PYTHONPATH"]])}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=where) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r"at http://127\.0\.0\.1:(\d+) ", line)
            assert found is not None, line + process.stderr.read()
            yield process, int(found[1]), line
        finally:
            process.kill()


def ready(port: int) -> int:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status


def ask(port: int, body: bytes) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/v2/models/tiny/infer", body)
    return connection.getresponse()


REQUEST = json.dumps({"inputs": [{"name": "input", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [0.5] * 192}]}).encode()


@contextlib.contextmanager
def half_sent(port: int) -> Iterator[tuple[socket.socket, bytes]]:
    """A request that the server has let in, and what of its body is still to come."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        head = f"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(REQUEST)}\r\n\r\n"
        client.sendall(head.encode())
        # It asks for the body when it has let the request in.
        assert client.recv(100).startswith(b"HTTP/1.1 100")
        client.sendall(REQUEST[:100])
        yield client, REQUEST[100:]


def whole_answer(client: socket.socket) -> bytes:
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_sigterm_lets_what_is_in_flight_finish_and_refuses_what_comes(served: tuple[Process, int, str], tiny: Path) -> None:
    import accel

    process, port, line = served
    assert line.startswith("accel: serving tiny, onnxruntime:fp32 on cpu, at http://127.0.0.1:")
    assert line.endswith("(1 at once, 20 s each)\n")
    with half_sent(port) as (client, rest):
        assert ready(port) == 200
        process.send_signal(signal.SIGTERM)
        for _ in range(5000):
            if ready(port) == 503:
                break
        refused = ask(port, REQUEST)
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert json.loads(refused.read()) == {"error": "the server is stopping"}
        assert process.poll() is None
        client.sendall(rest)
        answer = whole_answer(client)
    assert answer.startswith(b"HTTP/1.1 200")
    values = json.loads(answer.partition(b"\r\n\r\n")[2])["outputs"][0]["data"]
    with accel.load(tiny, device="cpu", threads=1) as engine:
        np.testing.assert_array_equal(np.float32(values), engine(np.full((1, 3, 8, 8), 0.5, np.float32))[0])
    assert process.wait(30) == 0
    with pytest.raises(ConnectionRefusedError):
        ready(port)


def test_an_idle_server_ends_at_once_and_ctrl_c_is_130(served: tuple[Process, int, str]) -> None:
    process, port, _ = served
    # A connection that is kept alive and idle keeps nobody.
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().read() == b'{"live": true}'
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


def test_a_second_signal_waits_for_nobody(served: tuple[Process, int, str]) -> None:
    process, port, _ = served
    with half_sent(port):
        process.send_signal(signal.SIGTERM)
        for _ in range(5000):
            if ready(port) == 503:
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_an_address_that_is_taken_is_exit_code_2(tiny: Path, accel_cli: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = accel_cli("serve", tiny, "--port", taken.getsockname()[1])
    assert ran.code == 2
    assert "cannot listen on 127.0.0.1" in ran.err
    assert "--port" in ran.err


def test_no_bundle_is_exit_code_4_and_a_timeout_of_nothing_2(tiny: Path, accel_cli: Callable[..., Any]) -> None:
    ran = accel_cli("serve", "nowhere/none.accel", "--port", "0")
    assert (ran.code, "is no bundle" in ran.err) == (4, True)
    ran = accel_cli("serve", tiny, "--port", "0", "--timeout", "0")
    assert (ran.code, "timeout = 0.0 s" in ran.err) == (2, True)


def test_without_its_extra_it_says_how_to_get_it(tiny: Path, accel_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    ran = accel_cli("serve", tiny, "--port", "0")
    assert ran.code == 4
    assert "pip install 'accel-engines[serve]'" in ran.err


def test_it_listens_to_this_machine_alone_unless_it_is_told_otherwise(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accel.api import serving
    from accel.runtimes import cache
    from accel.serve import server

    said: list[str] = []
    opened = cache.count()

    def run(service: Any, workers: Any, bound: socket.socket, announce: Callable[[], None]) -> bool:
        said.append(bound.getsockname()[0])
        announce()
        return True

    monkeypatch.setattr(server, "run", run)
    for host in ({}, {"host": "0.0.0.0"}):
        serving.serve(tiny, port=0, max_concurrency=3, device="cpu", announce=said.append, **host)  # type: ignore[arg-type]
    assert (said[0], said[2]) == ("127.0.0.1", "0.0.0.0")
    assert "authentication" not in said[1]
    assert "whoever reaches this address may use it: there is no authentication" in said[3]
    assert cache.count() == opened


@pytest.mark.parametrize(("cpus", "slots", "threads"), [(1, 1, 1), (2, 1, 1), (6, 5, 1), (64, 8, 7)])
def test_the_cpus_but_the_event_loops_are_shared_among_the_requests(
    monkeypatch: pytest.MonkeyPatch, cpus: int, slots: int, threads: int
) -> None:
    from accel.api import serving

    monkeypatch.setattr(serving, "_cpus", lambda: cpus)
    assert serving.default_concurrency("cpu") == slots
    assert serving._threads("cpu", slots) == threads
    assert (serving.default_concurrency("cuda:0"), serving._threads("cuda:0", 2)) == (2, None)


def test_a_run_that_hangs_is_left_behind_with_an_error(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accel.api import serving
    from accel.errors import AccelError
    from accel.serve import server

    monkeypatch.setattr(server, "run", lambda *_: False)
    with pytest.raises(AccelError, match="has not ended"):
        serving.serve(tiny, port=0, device="cpu")
