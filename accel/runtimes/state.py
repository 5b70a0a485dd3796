"""What every runtime knows after open and says by the protocol's properties."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel.errors import UsageError
from accel.types import Binding, EngineSource, TensorSpec


class OpenState:
    """Base of the runtimes: `open` fills the four fields behind the protocol's properties, `close` takes `_home` away."""

    def __init__(self, source: EngineSource) -> None:
        self.source = source
        self._inputs: tuple[TensorSpec, ...] = ()
        self._outputs: tuple[TensorSpec, ...] = ()
        self._facts: dict[str, Any] = {}
        self._home: Binding | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def home(self) -> Binding:
        if self._home is None:
            raise not_open()
        return self._home

    @property
    def facts(self) -> Mapping[str, Any]:
        return self._facts


def not_open() -> UsageError:
    return UsageError("the runtime is not open", remedy="call open(stream) first")
