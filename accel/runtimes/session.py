"""One opened runtime with its stream and staging: what an engine's pool lends to one call at a time."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from accel import device
from accel.errors import AccelError
from accel.runtimes import create
from accel.types import Array, EngineSource, Runtime, TensorSpec


@runtime_checkable
class ThreadBound(Protocol):
    """A runtime that changes settings of its thread while it is open (torch's stream and mode), and can give them back."""

    def suspend(self) -> None: ...
    def entered(self) -> contextlib.AbstractContextManager[None]: ...


class Session:
    """An open runtime that leaves the threads' own settings alone between calls. One call at a time, on any thread that `ready` knows.

    Attributes:
        names: public input name → the engine's own; outputs likewise in `results`.
        natives: public input name → the engine's own dtype.
        one_thread: only the thread that made it may use it.
        turn: held during a call, where `one_thread` sessions are closed from elsewhere.
    """

    def __init__(self, source: EngineSource) -> None:
        self.source = source
        self.runtime = create(source)
        self.one_thread = bool(getattr(self.runtime, "one_thread", False))
        self.turn = threading.Lock()
        self.stream = device.open_stream(source.device)
        # At exit the process takes it all down; CUDA may be gone before finalisers run.
        self._close = weakref.finalize(self, _close, self.runtime, self.stream)
        self._close.atexit = False
        self._bound: ThreadBound | None = None
        try:
            self.runtime.open(self.stream)
            if isinstance(self.runtime, ThreadBound):
                self._bound = self.runtime
                self._bound.suspend()
            self.staging = device.Staging(self.runtime.home, self.stream)
            self.names = _paired(source.inputs, self.runtime.inputs)
            self.results = _paired(source.outputs, self.runtime.outputs)
            self.natives = {public: self.runtime.home.inputs[native].dtype for public, native in self.names.items()}
        except BaseException:
            self._close()
            raise

    def entered(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._bound is None else self._bound.entered()

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """One batch by public name → owned outputs by public name, floating ones as float32."""
        given = {native: arrays[public] for public, native in self.names.items()}
        if self._bound is None:
            outputs = self.staging.run(self.runtime, given)
        else:
            with self._bound.entered():
                outputs = self.staging.run(self.runtime, given)
        return {public: outputs[native] for public, native in self.results.items()}

    def close(self) -> None:
        self._close()


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
