"""What `accel.load` returns: a handle on a shared engine, called with arrays."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accel import pictures
from accel.engines import Bundle
from accel.errors import UsageError
from accel.pictures import Picture
from accel.runtimes import cache, gpu_call
from accel.runtimes.given import by_name, check_arrays, host_array, on_gpu, torch_of
from accel.runtimes.session import PerThread, Session
from accel.runtimes.sources import engine_source
from accel.runtimes.table import version
from accel.types import Array, TensorSpec, Variant

Preprocess = Callable[[Array], Array]


class LoadedEngine:
    """An engine, ready to be called from any thread; each thread gets a runtime and buffers of its own on its first call.

    Use it as a context manager or close() it; the last handle's close frees the engine.

    Attributes:
        variant: what runs, as `onnxruntime:fp16`.
        device: `cpu` or `cuda:N`.
        batch: rows of one run of the engine.
        inputs, outputs: the bundle's specs, the same whichever engine runs.
    """

    def __init__(self, key: Hashable, shared: PerThread, preprocess: Preprocess | None, why: str) -> None:
        self._shared, self._preprocess, self._why = shared, preprocess, why
        self._release = weakref.finalize(self, cache.release, key)
        self._release.atexit = False
        source = shared.source
        self.variant: Variant = source.variant
        self.device: str = source.device
        self.batch: int = source.batch
        self.inputs: tuple[TensorSpec, ...] = source.inputs
        self.outputs: tuple[TensorSpec, ...] = source.outputs

    def __call__(self, given: Any) -> Any:
        """Run the engine; nothing is normalised or resized here.

        Args:
            given: one array for a model of one input, else a dict by input name. The dtype is the public one (float32) or the
                engine's own (float16). A batch other than the engine's is run in slices of the engine's batch, one after another.

        Returns:
            The output, or a dict by name where there are several; float32, owned by the caller, ready. Numpy arrays give numpy
            arrays; torch tensors give tensors on the same device, without a copy through the host; other objects with DLPack or
            `__cuda_array_interface__` (CuPy, Numba, PyCUDA) give objects with the latter, in the engine's own dtype.

        Raises:
            UsageError: the wrong name, dtype, shape or device: which tensor, what was expected and what was received.
        """
        session = self._session()
        arrays = by_name(self.inputs, given)
        natives = {public: session.runtime.home.inputs[native].dtype for public, native in session.names.items()}
        rows = check_arrays(self.inputs, natives, arrays)
        kinds = {(True, torch_of(array) is None) if on_gpu(array) else (False, True) for array in arrays.values()}
        if len(kinds) > 1:
            raise UsageError("the inputs are of different kinds: host, torch on a GPU, others on a GPU", remedy="pass all of one kind")
        run = self._on_gpu if any(gpu for gpu, _ in kinds) else self._on_host
        results = run(session, arrays, rows)
        return next(iter(results.values())) if len(self.outputs) == 1 else results

    def predict(self, images: Picture | Sequence[Picture]) -> Any:
        """Preprocess pictures as the model was trained with, and run them; returns what a call returns, a row a picture.

        Args:
            images: paths, bytes of files, Pillow images or uint8 RGB arrays (H×W×3), one or a sequence; or an array N×H×W×3. They are
                decoded by `accel.pictures.read`. One of another size than the model's is fitted in, its aspect kept.

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

    def explain(self) -> dict[str, Any]:
        """What runs and why, as plain data: variant, device, reason, versions and the runtime's facts."""
        session = self._session()
        return {
            "variant": str(self.variant),
            "device": self.device,
            "why": self._why,
            "runtime_version": version(self.variant.runtime),
            "engine": self._shared.source.entry.name if self._shared.source.entry is not None else "checkpoint",
            "inputs": [spec.to_dict() for spec in session.runtime.inputs],
            "outputs": [spec.to_dict() for spec in session.runtime.outputs],
            "facts": dict(session.runtime.facts),
        }

    def close(self) -> None:
        """Give the handle back; a second time does nothing."""
        self._release()

    def __enter__(self) -> LoadedEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _session(self) -> Session:
        if not self._release.alive:
            raise UsageError(f"this handle on {self.variant} is closed", remedy="load the engine again with accel.load")
        return self._shared.session()

    def _on_host(self, session: Session, arrays: Mapping[str, Any], rows: int) -> dict[str, Any]:
        batch = session.source.batch
        hosts = {name: host_array(array) for name, array in arrays.items()}
        if rows == batch:
            results = session.run(hosts)
        else:
            parts = [_run_slice(session, hosts, slice(start, min(start + batch, rows))) for start in range(0, rows, batch)]
            results = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        torch = torch_of(next(iter(arrays.values())))
        return results if torch is None else {name: torch.from_numpy(array) for name, array in results.items()}

    def _on_gpu(self, session: Session, arrays: Mapping[str, Any], rows: int) -> dict[str, Any]:
        gpu_call.check_device(session, arrays)
        torch = torch_of(next(iter(arrays.values())))
        if torch is not None:
            return gpu_call.run_tensors(torch, session, arrays, rows)
        return dict(gpu_call.run_arrays(session, arrays, rows))


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
    why: str = "",
) -> LoadedEngine:
    """A handle on `variant` of a bundle, opened for this thread; free where the same engine is loaded already.

    Engines are told apart by the bundle's resolved path, its accel.json's (inode, mtime, size), variant, device, threads and batch:
    a bundle that was exported anew is loaded anew, and older handles go on with what they have.

    Args:
        batch: rows a call; other sizes are run in slices.
        preprocess: what `predict` applies to uint8 N×H×W×3 pictures of any size.
        why: how the variant came to be chosen, for `explain`.

    Raises:
        BundleMissing, CorruptArtifact, IncompatibleArtifact, RuntimeUnavailable, MissingExtra, DeviceUnavailable: see each.
    """
    path = Path(bundle_path)
    key = (*cache.bundle_key(path), str(variant), device, threads, batch)

    def make() -> PerThread:
        return PerThread(engine_source(Bundle.open(path), variant, device, batch=batch, threads=threads))

    handle = LoadedEngine(key, cache.acquire(key, make), preprocess, why)
    try:
        # Opened here, so that what cannot run is told by load and not by the first request.
        handle._session()
    except BaseException:
        handle.close()
        raise
    return handle
