"""What the generator hands to the compiler and the runtime: one CUDA C++ source and how its kernels are launched."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from accel.types import Shape

Schedule = Literal["chain", "grid", "cluster"]
"""A kernel a layer, one after another; one persistent kernel over the whole GPU; one cluster of CTAs."""

SCHEDULES: tuple[Schedule, ...] = ("chain", "grid", "cluster")

PARAMETERS = ("image", "weights", "arena", "logits", "state")
"""What every kernel takes, in this order, all of them addresses: the input, the packed weights, the activations (ARENA_ALIGNMENT), the
answer, and `State`, which is zeroed once, when a context is made."""

ARENA_ALIGNMENT = 256

TIMED_OUT = 1
"""The error word of a spin that its bound ended."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One launch.

    Attributes:
        name: an `extern "C"` symbol of the source.
        grid, block: CTAs and threads of a CTA, both one-dimensional.
        shared: dynamic shared memory of a CTA in bytes.
        cluster: CTAs of a cluster; above 8 it needs the attribute for sizes that are not portable.
        cooperative: all CTAs must be resident at once (they wait for one another); such a kernel is never launched otherwise.
        dependent: may begin before the kernel in front of it has ended (programmatic stream serialization); it waits itself.
        layers: names of the layers that it computes, for tables and errors.
    """

    name: str
    grid: int
    block: int
    shared: int = 0
    cluster: int = 1
    cooperative: bool = False
    dependent: bool = False
    layers: tuple[str, ...] = ()


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
