"""One opened runtime with its stream and staging, for one thread; and one of those for each thread that asks."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from accel import device
from accel.errors import AccelError, UsageError
from accel.runtimes import create
from accel.types import Array, EngineSource, Runtime, TensorSpec


@runtime_checkable
class ThreadBound(Protocol):
    """A runtime that changes settings of its thread while it is open (torch's stream and mode), and can give them back."""

    def suspend(self) -> None: ...
    def entered(self) -> contextlib.AbstractContextManager[None]: ...


class Session:
    """An open runtime that leaves the thread's own settings alone between calls. Use it on the thread that made it.

    Attributes:
        names: public input name → the engine's own; outputs likewise in `results`.
    """

    def __init__(self, source: EngineSource) -> None:
        self.source = source
        self.runtime = create(source)
        self.stream = device.open_stream(source.device)
        # At exit the process takes it all down; CUDA may be gone before finalisers run.
        self._close = weakref.finalize(self, _close, self.runtime, self.stream)
        self._close.atexit = False
        try:
            self.runtime.open(self.stream)
            if isinstance(self.runtime, ThreadBound):
                self.runtime.suspend()
            self.staging = device.Staging(self.runtime.home, self.stream)
            self.names = _paired(source.inputs, self.runtime.inputs)
            self.results = _paired(source.outputs, self.runtime.outputs)
        except BaseException:
            self._close()
            raise

    def entered(self) -> contextlib.AbstractContextManager[None]:
        return self.runtime.entered() if isinstance(self.runtime, ThreadBound) else contextlib.nullcontext()

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """One batch by public name → owned outputs by public name, floating ones as float32."""
        with self.entered():
            outputs = self.staging.run(self.runtime, {native: arrays[public] for public, native in self.names.items()})
        return {public: outputs[native] for public, native in self.results.items()}

    def close(self) -> None:
        self._close()


class PerThread:
    """Sessions of one source, opened on a thread's first call, so that two threads never share buffers or a stream."""

    def __init__(self, source: EngineSource) -> None:
        self.source = source
        self._local = threading.local()
        # A session belongs to its thread and is closed with it; here they are only known, for close().
        self._all: weakref.WeakSet[Session] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closed = False

    def session(self) -> Session:
        found: Session | None = getattr(self._local, "session", None)
        if found is None or self._closed:
            if self._closed:
                raise UsageError("the engine is closed", remedy="load it again with accel.load")
            found = self._local.session = Session(self.source)
            with self._lock:
                self._all.add(found)
        return found

    def close(self) -> None:
        """Close the sessions of all threads; none may be in a call."""
        self._closed = True
        with self._lock:
            for session in list(self._all):
                session.close()


def _close(runtime: Runtime, stream: int | None) -> None:
    runtime.close()
    device.close_stream(stream)


def _paired(public: tuple[TensorSpec, ...], native: tuple[TensorSpec, ...]) -> dict[str, str]:
    """Public name → native name: the same where the names agree, else by position (an ONNX file may have its own)."""
    if len(public) != len(native):
        raise AccelError(
            f"the engine has the tensors {[spec.name for spec in native]}, the bundle names {[spec.name for spec in public]}",
            remedy="export the model again",
        )
    if {spec.name for spec in public} == {spec.name for spec in native}:
        return {spec.name: spec.name for spec in public}
    return {ours.name: theirs.name for ours, theirs in zip(public, native, strict=True)}
