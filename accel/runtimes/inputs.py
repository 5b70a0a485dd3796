"""What every runtime does with its inputs before the timed call: hold them against the specs, and own a static set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from accel import device
from accel.errors import UsageError
from accel.types import DeviceArray, EngineSource, TensorSpec

FLOATING = ("float64", "float32", "float16", "bfloat16")
_NATIVE = {"fp16": "float16", "bf16": "bfloat16"}
"""Precisions whose engines take their inputs in that dtype; the others keep the public one."""


def fixed_specs(specs: Sequence[TensorSpec], batch: int) -> tuple[TensorSpec, ...]:
    """`specs` with every dynamic dimension set to `batch`."""
    return tuple(TensorSpec(spec.name, spec.fixed(batch), spec.dtype, spec.layout) for spec in specs)


def native_inputs(source: EngineSource) -> tuple[TensorSpec, ...]:
    """The public inputs of `source` at its batch size, floating ones in the dtype that its precision computes in."""
    wanted = _NATIVE.get(source.variant.precision)
    return tuple(
        TensorSpec(spec.name, spec.shape, wanted if wanted and spec.dtype in FLOATING else spec.dtype, spec.layout)
        for spec in fixed_specs(source.inputs, source.batch)
    )


def static_inputs(specs: Sequence[TensorSpec], on: str, stream: int | None) -> dict[str, DeviceArray]:
    """A runtime's own input buffers on the device `on`, full of ones: warm-up on zeros or on garbage could take other paths."""
    return {spec.name: device.to_device(np.ones(spec.fixed(1)), spec.dtype, on, stream) for spec in specs}


def check_inputs(specs: Sequence[TensorSpec], given: Mapping[str, DeviceArray], on: str) -> None:
    """Hold `given` against `specs` on the device `on`.

    Raises:
        UsageError: which tensor, what was expected and what was received.
    """
    names = [spec.name for spec in specs]
    if sorted(given) != sorted(names):
        raise UsageError(f"the inputs are {', '.join(names)}; received {', '.join(given) or 'none'}", remedy="pass exactly these names")
    for spec in specs:
        array = given[spec.name]
        for what, expected, received in (
            ("shape", spec.shape, array.shape),
            ("dtype", spec.dtype, array.dtype),
            ("device", on, array.device),
        ):
            if expected != received:
                raise UsageError(
                    f"input {spec.name!r}: expected {what} {expected}, received {received}",
                    remedy=f"pass {spec.dtype} of {spec.shape} on {on}",
                )
