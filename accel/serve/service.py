"""What each endpoint does, with nothing of a web framework but the request."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from accel.runtimes.loaded import LoadedEngine
from accel.serve import bodies, protocol, uploads
from accel.serve.gate import Gate
from accel.serve.metrics import Metrics
from accel.serve.reply import Refusal, Reply
from accel.types import Array

if TYPE_CHECKING:
    from starlette.requests import Request

MOST_ROWS = 32
"""Of one inference request, unless the engine's own batch is larger."""

TOP_K = 5

Guess = Callable[[Array, int], Sequence[Mapping[str, Any]]]
"""One row of logits and k → its k likeliest classes as plain data; raises PrecisionError for logits that are not finite."""


@dataclasses.dataclass(frozen=True)
class Served:
    """What is served.

    Attributes:
        labels: of the classes; empty where they have no names.
        guess: what makes classes of logits; None if the model is no classifier of pictures.
        no_pictures: why `guess` is None.
    """

    name: str
    engine: LoadedEngine
    labels: tuple[str, ...] = ()
    guess: Guess | None = None
    no_pictures: str = ""


class Service:
    """The endpoints of one engine. Handlers run on the event loop; what decodes, computes or encodes runs in a worker."""

    def __init__(self, served: Served, version: str, gate: Gate) -> None:
        self.served, self.version, self.gate = served, version, gate
        engine = served.engine
        self.rows = max(MOST_ROWS, engine.batch)
        self.json_limit = bodies.json_limit(engine.inputs, self.rows)
        self.tensor_limit = bodies.tensor_limit(engine.inputs, self.rows)
        self.ledger = bodies.Ledger()
        facts = {"model": served.name, "variant": str(engine.variant), "device": engine.device, "version": version}
        self.metrics = Metrics(lambda: gate.running, gate.slots, facts)

    def warm(self) -> None:
        """One run in the thread that calls it, on ones of the smallest batch."""
        self.served.engine({spec.name: np.ones(spec.fixed(1), spec.dtype) for spec in self.served.engine.inputs})

    async def server(self, request: Request) -> Reply:
        return Reply.of({"name": "accel", "version": self.version, "extensions": list(protocol.EXTENSIONS)})

    async def live(self, request: Request) -> Reply:
        return Reply.of({"live": True})

    async def ready(self, request: Request) -> Reply:
        return Reply.of({"ready": not self.gate.draining}, 503 if self.gate.draining else 200)

    async def model(self, request: Request) -> Reply:
        self._demand_model(request)
        engine = self.served.engine
        return Reply.of(protocol.metadata(self.served.name, str(engine.variant), engine.inputs, engine.outputs))

    async def model_ready(self, request: Request) -> Reply:
        self._demand_model(request)
        ready = not self.gate.draining
        return Reply.of({"name": self.served.name, "ready": ready}, 200 if ready else 503)

    async def infer(self, request: Request) -> Reply:
        self._demand_model(request)
        return await self._worked(request, self.tensor_limit, self._infer)

    async def predict(self, request: Request) -> Reply:
        if self.served.guess is None:
            raise Refusal(404, f"{self.served.name} takes no pictures: {self.served.no_pictures}")
        return await self._worked(request, bodies.PICTURE_BYTES, functools.partial(self._predict, top_k=_top_k(request)))

    async def show_metrics(self, request: Request) -> Reply:
        return self.metrics.reply(request.headers.get("accept", ""))

    def _demand_model(self, request: Request) -> None:
        name, version = request.path_params["model"], request.path_params.get("version", protocol.VERSION)
        if name != self.served.name:
            raise Refusal(404, f"there is no model {name!r}; this server has {self.served.name!r}")
        if version != protocol.VERSION:
            raise Refusal(404, f"{name} has no version {version!r}; it has {protocol.VERSION!r}")

    async def _worked(self, request: Request, limit: int, work: Callable[[bytes, Mapping[str, str]], Reply]) -> Reply:
        with self.gate.entered() as left, bodies.Body(self.ledger, limit, request.headers.get("content-length")) as reading:
            sent = await reading.read(request.stream(), left())

            def task() -> Reply:
                return work(bodies.decompressed(sent, request.headers.get("content-encoding"), limit), request.headers)

            return await self.gate.run(task, left())

    def _infer(self, body: bytes, headers: Mapping[str, str]) -> Reply:
        engine = self.served.engine
        asked = protocol.parse(body, headers.get(protocol.HEADER_LENGTH), engine.inputs, engine.outputs, self.rows, self.json_limit)
        with self.metrics.inference.time():
            results = engine(asked.inputs)
        named = results if len(engine.outputs) > 1 else {engine.outputs[0].name: results}
        return protocol.respond(asked, named, self.served.name, self.served.labels)

    def _predict(self, body: bytes, headers: Mapping[str, str], top_k: int) -> Reply:
        picture = uploads.decode(uploads.picture_in(body, headers.get("content-type")))
        with self.metrics.inference.time():
            (logits,) = self.served.engine.predict(picture)
        assert self.served.guess is not None
        return Reply.of({"model_name": self.served.name, "top": list(self.served.guess(logits, top_k))})


def _top_k(request: Request) -> int:
    text = request.query_params.get("top_k", str(TOP_K))
    if not (text.isascii() and text.isdigit() and int(text[:9]) > 0):
        raise Refusal(400, f"top_k is {text!r}; it is a number of classes, at least 1")
    return int(text[:9])
