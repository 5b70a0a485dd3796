"""What the generator hands to the compiler and the runtime: one CUDA C++ source and how its kernels are launched."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from accel.engines.fused_plan import ARENA_ALIGNMENT, BEGINS_WITH, PARAMETERS, SCHEDULES, TIMED_OUT, Schedule
from accel.types import Kernel, Shape

__all__ = ["ARENA_ALIGNMENT", "BEGINS_WITH", "PARAMETERS", "SCHEDULES", "TIMED_OUT", "Kernel", "Program", "Schedule"]


@dataclasses.dataclass(frozen=True)
class Program:
    """A network in one schedule.

    Attributes:
        source: CUDA C++ for NVRTC, all of it (no include but those that NVRTC brings).
        kernels: in the order of their launches.
        weights: packed as the source reads them; the same bytes for every schedule of an engine, wherever that is possible.
        arena_bytes: of activations. state_bytes: of `State`, whose first uint32 is the error word (0: none).
        input_shape, input_dtype: of the image: NCHW float16, or NHWC uint8 where the preprocessing is folded in. output_shape: float32
            logits, batch × classes.
        outputs: layer → (offset in the arena in bytes, shape as height × width × padded channels); for tests and per-layer comparisons.
        plan: what the planner chose, as JSON takes it.
    """

    schedule: Schedule
    source: str
    kernels: tuple[Kernel, ...]
    weights: bytes
    arena_bytes: int
    state_bytes: int
    input_shape: Shape
    input_dtype: str
    output_shape: Shape
    outputs: Mapping[str, tuple[int, Shape]]
    plan: Mapping[str, Any]
