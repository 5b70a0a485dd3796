"""Where the time of the fused schedule `grid` that waits for data goes: the cycles of each part of each step, on a GPU.

    python benchmarks/fused_grid_steps.py --network student_a student_b --tuned results/h200/fused/tuned.json.xz --out grid-steps.json

Random weights. The kernel is compiled with stamps (`clock` of the SM, by the first thread of a CTA's first warp and of its last), which the
exported one has not. Of every difference between two stamps that follow one another the medians over launches are shown: of CTA 0, of the
median CTA, and of the CTA with the most, among those that have a tile in the step. `--tuned` takes tiles and order of work from a file of
tuned plans. Of the whole kernel the time of a launch is told, back to back, with the stamps and without.

What a stamp says: its warp had *issued* what stands before it and nothing that stands behind it. Loads, stores, barriers and
multiplications are volatile, so the compiler keeps them on their side (seen in the machine code of sm_90); arithmetic is not and may move.
An instruction that was issued need not be done: who uses its result waits for it. So
* `look issued`, `prepared` and `copies issued` are times of issuing: weights are asked for by then, not there;
* `input there` is a wait: the values were looked at and are on their way to shared memory;
* `multiplied` is behind the issue of the last multiplication; its result and slower warps are waited for by `sums stored +
  sync`;
* `stored` is behind the issue of the last store; that others see it takes a trip to the L2 more, which is in their `input there`.
CTAs have no common clock: a wait is told by who waits, not by whom for. A stamp costs cycles itself: `two stamps in a row` says how many
(its address, computed once there, comes to it elsewhere), and the difference of the two launch times what all of them do to the whole.
A cycle of a GPU at 1.7 GHz is 0.59 ns.
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

from fused_launching import back_to_back_us, keep, read, ready
from fused_networks import NETWORKS

from accel import device
from accel.device import driver, kernels
from accel.exporters.fused import stamps
from accel.exporters.fused.generate import Flow, generate, ordered
from accel.exporters.fused.network import Convolution, Network
from accel.exporters.fused.partial_head import reader
from accel.exporters.fused.plan import Plan, Tuning, make
from accel.types import Array

LAUNCHES = 200
UP_TO = {
    "WEIGHTS": "waited for weights' copies",
    "LOOKED": "look issued",
    "PREPARED": "prepared",
    "THERE": "input there",
    "SYNCED": "behind sync",
    "SENT": "copies issued",
    "MULTIPLIED": "multiplied",
    "SUMMED": "sums stored + sync",
    "STORED": "stored",
    "DONE": "late copies + sync",
}
PARTIAL_HEAD = {"THERE": "shares there", "STORED": "added, logits stored", "DONE": "nothing more"}
HEAD = {"THERE": "pixels there, added", "SUMMED": "means ready + sync", "MULTIPLIED": "products", "STORED": "logits stored"}
OF_KIND = {"head": HEAD, "partial_head": PARTIAL_HEAD}


@dataclasses.dataclass(frozen=True)
class Way:
    """A network's grid: fixed tiles and the order of its work."""

    tuning: Tuning
    flow: Flow


@dataclasses.dataclass(frozen=True)
class Span:
    """From one stamp to another, of `ctas` CTAs from `first`; `step` 0: of the kernel."""

    step: int
    up_to: str
    begin: int
    end: int
    ctas: int
    first: int = 0


@dataclasses.dataclass(frozen=True)
class Taken:
    """What was measured of a network.

    Attributes:
        moments: launches × CTAs × threads × stamps. timed_us, plain_us: a launch, of LAUNCHES back to back, with the stamps and without.
    """

    moments: Array
    timed_us: float
    plain_us: float


def tuned(record: dict[str, Any], network: Network) -> Way:
    """The grid that `--tune` found, out of a plan's record; layers by their order, as names differ between exporters."""
    of = record["tuned"]["grid"]
    layers = [layer.name for layer in network.layers if isinstance(layer, Convolution)]
    named = list(dict.fromkeys(one["layer"] for one in of["tried"]))
    if len(named) != len(layers):
        raise SystemExit(f"the tuned plan has tried tiles of {len(named)} layers, and the network has {len(layers)} convolutions")
    places = dict(zip(named, layers, strict=True))
    return Way({places[one["layer"]]: one["tile"] for one in of["tried"] if one["kept"]}, Flow(**of["flow"]))


def measured(network: Network, way: Way, on: str) -> Taken:
    """A kernel with stamps, launched one at a time and read; then it and the one without, back to back."""
    driver.activate(on)
    sms = kernels.limits(on).sms
    plan = ordered(make(network, sms=sms, tuning=way.tuning), way.flow)
    stream = device.open_stream(on)
    us, moments = {}, []
    try:
        for timed in (True, False):
            program = generate(network, "grid", sms=sms, tuning=way.tuning, flow=way.flow, timed=timed)
            launch, held = ready(program, on, stream)
            for _ in range(LAUNCHES):
                launch()
                device.synchronize(stream)
                if timed:
                    moments.append(stamps.taken(device.to_numpy(held[-1], stream), plan, program.kernels[0].grid))
            us[timed] = back_to_back_us(launch, stream, LAUNCHES)
    finally:
        device.close_stream(stream)
    return Taken(np.stack(moments), us[True], us[False])


def spans(plan: Plan, ctas: int) -> list[Span]:
    """What the table shows, in the order of the kernel."""
    place, first, last = stamps.place, plan.steps[0], len(plan.steps)
    found = [
        Span(0, "two stamps in a row", place("BEGIN"), place("AGAIN"), ctas),
        Span(0, "first weights asked for", place("AGAIN"), place("COPYING"), ctas),
    ]
    for number, step in enumerate(plan.steps, 1):
        moments, names = stamps.OF_KIND[step.kind], UP_TO | OF_KIND.get(step.kind, {})
        at = reader(plan, ctas) if step.kind == "partial_head" else 0
        for begin, end in itertools.pairwise(moments):
            here = min(step.tiles, ctas)
            if number == 1 and end == "SENT":
                found.append(Span(1, "settled", place(begin, 1), place("SETTLED"), here))
                found.append(Span(1, names[end], place("SETTLED"), place(end, 1), here))
            else:
                found.append(Span(number, names[end], place(begin, number), place(end, number), here, at))
        found.append(Span(number, "the step", place(moments[0], number), place(moments[-1], number), min(step.tiles, ctas), at))
        if number == 1:
            found.append(Span(0, "the other exchange cleared", place("DONE", 1), place("CLEARED"), min(first.tiles, ctas)))
    found.append(Span(0, "end", place("DONE", last), place("END"), min(plan.steps[-1].tiles, ctas), at))
    found.append(Span(0, "the kernel", place("BEGIN"), place("END"), ctas))
    return found


def differences(moments: Array, span: Span) -> Array:
    """CTAs × threads: medians over launches; the counter has 32 bits and goes round."""
    of = moments[:, span.first : span.first + span.ctas]
    return np.median((of[..., span.end] - of[..., span.begin]).astype(np.uint32), 0)


def rows(plan: Plan, moments: Array) -> list[dict[str, Any]]:
    """One a span: cycles of the first warp and of the last."""
    found = []
    for span in spans(plan, moments.shape[1]):
        step = plan.steps[span.step - 1].name if span.step else "kernel"
        row: dict[str, Any] = {"step": step, "number": span.step, "up to": span.up_to, "ctas": span.ctas}
        cycles = differences(moments, span)
        for warp, of in (("first", cycles[:, 0]), ("last", cycles[:, 1])):
            row[warp] = {"cta_0": round(float(of[0])), "median": round(float(np.median(of))), "most": round(float(of.max()))}
        found.append(row)
    return found


def sums(table: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Over all steps but the head, by what they were for: cycles of the first warp. Medians of CTAs add up to no CTA's time."""
    found: dict[str, dict[str, int]] = {}
    last = max(row["number"] for row in table)
    for row in table:
        if 0 < row["number"] < last:
            of = found.setdefault(row["up to"], {"cta_0": 0, "median": 0})
            for key in of:
                of[key] += row["first"][key]
    return found


def clocks(moments: Array) -> dict[str, float]:
    """By the GPU's own nanoseconds, whose least step is told: medians over launches of how far apart CTAs begin and end, of the time from
    the first begin to the last end, and cycles a nanosecond."""
    begin, end = (moments[:, :, 0, stamps.place(name)].astype(np.int64) for name in ("NANOSECONDS_BEGIN", "NANOSECONDS_END"))
    cycles = differences(moments, Span(0, "", stamps.place("BEGIN"), stamps.place("END"), moments.shape[1]))[:, 0]
    everything = np.unique(np.concatenate([begin, end], 1).ravel())
    steps = np.diff(everything)
    return {
        "least_step_ns": float(steps.min()) if steps.size else 0.0,
        "begins_apart_ns": float(np.median(begin.max(1) - begin.min(1))),
        "ends_apart_ns": float(np.median(end.max(1) - end.min(1))),
        "kernel_ns": float(np.median(end.max(1) - begin.min(1))),
        "cycles_a_ns": round(float(cycles.mean() / max((end - begin).mean(), 1.0)), 3),
    }


def report(plan: Plan, taken: Taken) -> str:
    """A table of at most 100 columns."""
    table = rows(plan, taken.moments)
    heads = "".join(f"{head:>8}" for head in ("CTA 0", "median", "most") * 2)
    lines = [f"{'cycles':<42} {'':>5}{'first warp':>24}{'last warp':>24}", f"{'step: up to':<42} {'CTAs':>5}{heads}"]
    for row in table:
        name = f"{row['step'][:14]}: {row['up to']}"
        values = [row[warp][key] for warp in ("first", "last") for key in ("cta_0", "median", "most")]
        lines.append(f"{name:<42} {row['ctas']:>5}" + "".join(f"{value:>8}" for value in values))
    lines += ["", f"{'all steps but the last, first warp: up to':<42} {'':>5}{'CTA 0':>8}{'median':>8}"]
    lines += [f"{name:<42} {'':>5}{of['cta_0']:>8}{of['median']:>8}" for name, of in sums(table).items()]
    of = clocks(taken.moments)
    lines += [
        "",
        f"CTAs begin {of['begins_apart_ns']:.0f} ns apart and end {of['ends_apart_ns']:.0f} ns apart; from the first begin to the last end",
        f"{of['kernel_ns']:.0f} ns, in steps of {of['least_step_ns']:.0f}; {of['cycles_a_ns']:.3f} cycles a ns.",
    ]
    return "\n".join(lines)


def _told(flow: Flow) -> str:
    """What is not as it is by default."""
    return ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(flow).items() if value != getattr(Flow(), name)) or "defaults"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=list(NETWORKS), default=["student_a"])
    parser.add_argument("--tuned", type=Path, help="JSON of tuned plans by network, as results/h200/fused/tuned.json.xz")
    parser.add_argument("--flow", type=json.loads, default={}, help="fields of generate.Flow as JSON, in place of the tuned or the default")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args()
    on = device.parse(options.device)
    plans = read(options.tuned) if options.tuned else {}
    record: dict[str, Any] = {"gpu": device.describe(on).name, "launches": LAUNCHES, "networks": {}}
    for name in options.network:
        network = NETWORKS[name]()
        way = tuned(plans[name], network) if options.tuned else Way({}, Flow())
        way = dataclasses.replace(way, flow=dataclasses.replace(way.flow, **options.flow))
        taken = measured(network, way, on)
        plan = ordered(make(network, sms=kernels.limits(on).sms, tuning=way.tuning), way.flow)
        print(
            f"{record['gpu']}, {name}, {_told(way.flow)}, {len(way.tuning)} tuned tiles:\n"
            f"{taken.timed_us:.2f} µs a launch back to back with the stamps, {taken.plain_us:.2f} without\n{report(plan, taken)}\n",
            flush=True,
        )
        table = rows(plan, taken.moments)
        record["networks"][name] = {
            "flow": dataclasses.asdict(way.flow),
            "tuning": dict(way.tuning),
            "timed_us": round(taken.timed_us, 3),
            "plain_us": round(taken.plain_us, 3),
            "clocks": clocks(taken.moments),
            "rows": table,
            "sums": sums(table),
        }
        keep(record, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
