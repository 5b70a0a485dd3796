"""The fused engine against TensorRT on this machine: export both from one model, verify both, time both in one set, print the ratio.

    python benchmarks/fused_vs_tensorrt.py --model student_b --out results/local

Needs a GPU from compute capability 8.0 on, `pip install 'accel-engines[toolkit,fused,trt]'` (TensorRT 10 or 11) and the model: a name that
accel ships with its weights, or a bundle. What is missing is said at once, with what mends it, and exit code 4; nothing is timed without
its opponent. With `--foreign-tensorrt` the plan is in the bundle already, and another Python runs it (ACCEL_BENCH_PYTHON_TENSORRT; 8.6).

Both are FP16, from the same weights, at batch 1, each in a CUDA graph, and verified on the test set before they are timed (`accel bench`:
processes of their own, rounds in turn). The ratio is TensorRT's median over fused's, so above 1 fused is faster; its interval is that of
the paired rounds. `device_us` is the GPU's time alone behind a gate, `host_us` a call and the wait for it. With `--check R` a ratio of
device_us whose interval does not lie wholly above R is exit code 3.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accel import api, device, runtimes
from accel.api.bundles import locate
from accel.bench import pairing
from accel.bench.comparison import estimate
from accel.bench.results import ResultSet
from accel.bench.summary import lines
from accel.device import nvrtc
from accel.engines import Bundle
from accel.errors import AccelError, GateError, IncompatibleArtifact, MissingExtra, RuntimeUnavailable
from accel.exporters import BuildOptions
from accel.exporters.options import parse_list

RIVAL, OURS = "tensorrt:fp16", "fused:fp16"
FORMATS = ("tensorrt", "fused")
LEAST = (8, 0)
KINDS = ("device_us", "host_us", "e2e_us")


def main() -> int:
    options = arguments()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return run(options)
    except AccelError as error:
        print(f"fused_vs_tensorrt: {error}", file=sys.stderr)
        return error.exit_code


def run(options: argparse.Namespace) -> int:
    on = demand(options)
    bundle = exported(options, on)
    variants = [*options.rival_variants, OURS, *(f"{OURS}+{name}" for name in schedules(bundle) if options.all_schedules)]
    benched = api.bench(
        bundle.path,
        variants,
        rounds=options.rounds,
        device=on,
        out=options.out,
        data=options.data,
        baseline=False,
        command=" ".join(sys.argv),
    )
    if benched.problem is not None:
        raise benched.problem
    record = {"command": " ".join(sys.argv), "model": bundle.name, **about(bundle, on), "rows": list(compared(benched.results))}
    print(report(record))
    (benched.results.folder / "fused-vs-tensorrt.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{benched.results.folder / 'fused-vs-tensorrt.json'}")
    demand_ratio(record["rows"], options.check)
    return 0


def demand(options: argparse.Namespace) -> str:
    """The device, once everything that the comparison needs is known to be here.

    Raises:
        DeviceUnavailable, MissingExtra, RuntimeUnavailable, IncompatibleArtifact: what is not.
    """
    on = device.parse(options.device)
    if on == "cpu":
        raise RuntimeUnavailable("both engines run on NVIDIA GPUs only, and the device is cpu", remedy="run it on a machine with a GPU")
    found = device.describe(on)
    if tuple(map(int, found.compute_capability.split("."))) < LEAST:
        raise IncompatibleArtifact(f"{found.name} has compute capability {found.compute_capability}; fused engines begin with 8.0")
    nvrtc.version()
    if runtimes.version("tensorrt") is None and not options.foreign_tensorrt:
        raise MissingExtra("tensorrt", extra="trt", why="is not installed, so there is nothing to compare with")
    return on


def exported(options: argparse.Namespace, on: str) -> Bundle:
    """The bundle with both engines, made from one model; those that are there and current are kept.

    Raises:
        UnsupportedOperator: the fused format cannot express the model; the layer is named. Others as `accel export`.
    """
    path = locate(options.model, options.engines)
    for format in FORMATS:
        if format == "tensorrt" and options.foreign_tensorrt:
            continue
        build = BuildOptions(tactic_sources=parse_list(options.tactic_sources)) if options.tactic_sources and format == "tensorrt" else None
        model = str(path) if path.exists() else options.model
        (done,) = api.export(model, format, precision="fp16", device=on, out=path.parent, options=build)
        print(f"{done.plan.name}: {done.status}", flush=True)
        path = done.bundle
    bundle = Bundle.open(path)
    for format in FORMATS:
        bundle.file(bundle.entry(format, "fp16"))
    return bundle


def schedules(bundle: Bundle) -> list[str]:
    return bundle.entry("fused", "fp16").toolchain["schedules"].split(", ")


def about(bundle: Bundle, on: str) -> dict[str, Any]:
    """What a claim has to name: the GPU, and versions and choices of both builders."""
    gpu, rival, ours = device.describe(on), bundle.entry("tensorrt", "fp16").toolchain, bundle.entry("fused", "fp16").toolchain
    return {
        "gpu": gpu.name,
        "driver_cuda": gpu.driver_cuda,
        "tensorrt": rival.get("tensorrt"),
        "tactic_sources": rival.get("tactic_sources", "the builder's own choice, not on record"),
        "fused": {name: ours[name] for name in ("nvrtc", "chosen", "compiled_for")},
    }


def compared(results: ResultSet) -> Iterator[dict[str, Any]]:
    """A row a variant: medians of each kind, and the ratio of the rival's to it with its 95 % interval, where both are good."""
    known = {line.variant: line for line in lines(results.rows, results.samples())}
    for variant, line in known.items():
        row: dict[str, Any] = {"variant": variant, "verdict": line.verdict, "reason": line.reason, "top1": line.top1, "drop": line.drop}
        for kind in KINDS:
            latency = line.latency.get(kind)
            row[kind] = latency.p50_us if latency else None
            row[f"{kind}_ratio"] = ratio(results, line.model, variant, kind)
        yield row


def ratio(results: ResultSet, model: str, variant: str, kind: str) -> dict[str, float | None] | None:
    """The rival's median over the variant's; None where one of them is not good, or they were measured under other conditions."""
    good, _ = pairing.sides(results.rows, kind)
    ours, rival = good.get((model, variant)), good.get((model, RIVAL))
    if ours is None or rival is None or variant == RIVAL:
        return None
    pair = pairing.Pair(ours, rival)
    values = None if pair.differences() else pair.log_ratios()
    if not values:
        return None
    found = estimate(values)
    return {"ratio": found.ratio, "lo": found.lo, "hi": found.hi}


def report(record: dict[str, Any]) -> str:
    head = f"{record['model']}, FP16, batch 1, {record['gpu']}: TensorRT {record['tensorrt']} ({record['tactic_sources']})"
    found = [head, f"{'variant':<22} {'verdict':<10} {'top1':>7} " + " ".join(f"{kind:>10} {'ratio':>20}" for kind in KINDS)]
    for row in record["rows"]:
        cells = [f"{_number(row[kind]):>10} {_interval(row[f'{kind}_ratio']):>20}" for kind in KINDS]
        found.append(f"{row['variant']:<22} {row['verdict']:<10} {_number(row['top1']):>7} " + " ".join(cells))
    return "\n".join(found)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _interval(found: dict[str, float | None] | None) -> str:
    if found is None:
        return "–"
    ends = "" if found["lo"] is None or found["hi"] is None else f" ({found['lo']:.2f}–{found['hi']:.2f})"
    return f"{found['ratio']:.2f}{ends}"


def demand_ratio(rows: list[dict[str, Any]], least: float | None) -> None:
    """Raises GateError where fused is not so many times as fast with certainty."""
    if least is None:
        return
    found = next((row["device_us_ratio"] for row in rows if row["variant"] == OURS), None)
    sure = found and (found["ratio"] if found["lo"] is None else found["lo"])
    if not sure or sure < least:
        raise GateError(f"device_us of {OURS} was to be {least:g} times as fast as that of {RIVAL}; found {_interval(found)}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="student_b", help="a model that accel ships, or a bundle")
    parser.add_argument("--engines", type=Path, default=Path("engines"), help="where bundles are")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", help="the test set, as accel verify takes it; default the model's own")
    parser.add_argument("--rounds", type=int, help="of each variant; default that of accel bench")
    parser.add_argument("--tactic-sources", help="of TensorRT's builder; default its own choice")
    parser.add_argument("--all-schedules", action="store_true", help="time +chain and +grid as rows of their own")
    parser.add_argument("--without-graph", action="store_true", help="time TensorRT without a CUDA graph too")
    parser.add_argument("--foreign-tensorrt", action="store_true", help="the plan is in the bundle; another Python runs it")
    parser.add_argument("--out", type=Path, help="where the set gets its folder")
    parser.add_argument("--check", type=float, metavar="R", help="fail unless device_us is R times as fast")
    options = parser.parse_args()
    options.rival_variants = [RIVAL, *([f"{RIVAL}-graph"] if options.without_graph else [])]
    return options


if __name__ == "__main__":
    sys.exit(main())
