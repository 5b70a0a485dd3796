"""A bundle behind HTTP."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import accel
from accel import device as devices
from accel import optional
from accel.api import bundles, predicting
from accel.api.loading import load
from accel.api.settings import resolve
from accel.engines import Bundle
from accel.errors import AccelError, UsageError
from accel.progress import Progress, silent
from accel.runtimes.loaded import LoadedEngine
from accel.types import Array

if TYPE_CHECKING:
    from accel.serve.service import Served, Service

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
PORT = 8000
TIMEOUT_S = 30.0
MOST_DEFAULT_CONCURRENCY = 8
GPU_CONCURRENCY = 2
"""One request's copies beside another's kernels; more threads on one GPU only wait for each other."""

PACKAGES = ("starlette", "uvicorn", "httptools", "prometheus_client", "PIL.Image")


def serve(
    bundle: Path | str,
    host: str = LOOPBACK,
    port: int = PORT,
    *,
    max_concurrency: int | None = None,
    timeout_s: float = TIMEOUT_S,
    runtime: str = "auto",
    device: str | None = None,
    trusted: bool = False,
    threads: int | None = None,
    announce: Callable[[str], None] = logger.info,
    progress: Progress = silent,
) -> None:
    """Serve a bundle over HTTP until SIGTERM or Ctrl-C: Open Inference Protocol V2, `/predict` and `/metrics`.

    Args:
        bundle: a folder `NAME.accel`, or a model's name in the engines folder; a shipped model is exported first if need be.
        host, port: where to listen; port 0 takes a free one.
        max_concurrency: requests that run at once, each in a thread of its own; further ones are answered 503. None takes a thread
            for each CPU that this process may use but one, which is the event loop's; at most 8, and 2 on a GPU.
        timeout_s: seconds that a request may take before it is answered 504.
        runtime, device, trusted: as `load`.
        threads: intra-op threads of each request on a CPU; None shares those CPUs among `max_concurrency`.
        announce: told what is served and where, once it is ready.

    Raises:
        UsageError: the address cannot be had, or a number is out of range. MissingExtra: what the extra `serve` installs is absent.
        AccelError: a run did not end when it was told to stop.
        Beside these whatever `load` raises.
    """
    for package in PACKAGES:
        optional.require(package, extra="serve")
    from accel.serve import server
    from accel.serve.gate import Gate
    from accel.serve.service import Service
    from accel.serve.workers import Workers

    if (max_concurrency is not None and max_concurrency < 1) or not 0 < timeout_s < 86400:
        raise UsageError(
            f"max_concurrency = {max_concurrency}, timeout = {timeout_s} s",
            remedy="at least 1 request at once, and between 0 and 86400 s",
        )
    bound = server.listen(host, port)
    with bound:
        settings = resolve({"device": None if device == "auto" else device})
        place = devices.parse(settings["device"])
        opened = bundles.open_or_export(
            bundle, [] if runtime == "auto" else [runtime], engines_dir=settings["engines_dir"], device=place, progress=progress
        )
        slots = max_concurrency or default_concurrency(place)
        # One more than run at once: a runtime that keeps to its threads leaves the thread that loads it one of its own.
        contexts = slots + 1
        engine = load(opened.path, runtime, place, trusted=trusted, threads=threads or _threads(place, slots), contexts=contexts)
        workers = Workers(slots)
        service = Service(served(opened, engine), accel.__version__, Gate(workers, slots, timeout_s))
        whole = server.run(service, workers, bound, lambda: announce(_announcement(service, server.url(bound), host)))
    if not whole:
        raise AccelError(f"a run of {engine.variant} has not ended {server.GRACE_S:g} s after the timeout; it was left behind")
    engine.close()


def default_concurrency(place: str) -> int:
    """Requests at once where nobody said how many."""
    return GPU_CONCURRENCY if place != "cpu" else min(_spare(), MOST_DEFAULT_CONCURRENCY)


def _threads(place: str, slots: int) -> int | None:
    return max(1, _spare() // slots) if place == "cpu" else None


def _spare() -> int:
    """CPUs that the event loop does not need: who is refused must not wait for an engine, nor who is accepted for refusals."""
    return max(1, _cpus() - 1)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def served(bundle: Bundle, engine: LoadedEngine) -> Served:
    """What a server of `engine` has to know of its bundle."""
    from accel.serve.service import Served

    try:
        labels = predicting.classes_of(bundle)
        predicting.preparation_of(bundle)
    except UsageError as error:
        return Served(bundle.name, engine, bundle.labels, no_pictures=error.message)

    def guess(logits: Array, top_k: int) -> list[dict[str, Any]]:
        return [dataclasses.asdict(found) for found in predicting.guesses(engine, "the picture", logits, labels, top_k)]

    return Served(bundle.name, engine, bundle.labels, guess)


def _announcement(service: Service, where: str, host: str) -> str:
    engine, gate = service.served.engine, service.gate
    said = f"serving {service.served.name}, {engine.variant} on {engine.device}, at {where} ({gate.slots} at once, {gate.timeout:g} s each)"
    if host not in (LOOPBACK, "::1", "localhost"):
        said += "; whoever reaches this address may use it: there is no authentication"
    return said
