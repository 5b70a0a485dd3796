"""Where the time of the fused schedule `cluster` goes: each step's cycles on a GPU, beside what the plan predicted.

    python benchmarks/fused_cluster_steps.py --network student_a

Random weights. The kernel is compiled with stamps (`clock` of the SM, by one thread of each CTA), which the exported one has not; each
costs a store. Of every difference between two stamps that follow one another the medians over launches are shown: of CTA 0, and of the CTA
with the most. `weights in registers` is the wait for weights, `patch there` the wait for what others push, `pushed` the step itself up to
its last push. A cycle of a GPU at 1.7 GHz is 0.59 ns.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fused_networks import NETWORKS

from accel import device
from accel.device import driver, kernels
from accel.exporters.fused.cluster import CLOCK, CTAS, plan_cluster
from accel.exporters.fused.cluster_source import generate_cluster, stamps
from accel.exporters.fused.compiling import compile
from accel.exporters.fused.network import Network
from accel.types import Array

LAUNCHES = 200


def measured(network: Network, on: str) -> Array:
    """Launches × CTAs × stamps, in cycles of each CTA's own SM."""
    driver.activate(on)
    program = generate_cluster(network, timed=True)
    capability = ".".join(map(str, kernels.limits(on).capability))
    module = kernels.Module(compile(program, capability)[0], on, "a measured cluster")
    stream = device.open_stream(on)
    draw = np.random.default_rng(0)
    image = device.to_device(draw.standard_normal(program.input_shape).astype(np.float16), "float16", on, stream)
    weights = device.to_device(np.frombuffer(program.weights, np.uint8), "uint8", on, stream)
    arena, state = (device.empty((size,), "uint8", on) for size in (program.arena_bytes, program.state_bytes))
    logits = device.empty(program.output_shape, "float32", on)
    addresses = [image.ptr, weights.ptr, arena.ptr, logits.ptr, state.ptr]
    launch = kernels.Launch(module, program.kernels[0], addresses, stream or 0, "look at another schedule")
    taken = []
    for _ in range(LAUNCHES):
        launch()
        device.synchronize(stream)
        taken.append(device.to_numpy(state, stream).view(np.uint32).reshape(CTAS, -1).copy())
    device.close_stream(stream)
    return np.stack(taken)


def differences(taken: Array) -> Array:
    """From each stamp to the next; the counter has 32 bits and goes round."""
    return (taken[:, :, 1:] - taken[:, :, :-1]).astype(np.uint32)


def report(network: Network, taken: Array) -> str:
    plan = plan_cluster(network)
    cycles = np.median(differences(taken), 0)
    lines = [f"{'up to':<40} {'CTA 0':>7} {'most':>7}"]
    lines += [f"{name:<40} {cycles[0, i]:>7.0f} {cycles[:, i].max():>7.0f}" for i, name in enumerate(stamps(plan)[1:])]
    whole = np.median(differences(taken).sum(2), 0)[0]
    lines.append(f"{'in all, of CTA 0':<40} {whole:>7.0f}         predicted {sum(plan.micros) * CLOCK * 1000:.0f}")
    steps = ", ".join(f"{micros * CLOCK * 1000:.0f}" for micros in plan.micros)
    return "\n".join([*lines, f"predicted of each step, the stem first: {steps}"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(NETWORKS), default="student_a")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    network = NETWORKS[options.network]()
    print(report(network, measured(network, device.parse(options.device))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
