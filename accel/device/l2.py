"""Other data in the GPU's L2 cache, for what is to be measured without the engine's own."""

from __future__ import annotations

from accel.device import driver
from accel.device.memory import empty

TIMES = 2
"""How many times the cache's size is written: a cache that keeps some lines longer than others has lost them by then."""


class L2Flush:
    """Called, it enqueues on `stream` a write of TIMES the size of the L2 cache of `device`; not waited for.

    Raises:
        DeviceUnavailable: there is no memory for the buffer.
    """

    def __init__(self, device: str, stream: int) -> None:
        cuda = driver.bindings()
        attribute = cuda.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE
        size = driver.check(cuda.cuDeviceGetAttribute(attribute, driver.handle_of(device)), f"reading the L2 cache's size of {device}")
        self.bytes = TIMES * max(int(size), 1)
        self._buffer, self._stream = empty((self.bytes,), "uint8", device), stream

    def __call__(self) -> None:
        driver.check(driver.bindings().cuMemsetD8Async(self._buffer.ptr, 1, self.bytes, self._stream), "filling the L2 cache")
