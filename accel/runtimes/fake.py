"""A runtime with a script instead of an engine, for tests of what stands on runtimes: no torch, no GPU, no file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from accel.runtimes.inputs import check_inputs, fixed_specs, native_inputs, static_inputs
from accel.runtimes.table import RuntimeInfo
from accel.types import Array, Binding, DeviceArray, EngineSource, TensorSpec

INFO = RuntimeInfo(
    factory="accel.runtimes.fake:Fake",
    format=None,
    precisions=("fp32", "fp16"),
    options=(),
    distributions=("accel-engines",),
    extra="dev",
)
"""A row for the table: `monkeypatch.setitem(RUNTIMES, "fake", fake.INFO)`."""


class Fake:
    """The Runtime protocol on a CPU, scripted.

    Args:
        source: only its specs, batch and variant are read.
        answer: called by enqueue with the input arrays by name, returns the outputs by name; zeros by default.
        fail: method name → the exception that it raises.
        facts: what `facts` says beside the precision asked for.

    Attributes:
        calls: the methods called, in order.
    """

    def __init__(
        self,
        source: EngineSource,
        *,
        answer: Callable[[Mapping[str, Array]], Mapping[str, Array]] | None = None,
        fail: Mapping[str, Exception] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.source = source
        self.inputs: tuple[TensorSpec, ...] = native_inputs(source)
        self.outputs: tuple[TensorSpec, ...] = fixed_specs(source.outputs, source.batch)
        self.facts: Mapping[str, Any] = {"precision": source.variant.precision, "provider": "fake", **(facts or {})}
        self.calls: list[str] = []
        self.home = Binding({})
        self._answer, self._fail = answer or self._zeros, dict(fail or {})
        self._results: Mapping[str, Array] = {}

    def open(self, stream: int | None) -> None:
        self._called("open")
        self.source.loaded()
        self.home = Binding(static_inputs(self.inputs, "cpu", None))

    def prepare(self, inputs: Mapping[str, DeviceArray]) -> Binding:
        self._called("prepare")
        check_inputs(self.inputs, inputs, "cpu")
        return Binding(inputs)

    def enqueue(self, binding: Binding) -> None:
        self._called("enqueue")
        self._results = self._answer({name: array.owner for name, array in binding.inputs.items()})

    def output(self, binding: Binding) -> Mapping[str, DeviceArray]:
        self._called("output")
        return {name: DeviceArray.of_numpy(np.ascontiguousarray(array)) for name, array in self._results.items()}

    def close(self) -> None:
        self._called("close")

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self._fail:
            raise self._fail[name]

    def _zeros(self, _: Mapping[str, Array]) -> Mapping[str, Array]:
        return {spec.name: np.zeros(spec.fixed(self.source.batch), spec.dtype) for spec in self.outputs}
