"""The CUDA driver through cuda-bindings, loaded on the first call, with every return code checked."""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from typing import Any

from accel.errors import AccelError, DeviceUnavailable
from accel.optional import installed, require

EXTRA = "toolkit"
LIBRARY = "libcuda.so.1"
"""What cuda-bindings opens on Linux."""

_LOST = (
    "NO_DEVICE",
    "INVALID_DEVICE",
    "NOT_INITIALIZED",
    "SYSTEM_DRIVER_MISMATCH",
    "SYSTEM_NOT_READY",
    "STUB_LIBRARY",
    "DEVICE_UNAVAILABLE",
)
_GONE = (
    "DEINITIALIZED",
    "ECC_UNCORRECTABLE",
    "ILLEGAL_ADDRESS",
    "LAUNCH_TIMEOUT",
    "CONTEXT_IS_DESTROYED",
    "ASSERT",
    "HARDWARE_STACK_ERROR",
    "ILLEGAL_INSTRUCTION",
    "MISALIGNED_ADDRESS",
    "INVALID_ADDRESS_SPACE",
    "INVALID_PC",
    "LAUNCH_FAILED",
)
"""What every call of a context answers once a kernel has gone wrong in it: it stays so, and what it had goes with it."""

_ALREADY_ACTIVE = "CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE"
_THREAD = threading.local()


@functools.cache
def bindings() -> Any:
    """`cuda.bindings.driver`.

    Raises:
        MissingExtra: cuda-bindings is not installed. DeviceUnavailable: it is, and there is no driver that it could call.
    """
    if sys.platform == "linux" and installed("cuda.bindings"):
        # Asked first: without a driver, the bindings' import would be 50 ms of every load with device="auto" on a CPU.
        try:
            ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise _no_driver() from error
    return require("cuda.bindings.driver", EXTRA)


def _no_driver() -> DeviceUnavailable:
    return DeviceUnavailable("no NVIDIA driver was found on this machine", remedy="install the driver, or use --device cpu")


def check(result: tuple[Any, ...], what: str) -> Any:
    """Return the values of one driver call, `None` where it has none.

    Args:
        result: what cuda-bindings answered, `(CUresult, value…)`.
        what: the call, for the message.

    Raises:
        DeviceUnavailable: there is no working GPU. AccelError: any other failure; both name the CUDA error.
    """
    code = result[0]
    if code:
        raise _failure(code, what)
    if len(result) == 1:
        return None
    return result[1] if len(result) == 2 else result[1:]


def give_back(result: tuple[Any, ...], what: str) -> None:
    """`check` for a finaliser, from which an error is only printed: where the context is gone, whoever used it was told, and there is
    nothing to give back."""
    name = getattr(result[0], "name", "")
    if not any(name == f"CUDA_ERROR_{gone}" for gone in _GONE):
        check(result, what)


def _failure(code: Any, what: str) -> AccelError:
    name = getattr(code, "name", f"CUDA error {int(code)}")
    _, text = bindings().cuGetErrorString(code)
    message = f"{what} failed: {name}" + (f" ({text.decode()})" if text else "")
    if any(name.endswith(lost) for lost in _LOST):
        return DeviceUnavailable(message, remedy="check `nvidia-smi`, or use --device cpu")
    if name == "CUDA_ERROR_OUT_OF_MEMORY":
        return DeviceUnavailable(message, remedy="free memory on the GPU (see `nvidia-smi`) and run it again")
    return AccelError(message)


def device_count() -> int:
    """How many GPUs the driver shows.

    Raises:
        DeviceUnavailable: there is no driver, or it does not start. MissingExtra: cuda-bindings is not installed.
    """
    driver = bindings()
    try:
        started = driver.cuInit(0)
    except RuntimeError as error:  # cuda-bindings loads libcuda on the first call
        raise _no_driver() from error
    check(started, "starting the NVIDIA driver")
    return int(check(driver.cuDeviceGetCount(), "counting the GPUs"))


def cuda_version() -> str:
    """The newest CUDA that the driver speaks, as `13.0`."""
    number = int(check(bindings().cuDriverGetVersion(), "reading the driver's CUDA version"))
    return f"{number // 1000}.{number % 1000 // 10}"


def index_of(device: str) -> int:
    """The ordinal N of `cuda:N`."""
    return int(device.partition(":")[2] or 0)


def handle_of(device: str) -> Any:
    """The driver's handle of `cuda:N`; makes no context.

    Raises:
        DeviceUnavailable: there is no such GPU.
    """
    index, count = index_of(device), device_count()
    if index >= count:
        raise DeviceUnavailable(f"{device} was asked for and this machine has {count} GPU(s)", remedy="use another cuda:N, or --device cpu")
    return check(bindings().cuDeviceGet(index), f"opening {device}")


@functools.cache
def _prepared(device: str) -> None:
    """Make the primary context's waits spin, once a process and before anything (torch too) activates it."""
    driver = bindings()
    handle = handle_of(device)
    result = driver.cuDevicePrimaryCtxSetFlags(handle, int(driver.CUctx_flags.CU_CTX_SCHED_SPIN))
    # Drivers before CUDA 11 refuse while the context is active; its flags are then another library's choice.
    if result[0] and result[0].name != _ALREADY_ACTIVE:
        check(result, "asking for spinning waits")


def activate(device: str) -> None:
    """Make the primary context of `cuda:N`, the one that torch uses too, current on this thread.

    Raises:
        DeviceUnavailable: no such GPU, or none that works. MissingExtra: cuda-core is not installed.
    """
    _prepared(device)
    require("cuda.core", EXTRA).Device(index_of(device)).set_current()
    _stay_out_of_captures()


def _stay_out_of_captures() -> None:
    """Let this thread allocate while another records a CUDA graph in the global mode, as ONNX Runtime does.

    By CUDA's default its allocation would fail, and spoil the other's graph.
    """
    if not getattr(_THREAD, "stays_out", False):
        driver = bindings()
        check(
            driver.cuThreadExchangeStreamCaptureMode(driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
            "choosing the thread's capture mode",
        )
        _THREAD.stays_out = True


def spins(device: str) -> bool:
    """Whether waits on `cuda:N` really spin, read back from the driver."""
    driver = bindings()
    activate(device)
    flags, _active = check(driver.cuDevicePrimaryCtxGetState(handle_of(device)), "reading the context's flags")
    return bool(int(flags) & int(driver.CUctx_flags.CU_CTX_SCHED_SPIN))


def gpu_available() -> tuple[bool, str]:
    """Whether a GPU can be used, and if not, why; never raises. Makes no context: a coordinator that asks stays off the GPU."""
    try:
        count = device_count()
        require("cuda.core", EXTRA)
    except AccelError as error:
        return False, error.message
    return (True, "") if count else (False, "the NVIDIA driver shows no GPU")
