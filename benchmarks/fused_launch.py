"""What a graph of one kernel that does nothing takes on a GPU, by its shape: the part of a fused engine's time that no tile can change.

    python benchmarks/fused_launch.py --out launch.json

Medians of µs between two events behind a gate (the events' own time is `nothing between`), all shapes in turn. The last ones are shaped as
the grid of student_b: 128 CTAs of 256 threads with 204 KB of shared memory each, launched cooperatively and not; and as a cluster of 16.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fused_launching import keep

from accel import device
from accel.bench.clock import EventTimer
from accel.device import driver, kernels, nvrtc
from accel.types import Kernel

SOURCE = 'extern "C" __global__ void __launch_bounds__(256, 1) nothing(const unsigned long long* unused) {}\n'
SHARED = 208_640
SHAPES = {
    "1 CTA": Kernel("nothing", 1, 256),
    "128 CTAs": Kernel("nothing", 128, 256),
    "128 CTAs, cooperative": Kernel("nothing", 128, 256, cooperative=True),
    "128 CTAs, 204 KB": Kernel("nothing", 128, 256, SHARED),
    "128 CTAs, 204 KB, cooperative": Kernel("nothing", 128, 256, SHARED, cooperative=True),
    "a cluster of 16 CTAs, 204 KB": Kernel("nothing", 16, 256, SHARED, cluster=16),
}
TURNS, SAMPLES = 9, 50


def measured(on: str) -> dict[str, float]:
    """Shape → µs; the median of turns, each the median of its samples."""
    driver.activate(on)
    stream = device.open_stream(on)
    assert stream is not None
    code = nvrtc.compile(SOURCE, "nothing.cu", ".".join(map(str, kernels.limits(on).capability))).cubin
    timer, gate, graphs = EventTimer(stream), device.Gate(stream), dict[str, device.Graph]()
    launches = []
    try:
        for name, kernel in SHAPES.items():
            # A module each, because what a function is allowed would stay for the next shape; it must live as long as its graph.
            launch = kernels.Launch(kernels.Module(code, on, name), kernel, [0], stream, "another GPU")
            launches.append(launch)
            launch()
            device.synchronize(stream)
            graphs[name] = device.capture(on, stream, launch)
        turns: dict[str, list[float]] = {name: [] for name in ("nothing between", *SHAPES)}
        for _ in range(TURNS):
            for name, taken in turns.items():
                taken.append(statistics.median(_us(graphs.get(name), stream, timer, gate) for _ in range(SAMPLES)))
        return {name: round(statistics.median(taken), 3) for name, taken in turns.items()}
    finally:
        for graph in graphs.values():
            graph.close()
        timer.close()
        device.close_stream(stream)


def _us(graph: device.Graph | None, stream: int, timer: EventTimer, gate: device.Gate) -> float:
    with gate:
        timer.start()
        if graph is not None:
            graph.launch()
        timer.stop()
    device.synchronize(stream)
    return timer.elapsed_ns() / 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args()
    on = device.parse(options.device)
    record: dict[str, Any] = {"gpu": device.describe(on).name, "us": measured(on)}
    print(record["gpu"])
    print("\n".join(f"{name:<32} {us:>7.2f} µs" for name, us in record["us"].items()))
    keep(record, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
