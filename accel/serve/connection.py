"""uvicorn's HTTP connections on httptools, with what it lacks, and with a refusal that costs those who were let in next to nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from accel import optional
from accel.serve.app import work_of
from accel.serve.gate import Gate
from accel.serve.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp

HEAD_BYTES = 64 << 10
"""Of a request's head, or of what follows a chunked body, beside what came with the packet before: httptools itself has no limit."""


def protocol(gate: Gate, metrics: Metrics) -> type[asyncio.Protocol]:
    """The class of the connections; raises MissingExtra without uvicorn or httptools.

    Who comes when all places are taken is answered as soon as the head of the request is read. The application's own refusal has the same
    bytes, but also a task, a round of the event loop and two packets, all of which those who were let in would wait for. This one stands
    on a method that uvicorn calls private; a uvicorn without it, and whatever is no plain case, leaves the refusal to the application.
    """
    uvicorn = optional.require("uvicorn.protocols.http.httptools_impl", extra="serve")
    h11 = optional.require("uvicorn.protocols.http.h11_impl", extra="serve")
    httptools = optional.require("httptools", extra="serve")
    reason, reply = gate.full().reason, gate.full().reply
    refusal = _lines(reply.encoded_headers)

    class Connection(uvicorn.HttpToolsProtocol):  # type: ignore[misc,name-defined]
        _unread, _read = 0, False

        def data_received(self, data: bytes) -> None:
            self._unset_keepalive_if_required()
            self._read = False
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._hand_over(data[upgrade.args[0] :])
                return
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
                return
            self._unread = 0 if self._read else self._unread + len(data)
            if self._unread > HEAD_BYTES:
                self.send_400_response(f"The head of the request is over the limit of {HEAD_BYTES} bytes.")

        def on_headers_complete(self) -> None:
            self._read = True
            if not self.parser.should_upgrade():
                super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._read = True
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._read = True
            if not self.parser.should_upgrade():
                super().on_message_complete()

        def _hand_over(self, rest: bytes) -> None:
            """Leave a connection to h11 whose client offers another protocol, as Java's does: httptools would drop the request's body."""
            if self.cycle is not None and not self.cycle.response_complete:
                self.send_400_response("A pipelined request cannot change the protocol.")
                return
            self.connections.discard(self)
            other = h11.H11Protocol(config=self.config, server_state=self.server_state, app_state=self.app_state)
            self.transport.set_protocol(other)
            other.connection_made(self.transport)
            line = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
            other.data_received(line + _lines(self.headers) + b"\r\n" + rest)

        def _start_asgi_task(self, cycle: Any, app: ASGIApp) -> None:
            began, endpoint = time.perf_counter(), work_of(cycle.scope)
            if endpoint is None or gate.draining or not gate.is_full or not self._plain(cycle):
                super()._start_asgi_task(cycle, app)
                return
            # What comes of the body is then read and dropped, as after every answer that did not wait for it.
            cycle.response_started = cycle.response_complete = True
            date = _lines(self.server_state.default_headers)
            self.transport.write(b"".join((uvicorn.STATUS_LINE[reply.status], date, refusal, b"\r\n", reply.body)))
            cycle.on_response()
            metrics.rejected(reason)
            metrics.answered(endpoint, reply.status, time.perf_counter() - began)

        def _plain(self, cycle: Any) -> bool:
            """Whether the connection stays open, its client reads what it is sent, and no pipelined request waits behind this one."""
            return bool(cycle.keep_alive) and not (self.pipeline or self.flow.write_paused or self.transport.is_closing())

    return Connection


def _lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%s: %s\r\n" % header for header in headers)
