"""The service as an ASGI application."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from accel import optional
from accel.errors import AccelError
from accel.serve.gate import Gate, Turned
from accel.serve.metrics import Metrics
from accel.serve.reply import Refusal, Reply, of_error
from accel.serve.service import Service

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

Handler = Callable[["Request"], Awaitable[Reply]]

ENDPOINT = "accel.endpoint"
"""Where a scope keeps the name of its endpoint, for the metrics."""

CLIENT_GONE = 499
"""No status of HTTP: nobody reads it but the metrics."""

INTERNAL = "an internal error; the server's log has more"


def routes(service: Service) -> list[tuple[str, str, str, Handler]]:
    """Endpoint, method, path and handler of all that there is."""
    model = "/v2/models/{model}"
    both = (model, model + "/versions/{version}")
    return [
        ("server", "GET", "/v2", service.server),
        ("live", "GET", "/v2/health/live", service.live),
        ("ready", "GET", "/v2/health/ready", service.ready),
        *(("model", "GET", path, service.model) for path in both),
        *(("model_ready", "GET", f"{path}/ready", service.model_ready) for path in both),
        *(("infer", "POST", f"{path}/infer", service.infer) for path in both),
        ("predict", "POST", "/predict", service.predict),
        ("metrics", "GET", "/metrics", service.show_metrics),
    ]


def build(service: Service) -> ASGIApp:
    """The application; raises MissingExtra without Starlette."""
    optional.require("starlette", extra="serve")
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    table = [Route(path, _endpoint(name, handler, service.metrics), methods=[method]) for name, method, path, handler in routes(service)]
    app: Starlette = Starlette(routes=table, exception_handlers={HTTPException: _not_found, Exception: _internal})
    app.router.redirect_slashes = False
    return Measured(Door(app, service.gate, service.metrics), service.metrics)


class Door:
    """Turns work away before anything is looked at, where the connection has not done so already (see accel.serve.connection)."""

    def __init__(self, app: ASGIApp, gate: Gate, metrics: Metrics) -> None:
        self._app, self._gate, self._metrics = app, gate, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = work_of(scope)
        turned = None if endpoint is None else self._gate.closed()
        if turned is None:
            await self._app(scope, receive, send)
            return
        scope[ENDPOINT] = endpoint
        self._metrics.rejected(turned.reason)
        reply = turned.reply
        await send({"type": "http.response.start", "status": reply.status, "headers": reply.encoded_headers})
        await send({"type": "http.response.body", "body": reply.body})


class Measured:
    """Counts and times every request around the whole application."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, code = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            self._metrics.answered(scope.get(ENDPOINT, "other"), code, time.perf_counter() - began)


def work_of(scope: Mapping[str, Any]) -> str | None:
    """The endpoint, if it is one that needs a place."""
    if scope["method"] != "POST":
        return None
    path: str = scope["path"]
    return "infer" if path.endswith("/infer") else "predict" if path == "/predict" else None


def _endpoint(name: str, handler: Handler, metrics: Metrics) -> Callable[[Request], Awaitable[Response]]:
    from starlette.requests import ClientDisconnect

    async def endpoint(request: Request) -> Response:
        request.scope[ENDPOINT] = name
        try:
            return _response(await handler(request))
        except Turned as turned:
            metrics.rejected(turned.reason)
            return _response(turned.reply)
        except Refusal as refusal:
            return _response(refusal.reply)
        except AccelError as error:
            return _response(of_error(error))
        except ClientDisconnect:
            return _response(Reply.of({"error": "the client went away"}, CLIENT_GONE))

    return endpoint


def _response(reply: Reply) -> Response:
    from starlette.responses import Response

    return Response(reply.body, reply.status, dict(reply.headers), reply.content_type)


async def _not_found(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    found: HTTPException = error  # type: ignore[assignment]
    headers: MutableMapping[str, Any] = dict(found.headers or {})
    return _response(Refusal(found.status_code, f"{request.method} {request.url.path}: {found.detail}", headers).reply)


async def _internal(request: Request, error: Exception) -> Response:
    return _response(Refusal(500, INTERNAL).reply)
