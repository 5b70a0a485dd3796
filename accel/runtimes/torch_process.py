"""The settings that torch keeps for a whole process, taken on lease: IEEE or TF32, cuDNN's search, the CPU threads.

TF32 is on or off for everybody in a process, so an fp32 and a tf32 engine cannot be open in one at the same time: the second
is refused rather than run in the other's arithmetic. What was set before comes back with the last lease.
"""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from accel.engines import arithmetic as process
from accel.errors import RuntimeUnavailable

ARITHMETIC = {"fp32": "ieee", "tf32": "tf32"}
"""Precision → what its float32 multiplications must be; engines in 16 bits have none that it would change."""

_LOCK = threading.Lock()
_HOLDERS: collections.Counter[str] = collections.Counter()
_SAVED: dict[str, Any] = {}


@contextlib.contextmanager
def cuda_settings(torch: Any, precision: str) -> Iterator[None]:
    """Hold the process to what `precision` needs on CUDA.

    Raises:
        RuntimeUnavailable: an open engine holds it to the other float32 arithmetic.
    """
    wanted = ARITHMETIC.get(precision, "")
    with _LOCK:
        other = {"ieee": "tf32", "tf32": "ieee"}.get(wanted, "")
        if _HOLDERS[other] and wanted:
            raise RuntimeUnavailable(
                f"{precision} was asked for, and torch is held to {other} for this whole process by an engine that is open",
                remedy="close that engine first, or load this one in another process",
            )
        if not _HOLDERS.total():
            _SAVED.update(arithmetic=process.read(torch), benchmark=torch.backends.cudnn.benchmark)
        torch.backends.cudnn.benchmark = True
        if wanted or not _HOLDERS.total():
            process.write(torch, *[wanted or "ieee"] * 3)
        _HOLDERS[wanted] += 1
    try:
        yield
    finally:
        with _LOCK:
            _HOLDERS[wanted] -= 1
            if not _HOLDERS.total():
                process.write(torch, *_SAVED["arithmetic"])
                torch.backends.cudnn.benchmark = _SAVED["benchmark"]


def arithmetic(torch: Any) -> tuple[str, str]:
    """What CUDA matrix products and convolutions of float32 really use now, read back: `ieee`, `tf32` or `none` (the default)."""
    return process.read(torch)[:2]
