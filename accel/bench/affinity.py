"""The CPUs next to the GPU: a worker that waits for the GPU from the other socket pays for every message across."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from accel import device as devices

SYSFS = Path("/sys")


def near(device: str, sysfs: Path = SYSFS) -> frozenset[int] | None:
    """The CPUs of the GPU's NUMA node that we may use; None on a CPU, where the node is unknown, or if we may use none of them."""
    if device == "cpu" or not hasattr(os, "sched_getaffinity"):
        return None
    node = numa_node(devices.pci_bus_id(device), sysfs)
    cpus = None if node is None else node_cpus(node, sysfs)
    return (cpus & os.sched_getaffinity(0)) or None if cpus else None


def numa_node(bus_id: str, sysfs: Path = SYSFS) -> int | None:
    """The node of the PCI device `bus_id` (`0000:1b:00.0`); None if the kernel does not know it (-1) or does not show it."""
    try:
        node = int((sysfs / "bus/pci/devices" / bus_id.lower() / "numa_node").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def node_cpus(node: int, sysfs: Path = SYSFS) -> frozenset[int] | None:
    """The CPUs of a NUMA node, which sysfs lists as `0-15,32-47`; None if it does not show them."""
    try:
        text = (sysfs / f"devices/system/node/node{node}/cpulist").read_text(encoding="ascii").strip()
        bounds = [part.partition("-") for part in text.split(",") if part]
        return frozenset(cpu for first, _, last in bounds for cpu in range(int(first), int(last or first) + 1))
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def inherited(cpus: frozenset[int] | None) -> Iterator[None]:
    """Processes that this thread starts inside have `cpus` from their first instruction on; None changes nothing.

    The affinity is a thread's own, and a child inherits it: setting it from outside would come after its first threads. Where the
    system refuses, the child keeps ours, as its row's `cpu_affinity` then says.
    """
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cpus)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
