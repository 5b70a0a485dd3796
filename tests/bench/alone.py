"""Whether anybody else computes on a GPU, for tests whose times they would spoil."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from accel import device
from accel.bench.nvml import Nvml
from accel.errors import MissingError

LEAVING_S = 5.0
"""That processes which have just ended are given to disappear."""


def others_on(on: str) -> int:
    """Compute processes beside this one on `cuda:N`; 0 where NVML is not here to tell."""
    stream = device.open_stream(on)  # so that this process is one of them
    try:
        with Nvml(device.uuid(on) or "") as nvml:
            return others(lambda: nvml.read().pids)
    except MissingError:
        return 0
    finally:
        device.close_stream(stream)


def others(pids: Callable[[], Collection[int] | None], leaving_s: float = LEAVING_S) -> int:
    """How many of `pids` are not this process, which is one of them, once those that leave have left.

    They are counted, because NVML may number them otherwise than the container in which this process runs. None, or nobody at all, is what
    NVML says where it may not tell.
    """
    until = time.monotonic() + leaving_s
    while (found := max(0, len(pids() or ()) - 1)) and time.monotonic() < until:
        time.sleep(0.1)
    return found
