"""A gate holds a stream until the host opens it, so that GPU time can be taken without the host's share.

The stream waits on a flag in pinned memory; it occupies no multiprocessor. What is enqueued behind the gate starts
when it opens: an `enqueue` that waits for the GPU can then never return, which is how one that blocks is found out.
"""

from __future__ import annotations

import ctypes
import threading
import weakref

from accel.device import driver
from accel.errors import UsageError

WATCHDOG_S = 0.05
"""A gate held longer than this is stuck: whoever holds it waits for work behind it."""


class Gate:
    """One gate of one stream; use it from one thread.

    Attributes:
        blocked: the watchdog had to open the gate at least once; stays True.

    Raises:
        UsageError: the stream is None; a CPU has nothing to hold.
    """

    def __init__(self, stream: int | None, watchdog_s: float = WATCHDOG_S) -> None:
        if stream is None:
            raise UsageError("a gate was asked for without a stream", remedy="gates exist on a GPU only; on a CPU time the call itself")
        cuda = driver.bindings()
        self.blocked = False
        self._stream, self._watchdog_s = stream, watchdog_s
        self._lock = threading.Lock()
        self._sequence = 0
        self._watchdog: threading.Timer | None = None
        self._wait, self._at_least = cuda.cuStreamWaitValue32, int(cuda.CUstreamWaitValue_flags.CU_STREAM_WAIT_VALUE_GEQ)
        pinned = int(driver.check(cuda.cuMemHostAlloc(4, cuda.CU_MEMHOSTALLOC_DEVICEMAP), "pinning the gate's flag"))
        weakref.finalize(self, driver.bindings().cuMemFreeHost, pinned).atexit = False
        self._address = int(driver.check(cuda.cuMemHostGetDevicePointer(pinned, 0), "mapping the gate's flag"))
        self._flag = ctypes.c_uint32.from_address(pinned)
        self._flag.value = 0

    def hold(self) -> None:
        """Enqueue the wait: what follows on the stream starts after open(), or after the watchdog lost patience."""
        self._sequence += 1
        driver.check(self._wait(self._stream, self._address, self._sequence, self._at_least), "holding the stream")
        self._watchdog = threading.Timer(self._watchdog_s, self._force, (self._sequence,))
        self._watchdog.daemon = True
        self._watchdog.start()

    def open(self) -> None:
        """Let the stream go; nothing happens if it is not held."""
        with self._lock:
            self._flag.value = self._sequence
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _force(self, sequence: int) -> None:
        with self._lock:
            # The flag only grows: a watchdog that wakes up late must not close a later gate's flag again.
            if self._flag.value < sequence:
                self._flag.value = sequence
                self.blocked = True

    def __enter__(self) -> Gate:
        self.hold()
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
