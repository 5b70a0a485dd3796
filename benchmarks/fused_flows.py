"""What each order of work of the grid that waits for data (generate.Flow) takes on a GPU, all of a network's in turn.

    python benchmarks/fused_flows.py --networks student_a student_b --out flows.json

µs a replay behind a gate, back to back and (`single`) alone between two events as `accel bench` takes `device`; weights are random, tiles
the model's or those of `--tuning`, a JSON file of network → layer → fields of tiles.Tile. `right`: its answer is that of the first.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fused_launching import finite, keep
from fused_networks import NETWORKS

from accel import device
from accel.device import kernels
from accel.exporters.fused.chains import median, opened
from accel.exporters.fused.generate import Flow
from accel.exporters.fused.grid_kernels import Kernels, Way
from accel.exporters.fused.plan import Tuning, make

FETCHES = {name: {"fetch_late": name == "late", "fetch_looking": name == "looking"} for name in ("late", "early", "looking")}
LOOKS = ((False, 200), (False, 0), (False, 100), (False, 400), (True, 0))


def flows(ahead: int) -> list[Flow]:
    """The default first."""
    return [
        Flow(ahead=ahead, **fetch, look_first=look_first, pause=pause, blocks=blocks)
        for blocks, fetch, (look_first, pause) in itertools.product((True, False), FETCHES.values(), LOOKS)
    ]


def measured(name: str, on: str, ahead: int, tuning: Tuning | None) -> list[dict[str, Any]]:
    """A row a flow, in the order of their time."""
    network, limits = NETWORKS[name](), kernels.limits(on)
    plan = make(network, sms=limits.sms, tuning=tuning)
    tiles = tuple((step.layer_names[-1], step.cut.tile) for step in plan.steps if step.cut)
    ways = [Way(tiles, flow) for flow in flows(ahead)]
    parts = Kernels(network, limits.sms, "float16", None, ".".join(map(str, limits.capability))).parts(ways, None)
    with opened(network, on, "float16", plan.arena_bytes) as grids:
        made = [way for way in ways if way in parts]
        for way in made:
            grids.add(way, parts[way])
        chained, single = (grids.compare([[way] for way in made], single=alone) for alone in (False, True))
    rows = [
        {**dataclasses.asdict(way.flow), "us": finite(median(chained, index)), "single_us": finite(median(single, index))}
        for index, way in enumerate(made)
    ]
    return sorted(rows, key=lambda row: row["us"] or np.inf)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=["student_a", "student_b"])
    parser.add_argument("--ahead", type=int, default=3, help="steps that weights are fetched ahead, where they fit")
    parser.add_argument("--tuning", type=Path, help="tiles: a JSON file of network → layer → fields")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("flows.json"))
    options = parser.parse_args()
    on = device.parse(options.device)
    tuning = json.loads(options.tuning.read_text(encoding="utf-8")) if options.tuning else {}
    record: dict[str, Any] = {"gpu": device.describe(on).name, "networks": {}}
    for name in options.networks:
        record["networks"][name] = rows = measured(name, on, options.ahead, tuning.get(name))
        for row in rows:
            print(name, *(f"{key} {value}" for key, value in row.items()), flush=True)
        keep(record, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
