"""What an export measures on the GPU here when it is told to tune: tiles of the chain and the grid, then which schedule is the fastest."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from accel import device
from accel.device import kernels
from accel.engines.fused_plan import Schedule
from accel.errors import AccelError, UsageError
from accel.exporters.fused.apart import Apart, CannotMeasure, Died, opened
from accel.exporters.fused.chains import Part, median
from accel.exporters.fused.network import Network
from accel.exporters.fused.program import Program
from accel.exporters.fused.tuning import Tuned, tune
from accel.exporters.fused.tuning_grid import TunedGrid, tune_grid
from accel.progress import Progress, silent
from accel.types import Array

logger = logging.getLogger(__name__)

CHAINS_SHARE = 0.5
"""Of the time; the grid has what the chain leaves."""


def tune_all(
    network: Network,
    on: str,
    *,
    sms: int,
    pixels: tuple[Array, Array] | None = None,
    seconds: float,
    progress: Progress = silent,
) -> dict[Schedule, Tuned | TunedGrid]:
    """The tiles of chain and grid that are fastest on `cuda:N`; the cluster divides layers in its own way. Of the grid nothing, with a
    warning, where it cannot be tuned; nor of the chain where the model's own ends the process that times it.

    Raises:
        UsageError: there is no GPU. Beside that as `tuning.tune`.
    """
    if on == "cpu":
        raise UsageError(
            "tiles are tuned by timing them, and there is no GPU here", remedy="leave --tune out, or export on the GPU that will run it"
        )
    capability = ".".join(map(str, kernels.limits(on).capability))
    image: dict[str, Any] = {"sms": sms, "progress": progress} | ({} if pixels is None else {"input_dtype": "uint8", "pixels": pixels})
    until = time.monotonic() + seconds
    found: dict[Schedule, Tuned | TunedGrid] = {}
    try:
        found["chain"] = tune(network, on, capability, seconds=CHAINS_SHARE * seconds, **image)
    except Died as error:
        logger.warning("the chain's tiles are not tuned: %s", error.message)
    try:
        left, of_chain = max(0.0, until - time.monotonic()), found["chain"].tuning if "chain" in found else None
        found["grid"] = tune_grid(network, on, capability, of_chain=of_chain, seconds=left, **image)
    except AccelError as error:
        logger.warning("the grid's tiles are not tuned: %s", error.message)
    return found


def time_schedules(
    network: Network, programs: Mapping[Schedule, Program], cubins: Mapping[Schedule, bytes], on: str
) -> dict[Schedule, float]:
    """µs of one replay behind a gate, between two events, of every schedule that `cubins` has and `on` can launch: medians of turns.

    One that answers otherwise than the first is left out, with a warning, as is one that cannot be launched, or that ends the process in
    which it is timed; all are, where the first answers with infinities.
    """
    first = next(iter(programs.values()))
    found: dict[Schedule, float] = {}
    try:
        with opened(network, on, first.input_dtype, max(program.arena_bytes for program in programs.values())) as ways:
            for schedule, cubin in cubins.items():
                _add(ways, schedule, programs[schedule], cubin)
            while not found and (ready := [schedule for schedule in cubins if schedule in ways]):
                with contextlib.suppress(Died):  # the first of them: the others are compared without it
                    turns = ways.compare([[schedule] for schedule in ready], single=True)
                    found = {schedule: median(turns, index) for index, schedule in enumerate(ready)}
            killed = {schedule: one.error for one in ways.killed for schedule in one.keys}
    except AccelError as error:
        logger.warning("the schedules are not timed: %s", error.message)
        return {}
    for schedule, why in killed.items():
        logger.warning("the schedule %s ended the process that timed it, and is not chosen: %s", schedule, why)
    for schedule in (schedule for schedule, us in found.items() if not np.isfinite(us) and schedule not in killed):
        logger.warning("the schedule %s answers otherwise than the %s, and is not chosen", schedule, ready[0])
    return {schedule: round(us, 3) for schedule, us in found.items() if np.isfinite(us)}


def _add(ways: Apart, schedule: Schedule, program: Program, cubin: bytes) -> None:
    try:
        ways.add(schedule, Part(program.kernels, cubin, 0, program.weights, program.state_bytes))
    except CannotMeasure:
        raise
    except Died:
        return
    except AccelError as error:
        logger.warning("the schedule %s is not timed: %s", schedule, error.message)


def gpu_name(on: str) -> str:
    return device.describe(on).name
