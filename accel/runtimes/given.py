"""What a caller handed to a loaded engine: held against the public specs, whatever kind of array it is."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from accel.device import foreign
from accel.errors import UsageError
from accel.types import Array, TensorSpec

_NAMES: dict[Hashable, str] = {}


def by_name(specs: Sequence[TensorSpec], given: Any) -> dict[str, Any]:
    """`given` by input name: a mapping as it is, one array for a model of one input.

    Raises:
        UsageError: a name is missing or unknown, or one array was given to a model of several inputs.
    """
    names = [spec.name for spec in specs]
    if not isinstance(given, Mapping):
        if len(names) != 1:
            raise UsageError(f"the model has {len(names)} inputs and one array was given", remedy=f"pass a dict of {', '.join(names)}")
        return {names[0]: given}
    if sorted(given) != sorted(names):
        raise UsageError(f"the inputs are {', '.join(names)}; received {', '.join(map(str, given)) or 'none'}", remedy="pass these names")
    return {name: given[name] for name in names}


def torch_of(array: Any) -> Any:
    """The torch module if `array` is a tensor of it, else None; imports nothing."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(array, torch.Tensor) else None


def on_gpu(array: Any) -> bool:
    """Whether `array` says that it is in a GPU's memory."""
    torch = torch_of(array)
    return bool(array.is_cuda) if torch is not None else foreign.on_gpu(array)


def on_host(array: Any) -> Any:
    """A numpy array over an object on the host that is neither numpy's nor torch's and speaks DLPack; anything else as it is."""
    if isinstance(array, np.ndarray) or torch_of(array) is not None or not hasattr(array, "__dlpack__") or foreign.on_gpu(array):
        return array
    try:
        return np.from_dlpack(array)
    except (RuntimeError, BufferError, TypeError):
        # What DLPack of numpy does not take (a dtype, a read-only array) may still be an array by other means, and is held to the spec.
        return array


def check_arrays(specs: Sequence[TensorSpec], natives: Mapping[str, str], arrays: Mapping[str, Any]) -> int:
    """Hold each array's dtype (the public or the native one) and shape against its spec; returns the number of rows.

    Args:
        natives: input name → the engine's own dtype.

    Raises:
        UsageError: which tensor, what was expected and what was received.
    """
    rows: dict[str, int] = {}
    for spec in specs:
        dtype, shape = _described(arrays[spec.name], spec.name)
        if (dtype != spec.dtype and dtype != natives[spec.name]) or not spec.accepts(shape):
            accepted = dict.fromkeys((spec.dtype, natives[spec.name]))
            raise UsageError(
                f"input {spec.name!r}: expected {' or '.join(accepted)} of shape {spec.shape}, received {dtype} of shape {shape}",
                remedy=f"pass a {spec.dtype} array of shape {spec.shape}; the engine converts to its own precision by itself",
            )
        rows[spec.name] = shape[0] if shape else 1
    if len(set(rows.values())) > 1:
        raise UsageError(f"the inputs have different numbers of rows: {rows}", remedy="pass the same batch for every input")
    return next(iter(rows.values()))


def host_array(array: Any) -> Array:
    """A numpy array of `array`, a numpy array or a tensor on the CPU; no copy, except that bfloat16 is widened to float32."""
    torch = torch_of(array)
    if torch is None:
        return np.asarray(array)
    plain = array.detach()
    return np.asarray((plain.float() if plain.dtype == torch.bfloat16 else plain).numpy())


def _described(array: Any, name: str) -> tuple[str, tuple[int, ...]]:
    if isinstance(array, np.ndarray):
        return dtype_name(array.dtype), array.shape
    if not hasattr(array, "dtype") or not hasattr(array, "shape"):
        raise UsageError(f"input {name!r}: expected an array, received a {type(array).__name__}", remedy="pass a numpy array or a tensor")
    return dtype_name(array.dtype), tuple(int(size) for size in array.shape)


def dtype_name(dtype: Any) -> str:
    """`float32` of a numpy or torch dtype; remembered, because spelling one takes a microsecond."""
    try:
        return _NAMES[dtype]
    except (KeyError, TypeError):
        name = str(dtype).removeprefix("torch.")
        if isinstance(dtype, Hashable):
            _NAMES[dtype] = name
        return name
