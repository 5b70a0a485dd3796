"""What `accel.load` returns: a handle on a shared engine, called with arrays."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from accel import pictures
from accel.engines import Bundle
from accel.errors import UnknownName, UsageError
from accel.pictures import Picture
from accel.runtimes import cache, gpu_call
from accel.runtimes.given import by_name, check_arrays, host_array, on_gpu, on_host, torch_of
from accel.runtimes.pool import Contexts, default_limit
from accel.runtimes.session import Session
from accel.runtimes.sources import engine_source
from accel.runtimes.table import version
from accel.types import Array, TensorSpec, Variant

Preprocess = Callable[[Array], Array]

BATCHES = ("loop", "refuse")
"""What becomes of a call whose rows are not the engine's batch."""


MOST_THREADS = 1024
_KNOWN = 8
"""Kinds of arrays that a handle remembers: its own dtype and the public one are two."""


class Chosen(NamedTuple):
    """How a variant came to be chosen, for `explain`: why this one, and what was better and could not be had, with the reason."""

    why: str = ""
    passed_over: tuple[str, ...] = ()


class LoadedEngine:
    """An engine, ready to be called from any thread; calls that overlap get contexts of their own, up to a limit, and then wait.

    Use it as a context manager or close() it; the last handle's close frees the engine.

    Attributes:
        variant: what runs, as `onnxruntime:fp16`.
        device: `cpu` or `cuda:N`.
        batch: rows of one run of the engine.
        batches: `loop` runs other numbers of rows in slices of the batch; `refuse` refuses them.
        inputs, outputs: the bundle's specs, the same whichever engine runs.
    """

    def __init__(self, key: Hashable, shared: Contexts, preprocess: Preprocess | None, chosen: Chosen, batches: str) -> None:
        self._shared, self._preprocess, self._chosen = shared, preprocess, chosen
        self._release = weakref.finalize(self, cache.release, key)
        self._release.atexit = False
        source = shared.source
        self.variant: Variant = source.variant
        self.device: str = source.device
        self.batch: int = source.batch
        self.batches: str = batches
        self.inputs: tuple[TensorSpec, ...] = source.inputs
        self.outputs: tuple[TensorSpec, ...] = source.outputs
        # Numpy arrays that one batch of a model with one input was run on before: they need not be held against the specs again.
        self._known: set[tuple[Any, tuple[int, ...]]] = set()

    def __call__(self, given: Any) -> Any:
        """Run the engine; nothing is normalised or resized here.

        Args:
            given: one array for a model of one input, else a dict by input name. The dtype is the public one (float32, or uint8 of a
                bundle with embedded preprocessing) or the engine's own (float16). Of another number of rows than the engine's batch,
                see `batches`.

        Returns:
            The output, or a dict by name where there are several; float32, owned by the caller, ready. Numpy arrays, and other arrays
            on the host with DLPack, give numpy arrays; torch tensors give tensors on the same device, without a copy through the host;
            other objects on a GPU with DLPack or `__cuda_array_interface__` (CuPy, Numba, PyCUDA) give objects with the latter, in the
            engine's own dtype.

        Raises:
            UsageError: the wrong name, dtype, shape or device: which tensor, what was expected and what was received.
        """
        return self._shared.run(self._job(given))

    async def run_async(self, given: Any) -> Any:
        """As a call, without blocking the event loop: `logits = await engine.run_async(images)`.

        The call is run by one of the engine's own threads, as many as it has contexts; more wait in the order in which they came. Who
        cancels the task gives up the answer: a call that waits is then never run, one that runs ends by itself and gives its context
        back. Leave the arrays alone until the answer is there.

        Raises:
            UsageError: as a call.
        """
        import asyncio

        # Held against the specs here, so that wrong arrays wait for nobody, and a caller's CUDA stream is still the current one.
        job = self._job(given)
        return await asyncio.get_running_loop().run_in_executor(self._shared.executor, self._shared.run, job)

    def predict(self, images: Picture | Sequence[Picture]) -> Any:
        """Preprocess pictures as the model was trained with, and run them; returns what a call returns, a row a picture.

        Args:
            images: paths, bytes of files, Pillow images or uint8 RGB arrays (H×W×3), one or a sequence; or an array N×H×W×3. They are
                decoded by `accel.pictures.read`. One of another size than the model's is fitted in, its aspect kept. Of another number
                of pictures than the engine's batch, see `batches`.

        Raises:
            UsageError: the bundle says nothing about preprocessing; there are no pictures, or something else among them.
            CorruptArtifact: a file that cannot be decoded. MissingExtra: Pillow, which all but arrays of the right size need, is absent.
        """
        prepare = self._preprocess
        if prepare is None:
            raise UsageError("this engine's bundle has no preprocessing", remedy="preprocess yourself and call the engine")
        if isinstance(images, np.ndarray) and images.ndim == 4:
            return self(prepare(images))
        rows = [prepare(pictures.read(picture)[None]) for picture in pictures.one_by_one(images)]
        if not rows:
            raise UsageError("there are no pictures to predict", remedy="pass at least one")
        return self(rows[0] if len(rows) == 1 else np.concatenate(rows))

    async def predict_async(self, images: Picture | Sequence[Picture]) -> Any:
        """As `predict`, decoding and all, without blocking the event loop; cancelled as `run_async` is."""
        import asyncio

        return await asyncio.get_running_loop().run_in_executor(self._open_executor(), self.predict, images)

    def warm_up(self, calls: int = 10) -> int:
        """Open every context that overlapping calls may need and run each `calls` times, so that no request pays for it.

        Returns:
            How many contexts were run. Of a runtime that is bound to threads it is the calling thread's alone; the others open theirs
            with their first call.
        """
        self._demand_open()
        return self._shared.warm_up(calls)

    def explain(self) -> dict[str, Any]:
        """What runs and why, as plain data.

        Returns:
            `variant`, `device`, `engine` (its name in the bundle), `why` it was chosen, `passed_over` (what was better and could not be
            had, each with its reason), `golden` (what the samples said at the load; None where they were not run), `contexts` (`open`
            and `limit`), `batch`, `runtime_version`, the engine's own `inputs` and `outputs`, and the runtime's `facts`.
        """
        self._demand_open()
        shared = self._shared

        def told(session: Session) -> dict[str, Any]:
            runtime = session.runtime
            specs = {"inputs": [spec.to_dict() for spec in runtime.inputs], "outputs": [spec.to_dict() for spec in runtime.outputs]}
            return {**specs, "facts": dict(runtime.facts)}

        return {
            "variant": str(self.variant),
            "device": self.device,
            "engine": shared.source.entry.name if shared.source.entry is not None else "checkpoint",
            "why": self._chosen.why,
            "passed_over": list(self._chosen.passed_over),
            "golden": None if self.golden is None else dict(self.golden),
            "contexts": {"open": shared.count, "limit": shared.limit},
            "batch": self.batch,
            "runtime_version": version(self.variant.runtime),
            **shared.run(told),
        }

    @property
    def golden(self) -> dict[str, Any] | None:
        """What the golden samples said of this engine when it was loaded; None where they were not run."""
        return self._shared.checked

    @golden.setter
    def golden(self, said: dict[str, Any]) -> None:
        self._shared.checked = said

    def run_rows(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name of arrays on the host that are right by name, dtype and shape, in slices whatever `batches` says."""
        self._demand_open()
        return self._shared.run(functools.partial(_on_host, arrays, len(next(iter(arrays.values())))))

    def close(self) -> None:
        """Give the handle back; a second time does nothing. Calls that are running end by themselves."""
        self._release()

    def __enter__(self) -> LoadedEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _job(self, given: Any) -> Callable[[Session], Any]:
        """What a context has to do for `given`, which is right as far as can be told without running it."""
        self._demand_open()
        plain = type(given) is np.ndarray
        if plain and (given.dtype, given.shape) in self._known:
            return functools.partial(self._run_known, given)
        shared = self._shared
        arrays = by_name(self.inputs, given)
        if not plain:
            arrays = {name: on_host(array) for name, array in arrays.items()}
        rows = check_arrays(self.inputs, shared.natives, arrays)
        if rows != self.batch and self.batches == "refuse":
            raise UsageError(
                f"this engine runs {self.batch} row{'s' * (self.batch != 1)} a call, and was given {rows}",
                remedy="pass as many, load it with batches='loop', or export it for this batch (accel export --batch N)",
            )
        if plain and rows == self.batch and len(self._known) < _KNOWN:
            self._known.add((given.dtype, given.shape))
        return functools.partial(self._answer, self._road(arrays, rows), len(self.outputs) == 1)

    def _run_known(self, given: Array, session: Session) -> Any:
        results = session.run({self.inputs[0].name: given})
        return results[self.outputs[0].name] if len(self.outputs) == 1 else results

    def _road(self, arrays: Mapping[str, Any], rows: int) -> Callable[[Session], dict[str, Any]]:
        kinds = {(True, torch_of(array) is None) if on_gpu(array) else (False, True) for array in arrays.values()}
        if len(kinds) > 1:
            raise UsageError("the inputs are of different kinds: host, torch on a GPU, others on a GPU", remedy="pass all of one kind")
        if not any(gpu for gpu, _ in kinds):
            return functools.partial(_on_host, arrays, rows)
        gpu_call.check_device(self.device, arrays)
        torch = torch_of(next(iter(arrays.values())))
        if torch is None:
            return lambda session: dict(gpu_call.run_arrays(session, arrays, rows))
        theirs = torch.cuda.current_stream(self.device)
        return lambda session: gpu_call.run_tensors(torch, session, arrays, rows, theirs)

    @staticmethod
    def _answer(road: Callable[[Session], dict[str, Any]], alone: bool, session: Session) -> Any:
        results = road(session)
        return next(iter(results.values())) if alone else results

    def _open_executor(self) -> Any:
        self._demand_open()
        return self._shared.executor

    def _demand_open(self) -> None:
        if not self._release.alive:
            raise UsageError(f"this handle on {self.variant} is closed", remedy="load the engine again with accel.load")


def _on_host(arrays: Mapping[str, Any], rows: int, session: Session) -> dict[str, Any]:
    batch = session.source.batch
    hosts = {name: host_array(array) for name, array in arrays.items()}
    if rows == batch:
        results = session.run(hosts)
    else:
        parts = [_run_slice(session, hosts, slice(start, min(start + batch, rows))) for start in range(0, rows, batch)]
        results = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    torch = torch_of(next(iter(arrays.values())))
    return results if torch is None else {name: torch.from_numpy(array) for name, array in results.items()}


def _run_slice(session: Session, arrays: Mapping[str, Array], part: slice) -> dict[str, Array]:
    """One batch of `arrays`; a shorter one is filled up with its last row, whose extra results are cut off."""
    rows, batch = part.stop - part.start, session.source.batch
    filled = {name: np.concatenate([array[part], np.repeat(array[part][-1:], batch - rows, axis=0)]) for name, array in arrays.items()}
    return {name: array[:rows] for name, array in session.run(filled if rows < batch else {n: a[part] for n, a in arrays.items()}).items()}


def open_cached(
    bundle_path: Path | str,
    variant: Variant,
    device: str,
    threads: int | None = None,
    *,
    batch: int = 1,
    preprocess: Preprocess | None = None,
    chosen: Chosen = Chosen(),  # noqa: B008 (immutable)
    contexts: int | None = None,
    batches: str = "loop",
) -> LoadedEngine:
    """A handle on `variant` of a bundle, with its first context open; free where the same engine is loaded already.

    Engines are told apart by the bundle's resolved path, its accel.json's (inode, mtime, size), variant, device, threads, batch and
    number of contexts: a bundle that was exported anew is loaded anew, and older handles go on with what they have.

    Args:
        batch: rows a run.
        preprocess: what `predict` applies to uint8 N×H×W×3 pictures of any size.
        contexts: how many calls may run at once; None takes `pool.default_limit`.
        batches: one of BATCHES.

    Raises:
        BundleMissing, CorruptArtifact, IncompatibleArtifact, RuntimeUnavailable, MissingExtra, DeviceUnavailable: see each.
        UsageError: no contexts, no threads or more than MOST_THREADS, or another word for `batches`.
    """
    if batches not in BATCHES:
        raise UnknownName("way with other batches", batches, BATCHES)
    limit = default_limit(device) if contexts is None else contexts
    if limit < 1:
        raise UsageError(f"{limit} contexts run nothing", remedy="contexts=1 or more")
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        # A runtime would take 0 or -1 for a wish of its own, and 100,000 for the machine's memory.
        raise UsageError(f"{threads} threads were asked for", remedy=f"threads=1 to {MOST_THREADS}, or None for the runtime's default")
    path = Path(bundle_path)
    key = (*cache.bundle_key(path), str(variant), device, threads, batch, limit)

    def make() -> Contexts:
        return Contexts(engine_source(Bundle.open(path), variant, device, batch=batch, threads=threads), limit)

    handle = LoadedEngine(key, cache.acquire(key, make), preprocess, chosen, batches)
    try:
        # Opened here, so that what cannot run is told by load and not by the first request.
        handle._shared.open()
    except BaseException:
        handle.close()
        raise
    return handle
