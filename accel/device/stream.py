"""Streams by handle, and the one way to wait for one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from accel.device import driver

_WAITS: dict[int, Callable[[], tuple[Any, ...]]] = {}
"""Stream of ours → the driver's wait for it. Made once: from a plain number cuda-bindings would make a handle in every call."""


def open_stream(device: str) -> int | None:
    """A new stream of `cuda:N` that does not wait for the default stream; None on a CPU. Close it with close_stream."""
    if device == "cpu":
        return None
    driver.activate(device)
    cuda = driver.bindings()
    stream = int(driver.check(cuda.cuStreamCreate(int(cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)), "making a stream"))
    _WAITS[stream] = functools.partial(cuda.cuStreamSynchronize, cuda.CUstream(stream))
    return stream


def close_stream(stream: int | None) -> None:
    """Give the stream back; work still on it finishes first."""
    if stream is not None:
        _WAITS.pop(stream, None)
        driver.check(driver.bindings().cuStreamDestroy(stream), "closing a stream")


def synchronize(stream: int | None) -> None:
    """Wait, spinning, until all work on `stream` is done; nothing to do for None (a CPU call has already finished).

    Raises:
        AccelError: work on the stream failed; the CUDA error is named.
    """
    if stream is not None:
        result = _WAITS[stream]() if stream in _WAITS else driver.bindings().cuStreamSynchronize(stream)
        if result[0]:
            driver.check(result, "waiting for the stream")


def synchronize_device(device: str) -> None:
    """Wait for every stream of a GPU, also those of other libraries in this process; on a CPU nothing is ever pending."""
    if device != "cpu":
        driver.activate(device)
        driver.check(driver.bindings().cuCtxSynchronize(), f"waiting for {device}")
