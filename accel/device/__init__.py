"""Streams, buffers, pinned staging and the gate, over cuda-core and cuda-bindings; numpy arrays stand in on a CPU. No torch, no timing."""

from accel.device.driver import gpu_available, spins
from accel.device.gate import Gate
from accel.device.memory import copy, empty, to_device, to_numpy
from accel.device.select import name, parse
from accel.device.staging import Staging
from accel.device.stream import close_stream, open_stream, synchronize

__all__ = [
    "Gate",
    "Staging",
    "close_stream",
    "copy",
    "empty",
    "gpu_available",
    "name",
    "open_stream",
    "parse",
    "spins",
    "synchronize",
    "to_device",
    "to_numpy",
]
