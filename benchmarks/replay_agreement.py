"""`replay_us` against two rulers that are not ours, on the same CUDA graph: an event loop written by hand, and Triton's do_bench_cudagraph.

    python benchmarks/replay_agreement.py --bundle engines/resnet18.accel --out results/h200/replay-agreement.json --check

The graph is the one that `eager+graph` recorded. The hand-written loop launches it with its input copy, CALLS times between two events of
torch's, and divides. Triton records the very callable and its copy anew, some times in one graph, so that nothing is launched between two
calls: about 4 times, which is judged, and about 100 times, which is told beside it, since a graph of 10,000 nodes is another graph.
accel's `replay_us` is [T(2k) - T(k)] / k over calls of the runtime. All are taken in turn, ROUNDS times, and their medians compared:
wanted is agreement within 2 %; with `--check` more is exit code 3.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accel import device, runtimes
from accel.bench import passes
from accel.bench.clock import EventTimer, HostClock
from accel.bench.environment import snapshot
from accel.bench.passes import Instruments, Subject
from accel.engines import Bundle, trust
from accel.errors import AccelError
from accel.runtimes.torch_arrays import as_tensor
from accel.types import Variant
from accel.verify.opened import OpenEngine, open_engine

LIMIT, ROUNDS, CALLS, SAMPLES, INPUTS = 0.02, 5, 100, 5, 8
RECORDED = {"do_bench_cudagraph_us": 4, "do_bench_large_graph_us": 100}
"""About how many calls Triton puts into one graph."""
JUDGED = ("by_hand_us", "do_bench_cudagraph_us")


def main() -> int:
    options = arguments()
    try:
        options.device = device.parse(options.device)
        machine = snapshot(options.device)
        rows = [measure(options, variant) for variant in options.variant or ("eager:fp16+graph", "eager:fp32+graph")]
    except AccelError as error:
        print(f"replay_agreement: {error}", file=sys.stderr)
        return error.exit_code
    for row in rows:
        print(line(row))
    if options.out:
        plan = {"rounds": ROUNDS, "calls": CALLS, "samples": SAMPLES, "inputs": INPUTS}
        record = {"command": " ".join(sys.argv), "plan": plan, "machine": machine, "rows": rows}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 3 if options.check and not all(row["within"] for row in rows) else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("engines/resnet18.accel"))
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--variant", action="append", help="one of eager with +graph; may be repeated")
    parser.add_argument("--trusted", action="store_true", help="run code of a bundle that somebody else exported")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--check", action="store_true", help=f"exit 3 where they are more than {LIMIT:.0%}% apart")
    return parser.parse_args()


def measure(options: argparse.Namespace, spelling: str) -> dict[str, Any]:
    """One row: the median of each ruler in microseconds, and its ratio to `replay_us`."""
    from triton.testing import do_bench_cudagraph

    bundle = Bundle.open(options.bundle)
    trust.demand_module(bundle, options.trusted)
    with open_engine(runtimes.engine_source(bundle, Variant.parse(spelling), options.device)) as engine:
        replay, by_hand, call = rulers(engine)
        taken: dict[str, list[float]] = {"replay_us": [], "by_hand_us": [], **{name: [] for name in RECORDED}}
        replay(), by_hand()
        for _ in range(ROUNDS):
            taken["replay_us"].append(replay())
            taken["by_hand_us"].append(by_hand())
            for name, calls in RECORDED.items():
                taken[name].append(1e3 * do_bench_cudagraph(call, rep=calls * taken["replay_us"][-1] / 1e3, return_mode="median"))
        nodes = engine.runtime.facts.get("graph_nodes")
    medians = {name: statistics.median(values) for name, values in taken.items()}
    ratios = {name: medians[name] / medians["replay_us"] for name in list(medians)[1:]}
    return {
        "variant": spelling,
        "graph_nodes": nodes,
        "p50_us": {name: round(value, 3) for name, value in medians.items()},
        "ratio": {name: round(value, 4) for name, value in ratios.items()},
        "rounds_us": {name: [round(value, 3) for value in values] for name, values in taken.items()},
        "within": all(abs(ratios[name] - 1) <= LIMIT for name in JUDGED),
    }


def rulers(engine: OpenEngine) -> tuple[Any, Any, Any]:
    """accel's replay pass and the hand-written loop, each a function that answers microseconds, and what Triton is to record."""
    import torch

    runtime: Any = engine.runtime
    draw = np.random.default_rng(0)
    shapes = {spec.name: spec.fixed(engine.batch) for spec in engine.public_inputs}
    arrays = [{name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(INPUTS)]
    given = [engine.resident(array) for array in arrays]
    bindings = [runtime.prepare(item) for item in given]
    timer = EventTimer(int(engine.stream or 0))
    take = passes.replay(
        Subject(engine, bindings, arrays), Instruments(clock=HostClock(), synchronize=device.synchronize, timer=timer), timer, 500_000.0
    )

    def replay() -> float:
        samples = np.empty(SAMPLES, dtype=np.int64)
        take(samples, 0)
        return float(np.median(samples)) / 1e3

    captured = runtime._captured
    static, function = captured._reads
    (source,) = (as_tensor(torch, array) for array in given[0].values())
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def by_hand() -> float:
        found = []
        # An open runtime has made its stream torch's current one, and turned gradients off.
        for _ in range(SAMPLES):
            begin.record()
            for _ in range(CALLS):
                static[0].copy_(source)
                captured._graph.replay()
            end.record()
            torch.cuda.synchronize()
            found.append(1e3 * begin.elapsed_time(end) / CALLS)
        return statistics.median(found)

    def call() -> Any:
        static[0].copy_(source)
        return function(*static)

    return replay, by_hand, call


def line(row: dict[str, Any]) -> str:
    p50, ratio = row["p50_us"], row["ratio"]
    return (
        f"{row['variant']:<20} {row['graph_nodes']} nodes   replay {p50['replay_us']:8.2f} µs   by hand {p50['by_hand_us']:8.2f} µs "
        f"({ratio['by_hand_us']:.4f})   do_bench_cudagraph {p50['do_bench_cudagraph_us']:8.2f} µs "
        f"({ratio['do_bench_cudagraph_us']:.4f})   many in one graph {p50['do_bench_large_graph_us']:8.2f} µs "
        f"({ratio['do_bench_large_graph_us']:.4f})   {'ok' if row['within'] else 'APART'}"
    )


if __name__ == "__main__":
    sys.exit(main())
