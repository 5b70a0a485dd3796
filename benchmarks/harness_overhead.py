"""What the harness itself adds to `host_us`: its host pass over a runtime that does nothing, against the loop that one writes by hand.

    python benchmarks/harness_overhead.py --check --out results/local-cpu/harness-overhead.json

Both sides call the same function that does nothing, in one process, in blocks that alternate, the first side of each pair too. The hand-
written side reads the clock, calls and reads the clock; the harness's is `accel.bench.passes.host` as a worker runs it on a CPU: what lies
between its two readings beside the call is the wait for a stream that a CPU has not. Rotating inputs lies outside of them. A second
hand-written series, in blocks of its own, tells how far two equal loops are apart.

Wanted is less than 0.3 µs between the two medians; with `--check` more is exit code 3.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accel import device
from accel.bench import passes
from accel.bench.clock import HostClock
from accel.bench.environment import snapshot
from accel.bench.measure import quiet_collector
from accel.bench.passes import Instruments, Subject, Take
from accel.types import Array, Binding

LIMIT_US = 0.3
INPUTS, DISCARD = 8, 20


class NoOp:
    """A runtime as far as the host pass knows one."""

    def enqueue(self, binding: Binding) -> None:
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    found = measure(options.blocks, options.block)
    print(shown(found))
    if options.out:
        plan = {"blocks": options.blocks, "block": options.block, "discarded": DISCARD, "inputs": INPUTS}
        record = {"command": " ".join(sys.argv), "plan": plan, "machine": snapshot("cpu"), **found}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 3 if options.check and not found["within"] else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=100, help="of each side")
    parser.add_argument("--block", type=int, default=2000, help="timed calls of a block")
    parser.add_argument("--check", action="store_true", help=f"exit 3 for {LIMIT_US} µs or more")
    parser.add_argument("--out", type=Path, help="JSON")
    return parser.parse_args(arguments)


def measure(blocks: int, block: int) -> dict[str, Any]:
    """Medians of both sides in microseconds and what lies between them."""
    runtime = NoOp()
    bindings = [Binding({}) for _ in range(INPUTS)]
    engine: Any = SimpleNamespace(runtime=runtime, stream=None)
    harness = passes.host(Subject(engine, bindings, []), Instruments(HostClock(), device.synchronize))
    by_hand = bare(runtime.enqueue, bindings[0])
    taken = alternate({"harness": harness, "bare": by_hand, "bare_again": by_hand}, blocks, block)
    return judged(taken)


def bare(f: Callable[[Any], Any], x: Any) -> Take:
    """The loop that everybody writes."""

    def take(samples: Array, offset: int) -> None:
        perf_counter_ns = time.perf_counter_ns
        for i in range(len(samples)):
            t0 = perf_counter_ns()
            f(x)
            t1 = perf_counter_ns()
            samples[i] = t1 - t0

    return take


def alternate(sides: Mapping[str, Take], blocks: int, block: int) -> dict[str, list[Array]]:
    """`blocks` blocks of each side in turn, every other round in reverse order; no garbage is collected meanwhile."""
    taken: dict[str, list[Array]] = {side: [] for side in sides}
    discarded = np.empty(DISCARD, dtype=np.int64)
    for number in range(blocks):
        for side in list(sides) if number % 2 == 0 else reversed(list(sides)):
            samples = np.empty(block, dtype=np.int64)
            with quiet_collector():
                sides[side](discarded, number)
                sides[side](samples, number + DISCARD)
            taken[side].append(samples)
    return taken


def judged(taken: Mapping[str, Sequence[Array]]) -> dict[str, Any]:
    p50 = {side: float(np.median(np.concatenate(blocks))) / 1e3 for side, blocks in taken.items()}
    of_block = [float(np.median(ours) - np.median(theirs)) / 1e3 for ours, theirs in zip(taken["harness"], taken["bare"], strict=True)]
    added = p50["harness"] - p50["bare"]
    return {
        "p50_us": {side: round(value, 4) for side, value in p50.items()},
        "added_us": round(added, 4),
        "block_added_us_quartiles": [round(value, 4) for value in (statistics.quantiles(of_block, n=4) if len(of_block) > 1 else of_block)],
        "limit_us": LIMIT_US,
        "within": added < LIMIT_US,
    }


def shown(found: Mapping[str, Any]) -> str:
    p50 = found["p50_us"]
    return (
        f"host_us of a runtime that does nothing: harness {p50['harness']:.3f} µs, by hand {p50['bare']:.3f} µs "
        f"(again {p50['bare_again']:.3f}): the harness adds {found['added_us']:.3f} µs, less than {LIMIT_US:g} wanted: "
        f"{'ok' if found['within'] else 'MISSED'}"
    )


if __name__ == "__main__":
    sys.exit(main())
