"""A Ray Serve deployment: one engine a replica, requests one after another, batching only where it is asked for.

    handle = ray.serve.run(application("engines/resnet18.accel", replicas=2))
    logits = ask(handle, batch)

Every node needs this package, the engine's runtime and the bundle at the same path. A request that a replica had accepted when it died
ends in Ray's `RayActorError` at the caller; `ask` sends it again, which is right for an engine, because it keeps nothing between calls.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from accel.api.loading import load
from accel.errors import AccelError, ArtifactError, ParityError, UsageError
from accel.optional import require
from accel.runtimes.loaded import LoadedEngine
from accel.types import TensorSpec

EXTRA = "ray"

HEALTHY = 1e-2
"""How far a health check's answer may be from the one that the engine gave when it was loaded, relative to the largest number in it."""


@dataclasses.dataclass(frozen=True)
class _Live:
    """An engine, the one thread that calls it, a sample and what it answered to that."""

    engine: LoadedEngine
    thread: ThreadPoolExecutor
    sample: Any
    answer: list[Any]

    async def run(self, call: Any, *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.thread, call, *given)

    def retire(self) -> None:
        """Close the engine after the calls that it has accepted."""
        self.thread.submit(self.engine.close)
        self.thread.shutdown(wait=False)


class Replica:
    """What runs in each replica. The event loop stays free: the engine is called on a thread of its own, one request at a time.

    Serve calls `reconfigure` before the first request, and again for a new `user_config`.
    """

    def __init__(self) -> None:
        self._live: _Live | None = None

    async def reconfigure(self, settings: Mapping[str, Any]) -> None:
        """Load what `settings` say while the old engine answers, and change over; requests that were accepted are finished first.

        Args:
            settings: `bundle`, and `runtime`, `device`, `trusted`, `threads` as `accel.load` takes them.

        Raises:
            AccelError: as `accel.load`; the old engine goes on.
        """
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="accel")
        try:
            new = await asyncio.get_running_loop().run_in_executor(thread, _load, dict(settings), thread)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        old, self._live = self._live, new
        if old is not None:
            old.retire()

    async def infer(self, given: Any) -> Any:
        """What the engine answers to an array, or arrays by name; raises UsageError for what it does not take."""
        live = self._ready()
        return await live.run(live.engine, given)

    async def predict(self, images: Any) -> Any:
        """What the engine answers to pictures of any size, as `LoadedEngine.predict`."""
        live = self._ready()
        return await live.run(live.engine.predict, images)

    async def __call__(self, request: Any) -> Any:
        """HTTP: a picture in the body; JSON with the outputs by name, or 400 with the reason."""
        responses = require("starlette.responses", extra=EXTRA)
        live = self._ready()
        try:
            answer = await self.predict(await request.body())
        except (UsageError, ArtifactError) as error:
            return responses.JSONResponse({"error": error.message, "remedy": error.remedy}, status_code=400)
        named = answer if isinstance(answer, Mapping) else {live.engine.outputs[0].name: answer}
        outputs = {name: np.asarray(array).tolist() for name, array in named.items()}
        return responses.JSONResponse({"engine": str(live.engine.variant), "outputs": outputs})

    async def check_health(self) -> None:
        """Serve asks every few seconds and replaces the replica if this raises: a sample is answered as it was at first.

        Raises:
            ParityError: it is not. AccelError: the engine cannot be called.
        """
        live = self._live
        if live is None:
            return
        found = _numbers(await live.run(live.engine, live.sample))
        for before, now in zip(live.answer, found, strict=True):
            far = np.abs(now - before).max(initial=0.0)
            if not far <= HEALTHY * np.abs(before).max(initial=1.0):
                raise ParityError(f"{live.engine.variant} answers its sample {far:.3g} away from what it answered when it was loaded")

    async def about(self) -> dict[str, Any]:
        """What runs here, as plain data: `variant`, `device`, `why`, and the process's `pid`."""
        live = self._ready()
        explained = await live.run(live.engine.explain)
        return {**{key: explained[key] for key in ("variant", "device", "why")}, "pid": os.getpid()}

    def _ready(self) -> _Live:
        if self._live is None:
            raise AccelError("the replica was given no bundle", remedy='deploy it with user_config={"bundle": PATH}')
        return self._live


def application(
    bundle: Path | str,
    *,
    runtime: str = "auto",
    device: str | None = None,
    trusted: bool = False,
    threads: int | None = None,
    replicas: int = 1,
    num_gpus: float = 0,
    num_cpus: float = 1,
    batch: int | None = None,
    batch_wait_s: float = 0.002,
    max_queued_requests: int = -1,
    name: str = "accel",
) -> Any:
    """What `ray.serve.run` takes. Run again it starts new replicas; a `user_config` in a Serve config file changes them over in place.

    Args:
        bundle: a folder `NAME.accel` that every node has at this path.
        runtime, device, trusted, threads: as `accel.load`; the device is `cuda` where `num_gpus` is not 0, else `cpu`.
        replicas: each has an engine of its own.
        num_gpus, num_cpus: of each replica; half a GPU puts two on one.
        batch: gather up to this many requests into one call; None never waits for another request.
        batch_wait_s: how long the first of a batch waits at most, in seconds.
        max_queued_requests: for each caller, before Serve refuses more; -1 for no limit.

    Raises:
        MissingExtra: Ray is not installed.
    """
    serve = require("ray.serve", extra=EXTRA)
    settings = {
        "bundle": str(Path(bundle).expanduser().resolve()),
        "runtime": runtime,
        "device": device or ("cuda" if num_gpus else "cpu"),
        "trusted": trusted,
        "threads": threads,
    }
    return serve.deployment(
        Replica if batch is None else _batching(batch, batch_wait_s),
        name=name,
        num_replicas=replicas,
        user_config=settings,
        ray_actor_options={"num_gpus": num_gpus, "num_cpus": num_cpus},
        # One is answered and one waits; more would wait here while another replica is free.
        max_ongoing_requests=2 * (batch or 1),
        max_queued_requests=max_queued_requests,
    ).bind()


def build(args: Mapping[str, Any]) -> Any:
    """For a Serve config file: `import_path: accel.integrations.ray:build`, and what `application` takes as `args`."""
    return application(**args)


def ask(handle: Any, given: Any, *, attempts: int = 3) -> Any:
    """What a replica answers to `given`; where one dies with the request, another is asked.

    Args:
        handle: what `ray.serve.run` returned.

    Raises:
        RayActorError: `attempts` replicas in a row died. UsageError, inside Ray's RayTaskError: the engine does not take `given`.
    """
    died = require("ray.exceptions", extra=EXTRA).RayActorError
    for left in reversed(range(attempts)):
        try:
            return handle.infer.remote(given).result()
        except died:
            if not left:
                raise
    raise UsageError(f"attempts = {attempts}", remedy="ask at least once")


def together(givens: Sequence[Any], call: Any) -> list[Any]:
    """Answer several requests by as few calls as their shapes allow: those that go together are one batch.

    Returns:
        An answer a request, or the AccelError that it met, which is its own and not its neighbours'.
    """
    groups: dict[Any, list[int]] = {}
    for index, given in enumerate(givens):
        groups.setdefault(_kind(given) or index, []).append(index)
    answers: list[Any] = [None] * len(givens)
    for members in groups.values():
        chosen = [givens[index] for index in members]
        try:
            parts = (
                [call(chosen[0])] if len(chosen) == 1 else _split(call(_each(np.concatenate, chosen)), [_rows(given) for given in chosen])
            )
        except AccelError as error:
            parts = [error] * len(members)
        for index, part in zip(members, parts, strict=True):
            answers[index] = part
    return answers


def _batching(size: int, wait_s: float) -> Any:
    serve = require("ray.serve", extra=EXTRA)

    class Batching(Replica):
        async def infer(self, given: Any) -> Any:
            answer = await self.gathered(given)
            if isinstance(answer, AccelError):
                raise answer
            return answer

        @serve.batch(max_batch_size=size, batch_wait_timeout_s=wait_s)  # type: ignore[untyped-decorator]
        async def gathered(self, given: Any) -> Any:
            """Serve hands over a list of requests and takes a list of answers; each caller sees its own."""
            live = self._ready()
            return await live.run(together, given, live.engine)

    return Batching


def _load(settings: dict[str, Any], thread: ThreadPoolExecutor) -> _Live:
    engine = load(settings.pop("bundle"), **settings)
    named = {spec.name: _noise(spec) for spec in engine.inputs}
    sample = named if len(named) > 1 else next(iter(named.values()))
    return _Live(engine, thread, sample, _numbers(engine(sample)))


def _noise(spec: TensorSpec) -> Any:
    """One row for a health check, the same each time."""
    random, shape = np.random.default_rng(0), spec.fixed(1)
    return random.standard_normal(shape).astype(spec.dtype) if spec.dtype.startswith("float") else random.integers(0, 2, shape, spec.dtype)


def _numbers(answer: Any) -> list[Any]:
    return [np.array(array, np.float64) for array in (answer.values() if isinstance(answer, Mapping) else [answer])]


def _kind(given: Any) -> Any:
    """Equal for requests that can be one batch; None for what is no batch of anything, which the engine will refuse."""
    arrays = sorted(given.items()) if isinstance(given, Mapping) else [("", given)]
    shapes = [(name, str(getattr(array, "dtype", "")), np.shape(array)) for name, array in arrays]
    if not arrays or not all(dtype and shape for _, dtype, shape in shapes):
        return None
    return tuple((name, dtype, shape[1:]) for name, dtype, shape in shapes)


def _rows(given: Any) -> int:
    return len(next(iter(given.values())) if isinstance(given, Mapping) else given)


def _each(join: Any, givens: Sequence[Any]) -> Any:
    if isinstance(givens[0], Mapping):
        return {name: join([given[name] for given in givens]) for name in givens[0]}
    return join(givens)


def _split(answer: Any, rows: Sequence[int]) -> list[Any]:
    ends = np.cumsum(rows)
    if isinstance(answer, Mapping):
        return [{name: array[end - count : end] for name, array in answer.items()} for count, end in zip(rows, ends, strict=True)]
    return [answer[end - count : end] for count, end in zip(rows, ends, strict=True)]
