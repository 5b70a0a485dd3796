"""NVML on a real GPU: what it reads, and whose processes it shows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from accel import device
from accel.bench import affinity
from accel.bench.clock import HostClock
from accel.bench.nvml import Nvml
from accel.bench.telemetry import Telemetry
from accel.errors import MissingError

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not device.gpu_available()[0], reason=f"no GPU: {device.gpu_available()[1]}")]

COMPUTE = """
import sys
from accel import device
stream = device.open_stream("cuda:0")
block = device.empty((1 << 28,), "uint8", "cuda:0")
print("computing", flush=True)
sys.stdin.readline()
"""
"""Makes a context with 256 MiB and keeps it until it is told to end."""

DETACH = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {COMPUTE!r}], stdin=sys.stdin, start_new_session=True)
print(child.pid, flush=True)
"""
"""Starts one and ends before it: the kernel hands it to somebody else, so that it is no descendant of ours."""


@pytest.fixture
def nvml():
    try:
        with Nvml(device.uuid("cuda:0")) as opened:
            yield opened
    except MissingError as error:
        pytest.skip(error.message)


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_what_is_read_is_plausible_and_what_is_not_is_none(nvml):
    reading, limit = nvml.read(), nvml.power_limit_w()
    print(reading, limit, nvml.violations_ns(), "unreadable:", nvml.unreadable)

    assert any(value is not None for value in vars(reading).values())
    ranges = {"sm_clock_mhz": (100, 4000), "mem_clock_mhz": (100, 20_000), "temp_c": (5, 110), "power_w": (5, 2000)}
    for name, (least, most) in ranges.items():
        value = getattr(reading, name)
        assert value is None or least <= value <= most, name
    assert limit is None or 30 <= limit <= 2000


def test_a_sample_takes_a_small_part_of_its_period(nvml):
    clock, taken = HostClock(), []
    for _ in range(50):
        begin = clock.now_ns()
        nvml.read()
        taken.append(clock.now_ns() - begin)
    print(f"a sample takes {sorted(taken)[25] / 1e6:.2f} ms")

    assert sorted(taken)[25] < 30e6


def test_our_own_worker_is_not_another_process_and_a_strangers_is(nvml):
    with Telemetry(device.uuid("cuda:0"), period_s=0.02) as telemetry:
        with telemetry.watching() as alone:
            worker = start(COMPUTE)
            assert worker.stdout.readline() == "computing\n"
            threading.Event().wait(0.3)
            worker.communicate("\n")
        if alone.pids_hidden:
            pytest.skip("the processes on the GPU are not shown here (PIDS_HIDDEN)")
        with telemetry.watching() as beside:
            stranger = start(DETACH)
            pid = int(stranger.stdout.readline())
            try:
                assert stranger.stdout.readline() == "computing\n"
                worker = start(COMPUTE)
                assert worker.stdout.readline() == "computing\n"
                threading.Event().wait(0.3)
                worker.communicate("\n")
            finally:
                os.kill(pid, signal.SIGKILL)
                stranger.communicate()

    assert alone.columns()["other_pids"] == []
    assert alone.columns()["mem_peak_mib"] is None or alone.columns()["mem_peak_mib"] >= 256
    assert beside.columns()["other_pids"] == [pid]


def test_the_gpu_has_a_place_on_the_bus_and_its_cpus_are_ours():
    assert device.pci_bus_id("cuda:0").count(":") == 2
    near = affinity.near("cuda:0")
    print("node", affinity.numa_node(device.pci_bus_id("cuda:0")), "CPUs", near and sorted(near))

    assert near is None or near <= os.sched_getaffinity(0)
