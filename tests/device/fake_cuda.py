"""A CUDA driver of plain host memory, so that the logic around the real one runs without a GPU."""

from __future__ import annotations

import ctypes
import enum
from typing import Any


class Code(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE = 708


class Flags:
    CU_CTX_SCHED_SPIN = 1
    CU_STREAM_NON_BLOCKING = 1
    CU_STREAM_WAIT_VALUE_GEQ = 0
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1


class FakeDriver:
    """Answers as cuda-bindings does, `(code, value…)`; `fail` maps a call to the code it returns; `calls` records their names."""

    CU_MEMHOSTALLOC_DEVICEMAP = 2
    CUctx_flags = CUstream_flags = CUstreamWaitValue_flags = CUstreamCaptureMode = Flags

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail: dict[str, Code] = {}
        self.memory: dict[int, Any] = {}
        self.waits: list[tuple[int, int]] = []
        self.gpus = 1

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
        ctypes.memmove(target, source, size)
        return ()

    _cuMemcpyHtoDAsync = _cuMemcpyDtoHAsync = _cuMemcpyDtoDAsync = _copy  # noqa: N815

    def _cuGraphGetNodes(self, graph: int) -> tuple[list[int], int]:  # noqa: N802
        return ([], 7)

    def _cuStreamWaitValue32(self, stream: int, address: int, value: int, flags: int) -> tuple[()]:  # noqa: N802
        self.waits.append((ctypes.c_uint32.from_address(address).value, value))
        return ()


class FakeCore:
    """Stands for cuda.core."""

    class Device:
        def __init__(self, index: int) -> None: ...

        def set_current(self) -> None: ...
