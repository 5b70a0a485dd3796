"""What `accel.load` costs a service over ONNX Runtime alone: once for import and load, and in every call.

    python benchmarks/load_cost.py engines/mobilenetv3_small.accel --check --out results/local-cpu/load-cost.json

Load: fresh processes in turn. One imports accel and loads the bundle's ONNX engine on the CPU as a service does (strict: hash,
compatibility, golden samples, and what verification and measurements are on record); the other imports numpy and onnxruntime and makes
the session of the same file with the same threads. Each reads its own clock from before its first import to the end; the interpreter's
start is in neither. What is held to the limit is the difference of the medians.

Call: one process, blocks in turn, the first side of each pair too. One side is `engine(x)`, numpy to numpy; the other is
`session.run(None, {name: x})` on a session of its own of the same file, and that once more, which tells how far two equal loops are
apart. The network is a small one that is made here (one convolution, 1×3×32×32): the larger the network, the more its own noise hides
of a few microseconds. The same is measured on the bundle itself, for the record.

Wanted are less than 150 ms and less than 10 µs; with `--check` more is exit code 3.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

LIMIT_LOAD_MS, LIMIT_CALL_US = 150.0, 10.0
DISCARD = 20
ENGINE = "onnx-fp32/model.onnx"

SESSION = """
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.log_severity_level = 4
session = onnxruntime.InferenceSession({file!r}, options, providers=["CPUExecutionProvider"])
"""
PROGRAMS = {
    "accel": """
import accel
engine = accel.load({bundle!r}, "onnxruntime", device={device!r}, threads=1)
""",
    "bare": "import numpy, onnxruntime" + SESSION,
}
TIMED = "import time; began = time.perf_counter_ns()\n{body}\nprint(time.perf_counter_ns() - began)"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    found: dict[str, Any] = {"load": measure_load(options.bundle, options.processes, options.device)}
    with tempfile.TemporaryDirectory(prefix="accel-load-cost-") as scratch:
        found["call"] = measure_call(small_bundle(Path(scratch)), options.blocks, options.block)
    found["call_of_the_bundle"] = {**measure_call(options.bundle, options.blocks, options.block), "within": None}
    print(shown(found))
    if options.out:
        from accel.bench.environment import snapshot

        plan = {"processes": options.processes, "blocks": options.blocks, "block": options.block, "discarded": DISCARD}
        plan |= {"threads": 1, "device": options.device, "bundle": options.bundle.name}
        record = {"command": " ".join(sys.argv), "plan": plan, "machine": snapshot("cpu"), **found}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 3 if options.check and not (found["load"]["within"] and found["call"]["within"]) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="with an onnx-fp32 engine of batch 1")
    parser.add_argument("--processes", type=int, default=20, help="of each side")
    parser.add_argument("--blocks", type=int, default=100, help="of each side")
    parser.add_argument("--block", type=int, default=500, help="timed calls of a block")
    parser.add_argument("--device", default="cpu", help="that accel.load is asked for; auto on a machine without a GPU is the CPU too")
    parser.add_argument("--check", action="store_true", help=f"exit 3 for {LIMIT_LOAD_MS:g} ms or {LIMIT_CALL_US:g} µs or more")
    parser.add_argument("--out", type=Path, help="JSON")
    return parser.parse_args(arguments)


def measure_load(bundle: Path, processes: int, device: str = "cpu") -> dict[str, Any]:
    """Milliseconds of both sides, each a fresh process, in turn; the first pair fills the caches of files and bytecode."""
    given = {"bundle": str(bundle.resolve()), "file": str(bundle.resolve() / ENGINE), "device": device}
    taken: dict[str, list[float]] = {side: [] for side in PROGRAMS}
    for number in range(processes + 1):
        for side in list(PROGRAMS) if number % 2 == 0 else reversed(list(PROGRAMS)):
            milliseconds = fresh(PROGRAMS[side].format(**given))
            if number:
                taken[side].append(milliseconds)
    added = statistics.median(taken["accel"]) - statistics.median(taken["bare"])
    return {
        "p50_ms": {side: round(statistics.median(values), 1) for side, values in taken.items()},
        "min_ms": {side: round(min(values), 1) for side, values in taken.items()},
        "added_ms": round(added, 1),
        "pair_added_ms_quartiles": quartiles([ours - theirs for ours, theirs in zip(taken["accel"], taken["bare"], strict=True)], 1),
        "limit_ms": LIMIT_LOAD_MS,
        "within": added < LIMIT_LOAD_MS,
    }


def fresh(body: str) -> float:
    """Milliseconds that `body` takes in a new interpreter, by that one's own clock."""
    # An installed package has its bytecode; a checkout must be let write it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, "-c", TIMED.format(body=body)], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / 1e6


def small() -> Any:
    """The network whose calls are timed."""
    from torch import nn

    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def small_bundle(folder: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    import accel

    torch.manual_seed(0)
    weights = folder / "small.safetensors"
    save_file(small().state_dict(), str(weights))
    (done,) = accel.export("load_cost:small", "onnx", weights=weights, input="1x3x32x32", out=folder, device="cpu")
    return Path(done.bundle)


def measure_call(bundle: Path, blocks: int, block: int) -> dict[str, Any]:
    """Medians of the calls in microseconds, and what accel adds."""
    import onnxruntime

    import accel

    scope: dict[str, Any] = {"onnxruntime": onnxruntime}
    sessions = []
    for _ in range(2):
        exec(SESSION.format(file=str(bundle / ENGINE)), scope)
        sessions.append(scope["session"])
    with accel.load(bundle, "onnxruntime", device="cpu", threads=1) as engine:
        (spec,) = engine.inputs
        given = np.random.default_rng(0).standard_normal(spec.fixed(1)).astype(spec.dtype)
        name = sessions[0].get_inputs()[0].name
        sides: dict[str, Callable[[], Any]] = {
            "accel": lambda: engine(given),
            "bare": lambda: sessions[0].run(None, {name: given}),
            "bare_again": lambda: sessions[1].run(None, {name: given}),
        }
        return judged(alternate(sides, blocks, block))


def alternate(sides: Mapping[str, Callable[[], Any]], blocks: int, block: int) -> dict[str, list[Any]]:
    """`blocks` blocks of each side in turn, every other round in reverse order; nanoseconds a call; no garbage is collected meanwhile."""
    from accel.bench.measure import quiet_collector

    taken: dict[str, list[Any]] = {side: [] for side in sides}
    for number in range(blocks):
        for side in list(sides) if number % 2 == 0 else reversed(list(sides)):
            with quiet_collector():
                timed(sides[side], DISCARD)
                taken[side].append(timed(sides[side], block))
    return taken


def timed(call: Callable[[], Any], count: int) -> Any:
    perf_counter_ns, samples = time.perf_counter_ns, np.empty(count, dtype=np.int64)
    for number in range(count):
        began = perf_counter_ns()
        call()
        samples[number] = perf_counter_ns() - began
    return samples


def judged(taken: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    p50 = {side: float(np.median(np.concatenate(found))) / 1e3 for side, found in taken.items()}
    of_block = [float(np.median(ours) - np.median(theirs)) / 1e3 for ours, theirs in zip(taken["accel"], taken["bare"], strict=True)]
    added = p50["accel"] - p50["bare"]
    return {
        "p50_us": {side: round(value, 3) for side, value in p50.items()},
        "added_us": round(added, 3),
        "block_added_us_quartiles": quartiles(of_block, 3),
        "limit_us": LIMIT_CALL_US,
        "within": added < LIMIT_CALL_US,
    }


def quartiles(values: Sequence[float], digits: int) -> list[float]:
    return [round(value, digits) for value in (statistics.quantiles(values, n=4) if len(values) > 1 else values)]


def shown(found: Mapping[str, Any]) -> str:
    load, call, whole = found["load"], found["call"], found["call_of_the_bundle"]
    return "\n".join(
        [
            f"import and load: accel {load['p50_ms']['accel']:.0f} ms, numpy, onnxruntime and its session {load['p50_ms']['bare']:.0f} ms: "
            f"{load['added_ms']:.0f} ms more, less than {LIMIT_LOAD_MS:g} wanted: {'ok' if load['within'] else 'MISSED'}",
            f"a call: accel {call['p50_us']['accel']:.1f} µs, session.run {call['p50_us']['bare']:.1f} µs "
            f"(again {call['p50_us']['bare_again']:.1f}): {call['added_us']:.1f} µs more, less than {LIMIT_CALL_US:g} wanted: "
            f"{'ok' if call['within'] else 'MISSED'}",
            f"a call of the bundle itself: accel {whole['p50_us']['accel']:.1f} µs, session.run {whole['p50_us']['bare']:.1f} µs "
            f"(again {whole['p50_us']['bare_again']:.1f})",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
