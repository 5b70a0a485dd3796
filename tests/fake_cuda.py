"""A CUDA driver of plain host memory, so that the logic around the real one runs without a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import enum
import gc
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from accel.device import driver, stream


class Code(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE = 708


class Flags:
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76
    CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE = 38
    CU_CTX_SCHED_SPIN = 1
    CU_STREAM_NON_BLOCKING = 1
    CU_STREAM_WAIT_VALUE_GEQ = 0


class FakeDriver:
    """Answers as cuda-bindings does, `(code, value…)`; `fail` maps a call to the code it returns; `calls` records their names.

    Work on a stream happens at once, or, while the stream is captured, when the graph is launched: `enqueue` is where a fake
    library puts its own.
    """

    CU_MEMHOSTALLOC_DEVICEMAP = 2
    CUctx_flags = CUstream_flags = CUstreamWaitValue_flags = CUstreamCaptureMode = CUdevice_attribute = Flags
    CUstream = CUdeviceptr = int

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail: dict[str, Code] = {}
        self.memory: dict[int, Any] = {}
        self.waits: list[tuple[int, int]] = []
        self.gpus = 1
        self.capability = {75: 9, 76: 0, 38: 1024}
        self.capturing: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}

    def enqueue(self, work: Callable[[], None]) -> None:
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name in self.fail:
                return (self.fail[name],)
            values = getattr(self, f"_{name}", lambda *_: ())(*arguments)
            return (Code.CUDA_SUCCESS, *values)

        return call

    def _cuGetErrorString(self, code: Code) -> tuple[bytes]:  # noqa: N802
        return (b"said the driver",)

    def _cuDeviceGetCount(self) -> tuple[int]:  # noqa: N802
        return (self.gpus,)

    def _cuDeviceGet(self, index: int) -> tuple[int]:  # noqa: N802
        return (index,)

    def _cuDeviceGetName(self, length: int, handle: int) -> tuple[bytes]:  # noqa: N802
        return (b"Fake GPU\0\0\0",)

    def _cuDeviceGetPCIBusId(self, length: int, handle: int) -> tuple[bytes]:  # noqa: N802
        return (f"0000:{0x1B + handle:02X}:00.0\0\0".encode(),)

    def _cuDeviceGetUuid(self, handle: int) -> tuple[Any]:  # noqa: N802
        return (types.SimpleNamespace(bytes=bytes([handle, *range(1, 16)])),)

    def _cuDeviceGetAttribute(self, attribute: int, handle: int) -> tuple[int]:  # noqa: N802
        return (self.capability[attribute],)

    def _cuDriverGetVersion(self) -> tuple[int]:  # noqa: N802
        return (13000,)

    def _cuDevicePrimaryCtxGetState(self, handle: int) -> tuple[int, int]:  # noqa: N802
        return (1, 1)

    def _cuStreamCreate(self, flags: int) -> tuple[int]:  # noqa: N802
        return (77,)

    def _cuMemAlloc(self, size: int) -> tuple[int]:  # noqa: N802
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return (ctypes.addressof(block),)

    def _cuMemHostAlloc(self, size: int, flags: int) -> tuple[int]:  # noqa: N802
        return self._cuMemAlloc(size)

    def _cuMemHostGetDevicePointer(self, pointer: int, flags: int) -> tuple[int]:  # noqa: N802
        return (pointer,)

    def _cuMemFree(self, pointer: int) -> tuple[()]:  # noqa: N802
        del self.memory[pointer]
        return ()

    _cuMemFreeHost = _cuMemFree  # noqa: N815

    def _copy(self, target: int, source: int, size: int, stream: int) -> tuple[()]:
        self.enqueue(lambda: ctypes.memmove(target, source, size))
        return ()

    def _cuMemsetD8Async(self, target: int, value: int, size: int, stream: int) -> tuple[()]:  # noqa: N802
        self.enqueue(lambda: ctypes.memset(target, value, size))
        return ()

    _cuMemcpyHtoDAsync = _cuMemcpyDtoHAsync = _cuMemcpyDtoDAsync = _copy  # noqa: N815

    def _cuStreamBeginCapture(self, stream: int, mode: int) -> tuple[()]:  # noqa: N802
        assert self.capturing is None
        assert mode == Flags.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.capturing = []
        return ()

    def _cuStreamEndCapture(self, stream: int) -> tuple[list[Callable[[], None]]]:  # noqa: N802
        assert self.capturing is not None
        graph, self.capturing = self.capturing, None
        return (graph,)

    def _cuGraphGetNodes(self, graph: list[Callable[[], None]], count: int = 0) -> tuple[list[Any], int]:  # noqa: N802
        return (graph[:count], len(graph))

    def _cuGraphInstantiate(self, graph: list[Callable[[], None]], flags: int) -> tuple[int]:  # noqa: N802
        self.graphs[id(graph)] = graph
        return (id(graph),)

    def _cuGraphLaunch(self, executable: int, stream: int) -> tuple[()]:  # noqa: N802
        for work in self.graphs[executable]:
            work()
        return ()

    def _cuGraphExecDestroy(self, executable: int) -> tuple[()]:  # noqa: N802
        del self.graphs[executable]
        return ()

    def _cuStreamWaitValue32(self, stream: int, address: int, value: int, flags: int) -> tuple[()]:  # noqa: N802
        self.waits.append((ctypes.c_uint32.from_address(address).value, value))
        return ()


class FakeCore:
    """Stands for cuda.core."""

    class Device:
        def __init__(self, index: int) -> None: ...

        def set_current(self) -> None: ...


@contextlib.contextmanager
def installed(fake: Any = None) -> Iterator[Any]:
    """`fake`, else a FakeDriver, in the place of the real one."""
    fake = fake or FakeDriver()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "bindings", lambda: fake)
        patch.setattr(driver, "require", lambda module, extra: FakeCore)
        patch.setattr(stream, "_WAITS", {})
        driver._prepared.cache_clear()
        # What was there before is not looked through at the end: with torch imported that would be most of a test's time.
        gc.freeze()
        yield fake
        # What an exception's frames still hold is given back to this driver, and not to the next one.
        gc.collect()
        gc.unfreeze()
        driver._prepared.cache_clear()
