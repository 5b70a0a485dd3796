"""Does a process grow by loading and closing engines? Resident memory, and on a GPU its memory too, over many cycles of one small engine.

    python benchmarks/load_leak.py engines/tiny.accel --cycles 10000 --bare --check --out results/local-cpu/load-leak.json

A cycle is `accel.load` (strict: the golden samples run), one call, `close`: nothing is held between two cycles, so each makes a session
anew. Memory is read after every hundredth part. The first fifth settles (allocators' arenas, imports, caches); from then on the
growth per cycle is the slope of a straight line through the readings, and what may be left at the end is the limit. With `--bare` as many
cycles of ONNX Runtime alone follow, on the CPU in a process of its own: what it grows by is not ours to mend.

Wanted is less than 1 KiB a cycle, and less than 8 MiB in all after the first fifth; with `--check` more is exit code 3. Interrupted, it
judges and keeps what it has read, says how far it came, and ends with 130.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import accel
from accel.bench.environment import snapshot
from accel.runtimes import cache
from benchmarks import records

READINGS, SETTLING = 100, 0.2
LIMIT_BYTES, LIMIT_MIB = 1024, 8.0
PAGE = 4096
FILE = "onnx-fp32/model.onnx"
KINDS, ALONE = ("rss", "gpu"), "rss of onnxruntime alone"
Taken = dict[str, list[tuple[int, float]]]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    began = time.monotonic()
    taken: Taken = {}
    interrupted = False
    try:
        cycle(options.bundle, options.cycles, options.device, options.runtime, taken)
    except KeyboardInterrupt:
        interrupted = True
    ran = time.monotonic() - began
    done = max((number for readings in taken.values() for number, _ in readings), default=0)
    if interrupted:
        print(f"interrupted: {done} of {options.cycles} cycles were read", file=sys.stderr)
    if done == 0:
        return 130
    if options.bare and not interrupted:
        taken[ALONE] = alone(options.bundle / FILE, options.cycles)
    found = {kind: judged(readings) for kind, readings in taken.items()}
    seconds = round(time.monotonic() - began, 1)
    for kind, result in found.items():
        print(shown(kind, done, result))
    print(f"{1000 * ran / done:.2f} ms a cycle")
    if options.out:
        plan = {"cycles": options.cycles, "done": done, "device": options.device, "runtime": options.runtime, "seconds": seconds}
        record = {"command": " ".join(sys.argv), "plan": plan, "machine": snapshot(options.device), **found, "readings": taken}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(records.text(record) + "\n", encoding="utf-8")
    ours = [result["within"] for kind, result in found.items() if kind in KINDS]
    return 130 if interrupted else 3 if options.check and not all(ours) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--cycles", type=int, default=10_000)
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--runtime", default="onnxruntime", help="or a variant")
    parser.add_argument("--bare", action="store_true", help=f"then {FILE} by onnxruntime alone")
    parser.add_argument("--check", action="store_true", help=f"exit 3 for {LIMIT_BYTES} bytes a cycle or {LIMIT_MIB:g} MiB")
    parser.add_argument("--out", type=Path, help="JSON")
    return parser.parse_args(arguments)


def cycle(
    bundle: Path,
    cycles: int,
    device: str = "cpu",
    runtime: str = "onnxruntime",
    taken: Taken | None = None,
) -> Taken:
    """Load, call and close so many times; by kind (`rss`, on a GPU `gpu`) pairs of the cycle and the MiB that were read after it.

    Args:
        taken: where the readings are put as they come, so that they are there when it is interrupted.
    """
    kinds = {"rss": resident_mib} if device == "cpu" else {"rss": resident_mib, "gpu": gpu_reader(device)}
    taken = {} if taken is None else taken
    taken |= {kind: [] for kind in kinds}
    given = None
    for number in range(1, cycles + 1):
        with accel.load(bundle, runtime, device, threads=1) as engine:
            if given is None:
                given = {spec.name: np.ones(spec.fixed(engine.batch), spec.dtype) for spec in engine.inputs}
            engine(given)
        if is_read(number, cycles):
            for kind, read in kinds.items():
                taken[kind].append((number, round(read(), 3)))
    if cache.count():
        raise SystemExit(f"{cache.count()} engines are still held")
    return taken


def alone(file: Path, cycles: int) -> list[tuple[int, float]]:
    """What `bare` reads in a new process: in this one the allocators have grown already."""
    program = f"import json, load_leak; print(json.dumps(load_leak.bare(load_leak.Path({str(file.resolve())!r}), {cycles})))"
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return [(number, mib) for number, mib in json.loads(done.stdout.splitlines()[-1])]


def bare(file: Path, cycles: int) -> list[tuple[int, float]]:
    """As `cycle`, with a session that is made, run and dropped; the resident memory."""
    import onnxruntime

    taken: list[tuple[int, float]] = []
    for number in range(1, cycles + 1):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        session.run(
            None,
            {
                node.name: np.ones([size if isinstance(size, int) else 1 for size in node.shape], np.float32)
                for node in session.get_inputs()
            },
        )
        del session
        if is_read(number, cycles):
            taken.append((number, round(resident_mib(), 3)))
    return taken


def is_read(number: int, cycles: int) -> bool:
    """Whether memory is read after this cycle; garbage is collected first."""
    wanted = number % max(1, cycles // READINGS) == 0
    if wanted:
        gc.collect()
    return wanted


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20


def gpu_reader(device: str) -> Callable[[], float]:
    """What is in use on the whole GPU, in MiB; other processes' too, so there should be none."""
    from accel.device import driver

    driver.activate(device)

    def read() -> float:
        free, total = driver.check(driver.bindings().cuMemGetInfo(), "reading the GPU's memory")
        return float(int(total) - int(free)) / 2**20

    return read


def judged(readings: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Growth after the settling: bytes a cycle by least squares, and MiB between the first and the last tenth's medians."""
    settled = np.array(readings[int(len(readings) * SETTLING) :], dtype=np.float64)
    slope = float(np.polyfit(settled[:, 0], settled[:, 1], 1)[0]) * 2**20 if len(settled) > 1 else 0.0
    tenth = max(1, len(settled) // 10)
    grown = float(np.median(settled[-tenth:, 1]) - np.median(settled[:tenth, 1]))
    return {
        "first_mib": round(float(settled[0, 1]), 2),
        "last_mib": round(float(settled[-1, 1]), 2),
        "grown_mib": round(grown, 3),
        "bytes_a_cycle": round(slope, 1),
        "limit_bytes_a_cycle": LIMIT_BYTES,
        "limit_mib": LIMIT_MIB,
        "within": slope < LIMIT_BYTES and grown < LIMIT_MIB,
    }


def shown(kind: str, cycles: int, found: Mapping[str, Any]) -> str:
    return (
        f"{kind} over {cycles} cycles, after the first fifth: {found['first_mib']:.1f} → {found['last_mib']:.1f} MiB, "
        f"{found['bytes_a_cycle']:.0f} bytes a cycle"
        + (f", less than {LIMIT_BYTES} wanted: {'ok' if found['within'] else 'MISSED'}" if kind in KINDS else "")
    )


if __name__ == "__main__":
    sys.exit(main())
