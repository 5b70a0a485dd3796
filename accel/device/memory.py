"""Buffers on a device and the copies between them; on a CPU the same calls deal in numpy arrays."""

from __future__ import annotations

import ctypes
import weakref

import numpy as np

from accel.device import driver, host
from accel.device.stream import synchronize
from accel.types import Array, DeviceArray, Shape


class DeviceBuffer:
    """`size` bytes on a GPU, freed when nothing refers to them any more."""

    def __init__(self, size: int, device: str) -> None:
        driver.activate(device)
        self.ptr = int(driver.check(driver.bindings().cuMemAlloc(max(size, 1)), f"allocating {size} bytes on {device}"))
        # At exit the driver frees everything itself, and may be gone before a finaliser runs.
        weakref.finalize(self, _free_device, self.ptr, device).atexit = False


class PinnedArray:
    """A page-locked host array of `shape` and `dtype`, which the GPU copies from and to without a detour.

    Attributes:
        array: its numpy view; bfloat16 as uint16 storage. Valid as long as this object lives.
    """

    def __init__(self, shape: Shape, dtype: str, device: str) -> None:
        driver.activate(device)
        storage = host.storage_dtype(dtype)
        self.nbytes = int(np.prod(shape, dtype=np.int64)) * storage.itemsize
        self.ptr = int(driver.check(driver.bindings().cuMemHostAlloc(max(self.nbytes, 1), 0), f"pinning {self.nbytes} bytes"))
        weakref.finalize(self, _free_host, self.ptr, device).atexit = False
        memory = (ctypes.c_ubyte * self.nbytes).from_address(self.ptr)
        self.array: Array = np.frombuffer(memoryview(memory), dtype=storage).reshape(shape)


def _free_device(ptr: int, device: str) -> None:
    driver.activate(device)
    driver.give_back(driver.bindings().cuMemFree(ptr), "freeing device memory")


def _free_host(ptr: int, device: str) -> None:
    driver.activate(device)
    driver.give_back(driver.bindings().cuMemFreeHost(ptr), "freeing pinned memory")


def empty(shape: Shape, dtype: str, device: str) -> DeviceArray:
    """An uninitialised array on `device`; `dtype` is a key of types.ITEMSIZE."""
    if device == "cpu":
        return DeviceArray.of_numpy(np.empty(shape, host.storage_dtype(dtype)), dtype)
    size = int(np.prod(shape, dtype=np.int64)) * host.storage_dtype(dtype).itemsize
    buffer = DeviceBuffer(size, device)
    return DeviceArray(buffer.ptr, tuple(shape), dtype, device, buffer)


def to_device(array: Array, dtype: str, device: str, stream: int | None) -> DeviceArray:
    """A copy of `array` (any strides) on `device`, converted to `dtype` on the host; finished when this returns."""
    staged = np.empty(array.shape, host.storage_dtype(dtype))
    host.convert_into(staged, array, dtype)
    if device == "cpu":
        return DeviceArray.of_numpy(staged, dtype)
    result = empty(staged.shape, dtype, device)
    driver.check(driver.bindings().cuMemcpyHtoDAsync(result.ptr, staged.ctypes.data, staged.nbytes, stream or 0), "copying to the GPU")
    synchronize(stream or 0)
    return result


def to_numpy(array: DeviceArray, stream: int | None) -> Array:
    """An owned copy on the host after everything on `stream`; same dtype, except that bfloat16 becomes float32."""
    if array.device == "cpu":
        return host.owned_copy(array.owner, array.dtype)
    staged = np.empty(array.shape, host.storage_dtype(array.dtype))
    driver.check(driver.bindings().cuMemcpyDtoHAsync(staged.ctypes.data, array.ptr, staged.nbytes, stream or 0), "copying from the GPU")
    synchronize(stream or 0)
    return host.owned_copy(staged, array.dtype)


def copy(target: DeviceArray, source_ptr: int, stream: int | None) -> None:
    """Enqueue a copy of `target.nbytes` bytes from `source_ptr` on the same device into `target`; not waited for on a GPU."""
    if target.device == "cpu":
        ctypes.memmove(target.ptr, source_ptr, target.nbytes)
    else:
        driver.check(driver.bindings().cuMemcpyDtoDAsync(target.ptr, source_ptr, target.nbytes, stream), "copying on the GPU")
