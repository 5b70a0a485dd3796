"""Where the time of the fused schedule `cluster` goes: each step's cycles on a GPU, beside what the plan predicted.

    python benchmarks/fused_cluster_steps.py --network student_a student_b --out cluster-steps.json

Random weights. The kernel is compiled with stamps (`clock` of the SM, by one thread of each CTA), which the exported one has not; each
costs a store. Of every difference between two stamps that follow one another the medians over launches are shown: of CTA 0, of the median
CTA, and of the CTA with the most. `weights in registers` is the wait for weights, `patch there` the wait for what others push, `pushed` the
step itself up to its last push; `step predicted` is of these three together. A cycle of a GPU at 1.7 GHz is 0.59 ns; the time of a launch,
measured back to back, is told beside them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fused_launching import back_to_back_us, keep, ready
from fused_networks import NETWORKS

from accel import device
from accel.device import driver
from accel.exporters.fused.cluster import CLOCK, CTAS, plan_cluster
from accel.exporters.fused.cluster_source import generate_cluster, stamps
from accel.exporters.fused.network import Network
from accel.types import Array

LAUNCHES = 200


def measured(network: Network, on: str) -> tuple[Array, float]:
    """Launches × CTAs × stamps, in cycles of each CTA's own SM; and µs a launch, of LAUNCHES back to back."""
    driver.activate(on)
    stream = device.open_stream(on)
    try:
        launch, held = ready(generate_cluster(network, timed=True), on, stream)
        taken = []
        for _ in range(LAUNCHES):
            launch()
            device.synchronize(stream)
            taken.append(device.to_numpy(held[-1], stream).view(np.uint32).reshape(CTAS, -1).copy())
        us = back_to_back_us(launch, stream, LAUNCHES)
    finally:
        device.close_stream(stream)
    return np.stack(taken), us


def differences(taken: Array) -> Array:
    """From each stamp to the next; the counter has 32 bits and goes round."""
    return (taken[:, :, 1:] - taken[:, :, :-1]).astype(np.uint32)


def rows(network: Network, taken: Array) -> list[dict[str, Any]]:
    """One a difference between two stamps: medians over launches in cycles, and what was predicted of a layer's step, at its `pushed`."""
    plan = plan_cluster(network)
    cycles = np.median(differences(taken), 0)
    # The stem has a prediction of its own, which stands first.
    predicted = {f"{of.layer.name}: pushed": micros for of, micros in zip(plan.layers, plan.micros[1:], strict=True)} | {
        "stem done": plan.micros[0]
    }
    return [
        {
            "up to": name,
            "cta_0": round(float(cycles[0, i])),
            "median": round(float(np.median(cycles[:, i]))),
            "most": round(float(cycles[:, i].max())),
            "step_predicted": round(predicted[name] * CLOCK * 1000) if name in predicted else None,
        }
        for i, name in enumerate(stamps(plan)[1:])
    ]


def whole(network: Network, taken: Array) -> dict[str, Any]:
    """Cycles from the first stamp to the last: of CTA 0, and what the plan predicts."""
    plan = plan_cluster(network)
    return {"cycles": round(float(np.median(differences(taken).sum(2), 0)[0])), "predicted": round(sum(plan.micros) * CLOCK * 1000)}


def report(network: Network, taken: Array) -> str:
    lines = [f"{'up to':<40} {'CTA 0':>7} {'median':>7} {'most':>7} {'step predicted':>15}"]
    for row in rows(network, taken):
        said = "" if row["step_predicted"] is None else row["step_predicted"]
        lines.append(f"{row['up to']:<40} {row['cta_0']:>7} {row['median']:>7} {row['most']:>7} {said:>15}")
    of = whole(network, taken)
    return "\n".join([*lines, f"{'in all, of CTA 0':<40} {of['cycles']:>7} {'':>15} {of['predicted']:>15}"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=list(NETWORKS), default=["student_a"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args()
    on = device.parse(options.device)
    record: dict[str, Any] = {"gpu": device.describe(on).name, "launches": LAUNCHES, "networks": {}}
    for name in options.network:
        network = NETWORKS[name]()
        taken, us = measured(network, on)
        print(f"{record['gpu']}, {name}: {us:.2f} µs a launch back to back, with the stamps\n{report(network, taken)}\n", flush=True)
        record["networks"][name] = {"launch_us": round(us, 3), **whole(network, taken), "steps": rows(network, taken)}
        keep(record, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
