"""Who else used the processors: read from the kernel's counters, and told as columns and flags."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from accel.bench import processors
from accel.bench.clock import HostClock
from accel.bench.flags import flags
from accel.bench.processors import Used, columns, used
from accel.bench.results import row

TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
START = Used(busy_s=100.0, stolen_s=5.0, own_s=2.0)


def test_the_kernels_first_line_is_read_in_seconds(tmp_path: Path) -> None:
    # user nice system idle iowait irq softirq steal guest guest_nice: guests are in user and nice already
    ticks = [number * TICKS for number in (100, 10, 20, 9000, 500, 1, 2, 7, 50, 5)]
    stat = tmp_path / "stat"
    stat.write_text(f"cpu  {' '.join(map(str, ticks))}\ncpu0 1 2 3\n")
    found = used(stat)
    assert found is not None
    assert (found.busy_s, found.stolen_s) == (133.0, 7.0)


@pytest.mark.parametrize("text", [None, "", "cpu\n", "cpu  1 2 3\n", "cpu  a b c d e f g h\n", "intr 1 2 3 4 5 6 7 8 9\n"])
def test_what_the_kernel_does_not_tell_is_not_guessed(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "stat").write_text(text)
    assert used(tmp_path / "stat") is None
    assert columns(None, START, 2.0) == columns(START, None, 2.0) == {"host_others_cpus": None, "host_stolen_cpus": None}


def test_what_is_ours_is_not_others() -> None:
    # Two seconds: 3.5 of work on all processors, 2 of them ours; for a tenth of a second we had to wait for the hypervisor.
    later = Used(busy_s=103.5, stolen_s=5.1, own_s=4.0)
    assert columns(START, later, 2.0) == {"host_others_cpus": 0.75, "host_stolen_cpus": 0.05}
    # The counters of the kernel tick; ours do not.
    assert columns(START, Used(101.98, 5.0, 4.0), 2.0) == {"host_others_cpus": 0.0, "host_stolen_cpus": 0.0}
    assert columns(START, later, processors.SHORTEST_S / 2)["host_others_cpus"] is None


@pytest.mark.skipif(not processors.STAT.exists(), reason="the kernel keeps no such counters here")
def test_another_program_is_seen() -> None:
    before, begin = HostClock.used(), HostClock.now_ns()
    subprocess.run([sys.executable, "-c", "import time\nend = time.process_time() + 1\nwhile time.process_time() < end: pass"], check=True)
    found = columns(before, HostClock.used(), (HostClock.now_ns() - begin) / 1e9)
    assert before is not None
    # It had a second of work; where processors are scarce it took longer than that for it.
    assert found["host_others_cpus"] is not None
    assert found["host_others_cpus"] > 0.1


def test_a_record_of_an_older_accel_is_read_without_these_columns() -> None:
    made = row(device="cpu", host_others_cpus=2.0, host_stolen_cpus=0.5)
    assert flags(made) == ["BUSY_HOST", "STOLEN"]
    assert flags({name: value for name, value in made.items() if not name.startswith("host_")}) == []
