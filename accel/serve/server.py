"""uvicorn around the application: one socket, one process, and an end without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from accel import optional
from accel.errors import UsageError
from accel.serve import app, connection
from accel.serve.service import Service
from accel.serve.workers import Workers

if TYPE_CHECKING:
    from uvicorn import Server

KEEP_ALIVE_S = 75
"""Longer than clients and proxies usually keep an idle connection, so that they are the ones who close it."""

GRACE_S = 5.0
"""After the timeout of the last request, when the server is told to stop."""


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, which does not listen yet; port 0 takes a free one.

    Raises:
        UsageError: the address is none of this machine, or somebody has it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
        return bound
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}, port {port}: {error.strerror}", remedy="name another --host or --port, or stop what has it"
        ) from error


def url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(service: Service, workers: Workers, bound: socket.socket, announce: Callable[[], None]) -> bool:
    """Warm every worker, serve until SIGTERM or SIGINT, then let the requests finish that are in flight.

    Args:
        announce: called when the socket listens.

    Returns:
        Whether all of them did: False if a run hung for GRACE_S longer than its timeout.

    Raises:
        KeyboardInterrupt: it was SIGINT. Whatever the engine raises when it is warmed.
    """
    server = build(service, announce)
    workers.start(service.warm)
    # A full collection of what the imports have left stops everybody for 20 to 40 ms; nothing of it is garbage before the end.
    gc.collect()
    gc.freeze()
    try:
        with bound:
            server.run(sockets=[bound])
    finally:
        gc.unfreeze()
    workers.close()
    if getattr(server, "interrupted", False):
        raise KeyboardInterrupt
    return service.gate.running == 0


def build(service: Service, announce: Callable[[], None]) -> Server:
    """The server that `run` runs; raises MissingExtra without uvicorn."""
    uvicorn = optional.require("uvicorn", extra="serve")
    gate = service.gate

    class Draining(uvicorn.Server):  # type: ignore[misc,name-defined]
        """Stops when nobody is in flight, and meanwhile still says that it is not ready."""

        interrupted = False
        _drain: asyncio.Task[None] | None = None

        async def serve(self, sockets: list[socket.socket] | None = None) -> None:
            self._loop = asyncio.get_running_loop()
            await super().serve(sockets)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            announce()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            # uvicorn's own would raise the signal again in the end, and SIGTERM would be the exit code.
            self.interrupted = self.interrupted or sig == signal.SIGINT
            again = gate.draining
            gate.drain()
            self._loop.call_soon_threadsafe(self._abort if again else self._begin)

        def _begin(self) -> None:
            self._drain = self._loop.create_task(self._stop_when_idle())

        def _abort(self) -> None:
            """Told twice: wait for nobody."""
            self.should_exit = self.force_exit = True
            for open_one in list(self.server_state.connections):
                open_one.transport.abort()

        async def _stop_when_idle(self) -> None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(gate.idle(), gate.timeout + GRACE_S)
            self.should_exit = True

    settings: dict[str, Any] = {
        "http": connection.protocol(gate, service.metrics),
        "loop": "asyncio",
        "ws": "none",
        "lifespan": "off",
        "access_log": False,
        "proxy_headers": False,
        "log_config": None,
        "log_level": "error",
        "server_header": False,
        "timeout_keep_alive": KEEP_ALIVE_S,
        "timeout_graceful_shutdown": int(gate.timeout + GRACE_S) + 1,
    }
    return Draining(uvicorn.Config(app.build(service), **settings))
