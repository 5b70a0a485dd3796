"""An engine opened for numpy arrays: its stream, its runtime and the staging that every caller shares."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from accel.errors import AccelError, UsageError
from accel.types import Array, DeviceArray, EngineSource, Runtime, TensorSpec

if TYPE_CHECKING:
    from accel.device import Staging


@dataclasses.dataclass
class OpenEngine:
    """An open runtime with its stream and staging; closed by `open_engine`.

    Attributes:
        public_inputs, public_outputs: the bundle's specs, by whose names arrays go in and come out.
        stream: the stream's handle; None on a CPU.
        batch: samples per call, which is fixed.
    """

    runtime: Runtime
    staging: Staging
    stream: int | None
    device: str
    batch: int
    public_inputs: tuple[TensorSpec, ...]
    public_outputs: tuple[TensorSpec, ...]

    def native_inputs(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The same arrays under the engine's own names: by name where it is shared, else by position."""
        return _renamed(arrays, self.public_inputs, self.runtime.inputs)

    def resident(self, arrays: Mapping[str, Array]) -> dict[str, DeviceArray]:
        """One batch by public name → arrays of their own on the device, in the native dtypes, for `runtime.prepare`."""
        from accel import device

        native, dtypes = self.native_inputs(arrays), {spec.name: spec.dtype for spec in self.runtime.inputs}
        return {name: device.to_device(array, dtypes[name], self.device, self.stream) for name, array in native.items()}

    def infer(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Owned float32 outputs, by public name, of a batch; a batch shorter than the engine's is padded by its last row, then cut.

        Raises:
            UsageError: an input is absent, or has more rows than the engine's batch.
        """
        rows = len(next(iter(arrays.values())))
        if rows > self.batch:
            raise UsageError(f"{rows} samples do not fit an engine of batch {self.batch}", remedy="give at most one batch")
        full = {name: _padded(array, self.batch) for name, array in arrays.items()} if rows < self.batch else arrays
        outputs = _renamed(self.staging.run(self.runtime, self.native_inputs(full)), self.runtime.outputs, self.public_outputs)
        return {name: np.asarray(array[:rows], dtype=np.float32) for name, array in outputs.items()}


@contextlib.contextmanager
def open_engine(source: EngineSource, loaded: Callable[[], None] | None = None) -> Iterator[OpenEngine]:
    """Open a stream and the runtime of `source` on it; both are closed at the end.

    Args:
        loaded: called as `EngineSource.loaded` says.
    """
    from accel import device, runtimes

    if loaded is not None:
        source = dataclasses.replace(source, loaded=loaded)
    stream = device.open_stream(source.device)
    try:
        runtime = runtimes.create(source)
        try:
            runtime.open(stream)
            staging = device.Staging(runtime.home, stream)
            yield OpenEngine(runtime, staging, stream, source.device, source.batch, source.inputs, source.outputs)
        finally:
            runtime.close()
    finally:
        device.close_stream(stream)


def run_batches(engine: OpenEngine, inputs: Mapping[str, Array], stop: threading.Event | None = None) -> dict[str, Array]:
    """Run all N rows of `inputs` at the engine's batch; outputs of N rows, float32, by public name.

    Raises:
        CancelledError: `stop` was set, looked at before every batch.
    """
    parts = []
    for start in range(0, len(next(iter(inputs.values()))), engine.batch):
        if stop is not None and stop.is_set():
            raise concurrent.futures.CancelledError
        parts.append(engine.infer({name: array[start : start + engine.batch] for name, array in inputs.items()}))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _padded(array: Array, batch: int) -> Array:
    return np.concatenate([array, np.repeat(array[-1:], batch - len(array), axis=0)])


def _renamed(arrays: Mapping[str, Array], have: tuple[TensorSpec, ...], want: tuple[TensorSpec, ...]) -> dict[str, Array]:
    if len(have) != len(want):
        raise AccelError(
            f"the engine has the tensors {[spec.name for spec in want]}, the bundle {[spec.name for spec in have]}",
            remedy="export the model again",
        )
    shared = {spec.name for spec in have} == {spec.name for spec in want}
    pairs = [(spec.name, spec.name) for spec in want] if shared else [(a.name, b.name) for a, b in zip(have, want, strict=True)]
    absent = [theirs for theirs, _ in pairs if theirs not in arrays]
    if absent:
        raise UsageError(f"no array was given for {', '.join(absent)}", remedy=f"give {', '.join(spec.name for spec in have)}")
    return {ours: arrays[theirs] for theirs, ours in pairs}
