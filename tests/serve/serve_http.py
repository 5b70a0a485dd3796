"""A server in a thread on a free port, an engine with a script in it, and a client that says exactly what it sends."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from accel.runtimes.given import check_arrays
from accel.serve import server
from accel.serve.gate import Gate
from accel.serve.service import Served, Service
from accel.serve.workers import Workers
from accel.types import Array, TensorSpec, Variant

IMAGE = TensorSpec("image", ("batch", 2, 3), "float32", "")
MASK = TensorSpec("mask", ("batch", 4), "bool", "")
LOGITS = TensorSpec("logits", ("batch", 3), "float32", "")
COUNT = TensorSpec("count", ("batch",), "int64", "")
LABELS = ("cat", "dog", "owl")

LONG_S = 300.0
"""Longest that a call is held, or an answer waited for: what takes an idle machine 4 s has taken a busy one more than 30."""


class ScriptedEngine:
    """What the service knows of a LoadedEngine; logits are the sums of each row's three columns, count how much of the mask is set.

    Attributes:
        held: calls wait here until it is set. `entered` is set by a call that began.
    """

    def __init__(self, answer: Callable[[Mapping[str, Array]], Any] | None = None, inputs: tuple[TensorSpec, ...] = (IMAGE, MASK)) -> None:
        self.inputs, self.outputs = inputs, (LOGITS, COUNT) if answer is None else (LOGITS,)
        self.variant, self.device, self.batch = Variant("fake", "fp32"), "cpu", 1
        self.held, self.entered = threading.Event(), threading.Event()
        self.held.set()
        self.calls, self._answer = 0, answer

    def __call__(self, given: Mapping[str, Array]) -> Any:
        self.calls += 1
        self.entered.set()
        assert self.held.wait(LONG_S)
        check_arrays(self.inputs, {spec.name: spec.dtype for spec in self.inputs}, given)
        if self._answer is not None:
            return self._answer(given)
        return {"logits": given["image"].sum(axis=1), "count": given["mask"].sum(axis=1)}

    def predict(self, picture: Array) -> Any:
        return self({"image": picture[None]})


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Running:
    """A server that runs in `thread`; its `service`, its `port`, and a way to ask."""

    def __init__(self, service: Service, port: int, server: Any, thread: threading.Thread) -> None:
        self.service, self.port, self.server, self.thread = service, port, server, thread

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request over a connection of its own; a `_` in a header's name is a `-`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONG_S)
        with contextlib.closing(connection):
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def until(self, condition: Callable[[], bool]) -> None:
        """Ask the server for nothing in particular until `condition` holds."""
        for _ in range(5000):
            if condition():
                return
            self.get("/v2/health/live")
        raise AssertionError("it never came true")

    def infer(self, request: Any, binary: bytes = b"", **headers: str) -> Answer:
        """`request` as JSON, or bytes as they are, with `binary` after it."""
        head = request if isinstance(request, bytes) else json.dumps(request).encode()
        if binary:
            headers.setdefault("Inference_Header_Content_Length", str(len(head)))
        return self.ask("POST", f"/v2/models/{self.service.served.name}/infer", head + binary, **headers)


@contextlib.contextmanager
def serving(served: Served, slots: int = 2, timeout: float = 30.0) -> Iterator[Running]:
    """The real server, with uvicorn and a socket, until the block ends."""
    workers, bound, listening = Workers(slots), server.listen("127.0.0.1", 0), threading.Event()
    service = Service(served, "0.0", Gate(workers, slots, timeout))
    running = server.build(service, listening.set)
    workers.start(service.warm)
    with bound:
        thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]}, daemon=True)
        port = bound.getsockname()[1]
        thread.start()
        assert listening.wait(30)
        try:
            yield Running(service, port, running, thread)
        finally:
            running.should_exit = True
            thread.join(30)
            workers.close()
            assert not thread.is_alive()


def scripted(engine: ScriptedEngine | None = None) -> Served:
    return Served("net", engine or ScriptedEngine(), LABELS)  # type: ignore[arg-type]


def request(**changes: Any) -> dict[str, Any]:
    """A right request to the scripted engine, with `changes` of its keys; None takes one away."""
    inputs = [
        {"name": "image", "shape": [1, 2, 3], "datatype": "FP32", "data": [0, 1, 2, 3, 4, 5]},
        {"name": "mask", "shape": [1, 4], "datatype": "BOOL", "data": [True, False, True, True]},
    ]
    return {key: value for key, value in {"inputs": inputs, **changes}.items() if value is not None}


def input_of(index: int, **changes: Any) -> dict[str, Any]:
    """As `request`, with `changes` of one of its inputs."""
    found = request()
    found["inputs"][index] = {key: value for key, value in {**found["inputs"][index], **changes}.items() if value is not None}
    return found


def noise(*shape: int) -> Array:
    return np.random.default_rng(3).standard_normal(shape, dtype=np.float32)
