"""Streams, buffers, graphs, staging and the gate, over cuda-core and cuda-bindings; numpy arrays stand in on a CPU. No torch, no timing."""

from accel.device.driver import gpu_available, spins
from accel.device.foreign import view
from accel.device.gate import Gate
from accel.device.graph import Graph, capture, copies, replay
from accel.device.l2 import L2Flush
from accel.device.memory import copy, empty, to_device, to_numpy
from accel.device.select import Gpu, describe, name, parse, pci_bus_id, uuid
from accel.device.staging import Staging, confirm
from accel.device.stream import close_stream, open_stream, synchronize, synchronize_device

__all__ = [
    "Gate",
    "Gpu",
    "Graph",
    "L2Flush",
    "Staging",
    "capture",
    "close_stream",
    "confirm",
    "copies",
    "copy",
    "describe",
    "empty",
    "gpu_available",
    "name",
    "open_stream",
    "parse",
    "pci_bus_id",
    "replay",
    "spins",
    "synchronize",
    "synchronize_device",
    "to_device",
    "to_numpy",
    "uuid",
    "view",
]
