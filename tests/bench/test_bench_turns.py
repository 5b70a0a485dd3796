"""Two `accel bench` at once, each a real process: on one device they take turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_cuda

from accel.bench.coordinate import device_lock

ROOT = Path(__file__).resolve().parents[2]

BENCH = """
import os, sys
from pathlib import Path
import bench_scripted
from accel.bench.coordinate import run_set
from accel.bench.plan import MeasurementPlan
from accel.bench.settings import BenchSettings
from accel.engines import Bundle
from accel.runtimes import table
from accel.types import Variant

bundle, data, out, log = sys.argv[1:]
table.RUNTIMES.clear()
table.RUNTIMES.update(bench_scripted.table())

def tell(what):
    with open(log, "a") as stream:
        stream.write(f"{os.getpid()} {what}\\n")

def launch(request, *rest):
    tell("begin " + request["mode"])
    if launch.held:
        launch.held = False
        print("working", flush=True)
        sys.stdin.readline()
    answer = bench_scripted.script.launch(request, *rest)
    tell("end " + request["mode"])
    return answer

launch.held = True
plan = MeasurementPlan(warmup=2, iterations=12, rounds=2, discard=1, threads=1, name="test plan")
variants = [Variant("eager", "fp32"), Variant("other", "fp32")]
result = run_set(Bundle.open(Path(bundle)), variants, plan, "cpu", Path(out), BenchSettings(data=data), launch=launch)
print(result.folder, len(result.rows))
"""


def start(bundle, data, tmp_path) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    return subprocess.Popen(
        [sys.executable, "-c", BENCH, str(bundle.path), data, str(tmp_path / "out"), str(tmp_path / "log.txt")],
        env={**os.environ, "PYTHONPATH": path, "ACCEL_CACHE_DIR": str(tmp_path / "cache")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_freely(bundle, data, tmp_path) -> subprocess.Popen[str]:
    """One that nobody holds up, so that without the lock it would run to its end."""
    process = start(bundle, data, tmp_path)
    process.stdin.write("\n")
    process.stdin.flush()
    return process


def test_two_benches_of_one_device_take_turns(bundle, data, tmp_path):
    first = start(bundle, data, tmp_path)
    assert first.stdout.readline() == "working\n"  # its first worker is under way, and stays so until we say
    second = start_freely(bundle, data, tmp_path)
    try:
        said = second.stderr.readline()
        assert "waiting for another process to finish a benchmark on cpu" in said
        workers = (tmp_path / "log.txt").read_text().split()
        assert set(workers[::3]) == {str(first.pid)}
        assert second.poll() is None

        ended = [first.communicate("\n", timeout=60), second.communicate(timeout=60)]
    finally:
        for process in (first, second):
            process.kill()
            process.wait()

    assert [first.returncode, second.returncode] == [0, 0], ended
    pids = [int(line.split()[0]) for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert pids == sorted(pids, key=[first.pid, second.pid].index)
    assert pids.count(second.pid) >= 2 * 4  # it measured every variant in every round itself
    folders = [Path(out.split()[-2]) for out, _ in ended]
    assert len(set(folders)) == 2
    assert {json.loads((folder / "set.json").read_text())["state"] for folder in folders} == {"finished"}


def test_a_bench_that_is_killed_lets_the_next_one_in(bundle, data, tmp_path):
    first = start(bundle, data, tmp_path)
    assert first.stdout.readline() == "working\n"
    second = start_freely(bundle, data, tmp_path)
    try:
        assert "waiting" in second.stderr.readline()
        first.kill()
        out, _ = second.communicate(timeout=60)
    finally:
        for process in (first, second):
            process.kill()
            process.wait()

    assert (second.returncode, out.split()[-1]) == (0, "8")
    # The set that the killed one left is continued, not begun anew.
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_one_gpu_has_one_lock_under_whatever_ordinal():
    with fake_cuda.installed() as fake:
        fake.gpus = 2
        first, second = device_lock("cuda:0"), device_lock("cuda:1")
        # CUDA_VISIBLE_DEVICES=1 makes the second GPU the only one, and number 0.
        fake._cuDeviceGet = lambda index: (index + 1,)
        assert device_lock("cuda:0") == second
    assert len({first, second, device_lock("cpu")}) == 3
