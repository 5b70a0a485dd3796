"""How torch multiplies float32 on a GPU: in IEEE single precision, or with TF32. A setting of the whole process."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any


def read(torch: Any) -> tuple[str, str, str]:
    """What matrix products, convolutions and recurrent layers use now: `ieee`, `tf32` or `none` (the default)."""
    backends = torch.backends
    return backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision, backends.cudnn.rnn.fp32_precision


def write(torch: Any, matmul: str, conv: str, rnn: str) -> None:
    """Set all three, in torch's old flags too."""
    backends = torch.backends
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The old flags go first: while old and new disagree, whoever reads an old one (Inductor's convolutions do) gets an error.
        backends.cuda.matmul.allow_tf32 = matmul == "tf32"
        backends.cudnn.allow_tf32 = conv == "tf32"
        backends.cuda.matmul.fp32_precision = matmul
        backends.cudnn.conv.fp32_precision = conv
        backends.cudnn.rnn.fp32_precision = rnn


@contextlib.contextmanager
def ieee(torch: Any) -> Iterator[None]:
    """IEEE single precision inside the block, what was set before after it."""
    before = read(torch)
    write(torch, "ieee", "ieee", "ieee")
    try:
        yield
    finally:
        write(torch, *before)
