"""Streams by handle, and the one way to wait for one."""

from __future__ import annotations

from accel.device import driver


def open_stream(device: str) -> int | None:
    """A new stream of `cuda:N` that does not wait for the default stream; None on a CPU. Close it with close_stream."""
    if device == "cpu":
        return None
    driver.activate(device)
    cuda = driver.bindings()
    return int(driver.check(cuda.cuStreamCreate(int(cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)), "making a stream"))


def close_stream(stream: int | None) -> None:
    """Give the stream back; work still on it finishes first."""
    if stream is not None:
        driver.check(driver.bindings().cuStreamDestroy(stream), "closing a stream")


def synchronize(stream: int | None) -> None:
    """Wait, spinning, until all work on `stream` is done; nothing to do for None (a CPU call has already finished).

    Raises:
        AccelError: work on the stream failed; the CUDA error is named.
    """
    if stream is not None:
        result = driver.bindings().cuStreamSynchronize(stream)
        if result[0]:
            driver.check(result, "waiting for the stream")
