from __future__ import annotations

import os
import subprocess
import sys

import fake_cuda
import pytest

from accel.bench import affinity
from accel.bench.launch import spawn
from accel.errors import AccelError

BUS_ID = "0000:1b:00.0"


@pytest.fixture
def gpu():
    with fake_cuda.installed() as fake:
        yield fake


@pytest.fixture
def sysfs(tmp_path):
    """A function that writes a sysfs on which the GPU hangs on a node with these CPUs."""

    def write(node: str, cpus: str = ""):
        place = tmp_path / "bus/pci/devices" / BUS_ID
        place.mkdir(parents=True)
        (place / "numa_node").write_text(f"{node}\n")
        if cpus:
            (tmp_path / f"devices/system/node/node{node}").mkdir(parents=True)
            (tmp_path / f"devices/system/node/node{node}/cpulist").write_text(f"{cpus}\n")
        return tmp_path

    return write


def test_the_cpus_of_the_gpus_node_are_read_as_ranges(sysfs):
    folder = sysfs("1", "2-4,8,10-11")

    assert affinity.numa_node("0000:1B:00.0", folder) == 1
    assert affinity.node_cpus(1, folder) == {2, 3, 4, 8, 10, 11}


def test_a_node_that_the_kernel_does_not_know_is_none(sysfs, tmp_path):
    assert affinity.numa_node(BUS_ID, tmp_path) is None
    assert affinity.numa_node(BUS_ID, sysfs("-1")) is None
    assert affinity.node_cpus(0, tmp_path) is None


def test_only_cpus_that_we_may_use_are_given(gpu, sysfs):
    allowed = min(os.sched_getaffinity(0))

    assert affinity.near("cuda:0", sysfs("0", f"{allowed},4000-4010")) == {allowed}


def test_a_node_without_a_cpu_of_ours_changes_nothing(gpu, sysfs):
    assert affinity.near("cuda:0", sysfs("0", "4000-4010")) is None


def test_an_unknown_node_changes_nothing(gpu, sysfs):
    assert affinity.near("cuda:0", sysfs("-1")) is None


def test_on_a_cpu_nothing_is_asked_of_the_driver(gpu, sysfs):
    assert affinity.near("cpu", sysfs("0", "0")) is None
    assert gpu.calls == []


def test_a_child_inherits_the_cpus_and_we_keep_ours():
    before = os.sched_getaffinity(0)
    chosen = frozenset([max(before)])
    ask = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]

    with affinity.inherited(chosen):
        said = subprocess.run(ask, capture_output=True, text=True, check=True).stdout

    assert said.strip() == str(sorted(chosen))
    assert os.sched_getaffinity(0) == before


def test_a_system_that_refuses_leaves_it_as_it_is():
    before = os.sched_getaffinity(0)

    with affinity.inherited(frozenset([4000])):
        assert os.sched_getaffinity(0) == before

    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(("mode", "pinned"), [("measure", True), ("verify", False)])
def test_only_a_worker_that_is_timed_is_pinned(tmp_path, monkeypatch, mode, pinned):
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("one CPU: pinned and free look the same")
    chosen = frozenset([max(before)])
    monkeypatch.setattr(affinity, "near", lambda device: chosen)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{sys.executable} -c 'import os; print(sorted(os.sched_getaffinity(0)))' >&2\nexit 3\n")
    python.chmod(0o755)
    request = {"mode": mode, "bundle": "/nowhere.accel", "variant": "eager:fp32", "device": "cuda:0", "batch": 1, "threads": 1}

    with pytest.raises(AccelError, match="status 3") as caught:
        spawn(request, str(python), tmp_path / "work")

    assert str(sorted(chosen if pinned else before)) in caught.value.message.splitlines()
