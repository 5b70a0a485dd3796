"""Who else used the host's processors while something was timed: other programs, and on a virtual machine its hypervisor."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
_BUSY = (0, 1, 2, 5, 6)
"""Of the numbers behind `cpu`: user, nice, system, interrupts, soft interrupts. What guests of this machine take is in user and nice."""
_STOLEN = 7

SHORTEST_S = 0.5
"""Over less than this the counters, which tick a hundred times a second for each processor, say too little."""


@dataclasses.dataclass(frozen=True)
class Used:
    """Seconds of processor time until one moment.

    Attributes:
        busy_s: of all processes on all processors. stolen_s: during which the hypervisor ran something else although we had work.
        own_s: of all threads of this process.
    """

    busy_s: float
    stolen_s: float
    own_s: float


def used(stat: Path = STAT) -> Used | None:
    """The counters of the kernel and of this process; None where the kernel keeps none (outside Linux)."""
    try:
        with open(stat, encoding="ascii") as stream:
            name, *numbers = stream.readline().split()
        ticks = [int(number) for number in numbers]
        busy, stolen = sum(ticks[index] for index in _BUSY), ticks[_STOLEN]
    except (OSError, ValueError, IndexError):
        return None
    if name != "cpu":
        return None
    second = os.sysconf("SC_CLK_TCK")
    return Used(busy / second, stolen / second, time.process_time())


def columns(before: Used | None, after: Used | None, took_s: float) -> dict[str, float | None]:
    """Columns of a row, in processors: 1.0 is one of them for all of `took_s`. None where it is not known, or the time too short."""
    if before is None or after is None or took_s < SHORTEST_S:
        return {"host_others_cpus": None, "host_stolen_cpus": None}
    others = after.busy_s - before.busy_s - (after.own_s - before.own_s)
    return {
        "host_others_cpus": round(max(0.0, others) / took_s, 2),
        "host_stolen_cpus": round(max(0.0, after.stolen_s - before.stolen_s) / took_s, 3),
    }
