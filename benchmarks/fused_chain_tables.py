"""What the chain takes on a GPU when its kernels compute their tables, and when they read them from the weights; beside it the grid.

    python benchmarks/fused_chain_tables.py --networks student_a student_b resnet18 --out chain-tables.json

µs a replay behind a gate, back to back (`us`) and alone between two events as `accel bench` takes `device` (`single_us`), all ways in turn;
weights are random, tiles the model's. None: its answer is not the first's. `noise_us`: twice the usual difference between the first way and
the same once more.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fused_launching import finite, keep
from fused_networks import NETWORKS

from accel import device
from accel.device import kernels
from accel.exporters.fused.chains import Part, median, opened
from accel.exporters.fused.compiling import compile
from accel.exporters.fused.generate import generate
from accel.exporters.fused.network import Network
from accel.exporters.fused.plan import make
from accel.exporters.fused.program import Program
from accel.exporters.fused.tuning import noise


def ways(network: Network, sms: int) -> dict[str, Program]:
    """The chain that computes first."""
    every = [step.layer_names[-1] for step in make(network, sms=sms).steps if step.cut]
    return {
        "computed": generate(network, "chain", sms=sms),
        "read": generate(network, "chain", sms=sms, tables=every),
        "grid": generate(network, "grid", sms=sms),
    }


def measured(network: Network, on: str) -> dict[str, Any]:
    limits = kernels.limits(on)
    programs = ways(network, limits.sms)
    with opened(network, on, "float16", max(program.arena_bytes for program in programs.values())) as timed:
        for name, program in programs.items():
            cubin, _ = compile(program, ".".join(map(str, limits.capability)))
            timed.add(name, Part(program.kernels, cubin, 0, program.weights, program.state_bytes))
        asked = [[name] for name in (*programs, "computed")]
        turns = {"us": timed.compare(asked), "single_us": timed.compare(asked, single=True)}
    rows = {name: {kind: finite(median(of, index)) for kind, of in turns.items()} for index, name in enumerate(programs)}
    return {**rows, "noise_us": {kind: round(noise(of, len(programs)), 3) for kind, of in turns.items()}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=["student_a", "student_b", "resnet18"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("chain-tables.json"))
    options = parser.parse_args()
    on = device.parse(options.device)
    record: dict[str, Any] = {"gpu": device.describe(on).name, "networks": {}}
    for name in options.networks:
        record["networks"][name] = found = measured(NETWORKS[name](), on)
        print(name, json.dumps(found), flush=True)
        keep(record, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
