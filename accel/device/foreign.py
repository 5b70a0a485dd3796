"""Other libraries' arrays on a GPU, taken as they are: by DLPack (CuPy, JAX, Numba) or `__cuda_array_interface__` (PyCUDA too)."""

from __future__ import annotations

from typing import Any

import numpy as np

from accel.device import driver
from accel.device.stream import synchronize
from accel.errors import UsageError
from accel.optional import require
from accel.types import ITEMSIZE, DeviceArray, Shape

_ON_GPU = (2, 13)
"""DLPack's device types of CUDA memory: plain and managed."""


def on_gpu(array: Any) -> bool:
    """Whether `array`, which is no tensor of torch, says by either protocol that it is in a GPU's memory."""
    if isinstance(array, np.ndarray):
        return False
    return hasattr(array, "__cuda_array_interface__") or _dlpack_type(array) in _ON_GPU


def view(array: Any, device: str, stream: int) -> DeviceArray:
    """The memory of `array` as it is, without a copy; work that its library says is still going on is waited for.

    PyCUDA's arrays must live in the primary context (`import pycuda.autoprimaryctx`), as everything of ours does.

    Args:
        device: `cuda:N`, where it has to be.
        stream: ours, which will read it.

    Raises:
        UsageError: it is on another GPU, not C-contiguous, or of a dtype that no engine has.
    """
    if _dlpack_type(array) in _ON_GPU:
        return _of_dlpack(array, device, stream)
    return _of_interface(array, device)


def _dlpack_type(array: Any) -> int | None:
    asked = getattr(array, "__dlpack_device__", None)
    return None if asked is None else int(asked()[0])


def _of_dlpack(array: Any, device: str, stream: int) -> DeviceArray:
    index = int(array.__dlpack_device__()[1])
    if index != driver.index_of(device):
        raise UsageError(f"the array is on cuda:{index}, the engine on {device}", remedy=f"move it to {device}, or pass a numpy array")
    # The producer orders its own work before ours on `stream`, as the protocol says.
    found = require("cuda.core.utils", driver.EXTRA).StridedMemoryView.from_dlpack(array, stream_ptr=stream)
    shape = tuple(int(size) for size in found.shape)
    dtype = str(found.dtype)
    if found.strides is not None:
        _demand_dense(shape, tuple(int(step) for step in found.strides), dtype, itemsize=1)
    return DeviceArray(int(found.ptr), shape, _known(dtype), device, found)


def _of_interface(array: Any, device: str) -> DeviceArray:
    interface = array.__cuda_array_interface__
    storage = np.dtype(interface["typestr"])
    shape = tuple(int(size) for size in interface["shape"])
    if interface.get("strides") is not None:
        _demand_dense(shape, tuple(interface["strides"]), str(storage), storage.itemsize)
    if interface.get("stream") is not None:
        synchronize(interface["stream"])
    # An object with a dtype of its own knows more than the interface, which has no bfloat16.
    declared = str(getattr(array, "dtype", storage))
    dtype = declared if ITEMSIZE.get(declared) == storage.itemsize else str(storage)
    return DeviceArray(int(interface["data"][0]), shape, _known(dtype), device, array)


def _known(dtype: str) -> str:
    if dtype not in ITEMSIZE:
        raise UsageError(f"the array has the dtype {dtype}", remedy=f"convert it to one of: {', '.join(ITEMSIZE)}")
    return dtype


def _demand_dense(shape: Shape, strides: Shape, dtype: str, itemsize: int) -> None:
    """Strides count in units of `itemsize` bytes; those of dimensions of size 1 mean nothing."""
    step = itemsize
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            raise UsageError(
                f"expected a C-contiguous array, received {dtype} of shape {shape} with strides {strides}",
                remedy="make it contiguous, or pass a torch tensor, which the engine packs by itself",
            )
        step *= size
