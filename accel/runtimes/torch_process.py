"""The settings that torch keeps for a whole process, taken on lease: IEEE or TF32, cuDNN's search, the CPU threads.

TF32 is on or off for everybody in a process, so an fp32 and a tf32 engine cannot be open in one at the same time: the second
is refused rather than run in the other's arithmetic. What was set before comes back with the last lease.
"""

from __future__ import annotations

import collections
import contextlib
import threading
import warnings
from collections.abc import Iterator
from typing import Any

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
            _SAVED.update(_read(torch))
        torch.backends.cudnn.benchmark = True
        if wanted or not _HOLDERS.total():
            _write(torch, wanted or "ieee", wanted or "ieee", wanted or "ieee")
        _HOLDERS[wanted] += 1
    try:
        yield
    finally:
        with _LOCK:
            _HOLDERS[wanted] -= 1
            if not _HOLDERS.total():
                _write(torch, _SAVED["matmul"], _SAVED["conv"], _SAVED["rnn"])
                torch.backends.cudnn.benchmark = _SAVED["benchmark"]


def arithmetic(torch: Any) -> tuple[str, str]:
    """What CUDA matrix products and convolutions of float32 really use now, read back: `ieee`, `tf32` or `none` (the default)."""
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


def _read(torch: Any) -> dict[str, Any]:
    matmul, conv = arithmetic(torch)
    return {"matmul": matmul, "conv": conv, "rnn": torch.backends.cudnn.rnn.fp32_precision, "benchmark": torch.backends.cudnn.benchmark}


def _write(torch: Any, matmul: str, conv: str, rnn: str) -> None:
    backends = torch.backends
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The old flags go first: while old and new disagree, whoever reads an old one (Inductor's convolutions do) gets an error.
        backends.cuda.matmul.allow_tf32 = matmul == "tf32"
        backends.cudnn.allow_tf32 = conv == "tf32"
        backends.cuda.matmul.fp32_precision = matmul
        backends.cudnn.conv.fp32_precision = conv
        backends.cudnn.rnn.fp32_precision = rnn
