"""The fused engine on a GPU, held against float64: every layer of every schedule, 10,000 launches, two threads, a GPU that others fill.

    python benchmarks/fused_check.py --seconds 170 --out results/h100/fused-check.json

Needs numpy, cuda-core with NVRTC (accel-engines[fused]) and this checkout; no torch, no weights: they are random (`fused_networks.py`),
or those of `--onnx FILE`. `--compile-only` needs no GPU: it generates, compiles, and prints what each kernel uses.

layers     arena and logits are filled with NaN, then one fresh image is run; each layer is computed in float64 from what the engine itself
           gave that layer, so that errors do not add up. The limit is LIMIT of the largest value of the layer.
repeat     10,000 launches of one image, logits filled with NaN before each: all equal, bit for bit.
threads    two contexts of one engine on two threads, 10,000 launches each, each with an image of its own.
crowded    the same in one context, while a kernel that fills every multiprocessor runs again and again on another stream.
images     8 images in memory of their own, prepared once: their bindings and the home one in random turn, with a graph and without, each
           answer equal, bit for bit, to that of its image alone at home; then all 8 enqueued at once behind a gate, so that addresses are
           set while launches of others wait; then the captured nodes are asked again whether they are cooperative. Also medians of µs with
           the image at home, at an address that every call sets, copied, and read by a graph of its own: `device_us_home`, `_set`,
           `_copied`, `_own`, and `host_us_…`.
refused    a graph whose kernels would not be launched cooperatively, and a grid that does not fit: both must be refused.
times      medians of µs: `device` between two events behind a gate, `chain` of back-to-back replays per call, `host` call and wait;
           of the schedule chain also what each kernel adds to those before it.
carveout   the same graph with the largest carve-out of shared memory for every kernel, as the runtime has it, and with the driver's choice,
           in turn: `device_us_largest`, `device_us_driver`, and of back-to-back replays `chain_us_…`.

What the time did not suffice for is said as `not run`; exit code 1 if anything failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "exporters" / "fused"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fused_timing
import reference
from fused_context import Built, Context, build, fresh, opened, way_of
from fused_images import images
from fused_networks import NETWORKS, SHIPPED

from accel import device
from accel.device import driver, kernels, nvrtc
from accel.engines.fused_plan import SCHEDULES
from accel.errors import AccelError
from accel.exporters.fused import from_onnx
from accel.exporters.fused.network import INPUT, Network
from accel.types import Array, Kernel
from benchmarks import records

LIMIT = 2e-3
"""Of the largest value of a layer: rounding to FP16 is 4.9e-4 of a value, sums in FP32 are far below."""
LAUNCHES = 10_000
SPIN = r"""
extern "C" __global__ void crowd(const unsigned long long* for_ns) {
    unsigned long long begin, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begin));
    do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)); while (now - begin < *for_ns);
}
"""
CROWD_NS, CROWD_CTAS, CROWD_THREADS = 30_000, 8, 256


def layers(context: Context, draw: np.random.Generator, images: int) -> dict[str, Any]:
    """The largest error of each layer, of the layer's largest value, over fresh images."""
    network, worst = context.built.network, dict[str, float]()
    for _ in range(images):
        image = fresh(context.built, draw)
        context.set(image)
        context.poison("arena")
        context.runtime.enqueue(context.runtime.home)
        (logits,) = context.staging.download(context.runtime.output(context.runtime.home)).values()
        context.runtime.check()
        arena = device.to_numpy(context.runtime.buffers["arena"], context.stream)
        for name, error in errors(network, image[0], arena, logits[0], context.scheduled.outputs).items():
            worst[name] = max(worst.get(name, 0.0), error)
    last = max(worst, key=lambda name: worst[name])
    return {"ok": worst[last] <= LIMIT, "worst": f"{last} {worst[last]:.1e}", "limit": LIMIT, "of": worst, "images": images}


def errors(network: Network, image: Array, arena: Array, logits: Array, outputs: Any) -> dict[str, float]:
    """Layer → its largest error, each computed in float64 from the engine's own inputs of it, with weights rounded to FP16 as its own."""
    given = {INPUT: image.astype(np.float64)}
    found = {}
    for layer in network.layers:
        expected = reference.layer_of(rounded(layer), given)
        if layer is network.layers[-1]:
            got = logits.astype(np.float64).reshape(expected.shape)
        elif layer.name in outputs:
            offset, (height, width, channels) = outputs[layer.name]
            values = arena[offset : offset + height * width * channels * 2].view(np.float16).reshape(height, width, channels)
            got = values[:, :, : layer.output.channels].transpose(2, 0, 1).astype(np.float64)
        else:  # a part of the next layer's kernel
            given[layer.name] = expected
            continue
        # NaN, which was there before, must not pass as small.
        error = np.abs(got - expected).max() / np.abs(expected).max()
        found[layer.name] = float(error) if np.isfinite(error) else float("inf")
        given[layer.name] = got
    return found


def rounded(layer: Any) -> Any:
    # Depthwise weights are kept in float32.
    if not hasattr(layer, "weight") or getattr(layer, "groups", 1) > 1:
        return layer
    return dataclasses.replace(layer, weight=layer.weight.astype(np.float16).astype(np.float32))


def repeat(context: Context, image: Array, launches: int, until: float) -> dict[str, Any]:
    context.set(image)
    first = context.again()
    done, differing = 1, 0
    while done < launches and time.monotonic() < until:
        differing += not np.array_equal(context.again().view(np.uint32), first.view(np.uint32))
        done += 1
    sound = bool(np.isfinite(first).all())
    whole = {} if done == launches else {"reason": f"the time ended after {done} of {launches}"}
    right = not differing and sound
    return {"ok": False if not right else None if whole else True, "launches": done, "differing": differing, "finite": sound, **whole}


def threads(built: Built, schedule: str, draw: np.random.Generator, launches: int, until: float) -> dict[str, Any]:
    answers: dict[int, Any] = {}
    with opened(built, schedule, 2) as both:
        images = [fresh(built, draw) for _ in both]
        begin = threading.Barrier(2)

        def work(index: int) -> None:
            try:
                driver.activate(built.on)
                begin.wait()
                answers[index] = repeat(both[index], images[index], launches, until)
            except Exception as error:
                answers[index] = {"ok": False, "error": str(error), "launches": 0, "differing": 0}

        running = [threading.Thread(target=work, args=(index,)) for index in range(2)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    both_ok = [answers[index]["ok"] for index in range(2)]
    told = {name: sum(answer[name] for answer in answers.values()) for name in ("launches", "differing")}
    said = [answer["error"] for answer in answers.values() if "error" in answer]
    return {"ok": False if False in both_ok else None if None in both_ok else True, **told, **({"error": said[0]} if said else {})}


def crowded(context: Context, image: Array, launches: int, until: float) -> dict[str, Any]:
    """`repeat` while another stream keeps every multiprocessor busy."""
    on = context.built.on
    limits = kernels.limits(on)
    module = kernels.Module(nvrtc.compile(SPIN, "crowd.cu", ".".join(map(str, limits.capability))).cubin, on, "the competing kernel")
    stream, stop, crowds = device.open_stream(on), threading.Event(), [0]
    length = device.to_device(np.array([CROWD_NS], np.int64), "int64", on, stream)
    shaped = Kernel("crowd", limits.sms * CROWD_CTAS, CROWD_THREADS)
    launch = kernels.Launch(module, shaped, [length.ptr], stream or 0, "")

    def compete() -> None:
        driver.activate(on)
        while not stop.is_set():
            launch()
            launch()
            device.synchronize(stream)
            crowds[0] += 2

    thread = threading.Thread(target=compete)
    thread.start()
    try:
        found = repeat(context, image, launches, until)
    finally:
        stop.set()
        thread.join()
        device.close_stream(stream)
    return {**found, "ok": found["ok"] if crowds[0] else False, "competing_launches": crowds[0]}


def refused(context: Context) -> dict[str, Any]:
    """What must be refused by the driver of this very machine; nothing is launched."""
    runtime, wanted = context.runtime, context.scheduled.kernels
    if any(kernel.cluster > 1 for kernel in wanted):
        return {"ok": True, "skipped": "a cluster is launched as a whole or not at all"}
    if not any(kernel.cooperative for kernel in wanted):
        return {"ok": True, "skipped": "no kernel of it waits for another CTA"}
    engine = runtime.engine
    assert engine is not None
    found = {}
    # Captured without the attribute, and told that it must have it.
    plain = [dataclasses.replace(kernel, cooperative=False) for kernel in wanted]
    calls = [kernels.Launch(engine.module, kernel, [0] * 5, context.stream or 0, "") for kernel in plain]

    def launch() -> None:
        for call in calls:
            call()

    def inspect(nodes: Any) -> None:
        kernels.demand_cooperative(nodes, wanted)

    found["not cooperative"] = _says(lambda: device.capture(context.built.on, context.stream or 0, launch, inspect))
    huge = [dataclasses.replace(kernel, grid=kernel.grid * 1024) for kernel in wanted if kernel.cooperative]
    code = kernels.Module(engine.code, context.built.on, "the same again")
    found["does not fit"] = _says(lambda: kernels.Launch(code, huge[0], [0] * 5, context.stream or 0, "run fused:fp16+chain"))
    return {"ok": all(found.values()), **found}


def _says(call: Callable[[], Any]) -> str:
    """The refusal; empty where there was none."""
    try:
        call()
    except AccelError as error:
        return error.message
    return ""


def first_checks(options: argparse.Namespace, draw: np.random.Generator) -> dict[str, Callable[..., dict[str, Any]]]:
    """What every network goes through: nothing else counts where a layer is wrong."""
    return {"layers": lambda built, schedule, until: _in(built, schedule, lambda context: layers(context, draw, options.images))}


def further_checks(options: argparse.Namespace, draw: np.random.Generator) -> dict[str, Callable[..., dict[str, Any]]]:
    """What the shipped networks, and those that were named, go through beside that."""
    count = options.launches
    return {
        "times": lambda built, schedule, until: _in(built, schedule, lambda c: fused_timing.times(c.runtime, c.stream, options.samples)),
        "carveout": lambda built, schedule, until: _in(
            built, schedule, lambda c: fused_timing.carveouts(c.runtime, c.stream, options.samples)
        ),
        "images": lambda built, schedule, until: images(built, schedule, draw, count, options.samples, until),
        "refused": lambda built, schedule, until: _in(built, schedule, refused),
        "repeat": lambda built, schedule, until: _in(built, schedule, lambda c: repeat(c, fresh(built, draw), count, until)),
        "threads": lambda built, schedule, until: threads(built, schedule, draw, count, until),
        "crowded": lambda built, schedule, until: _in(built, schedule, lambda c: crowded(c, fresh(built, draw), count, until)),
    }


def check(
    built: Built, steps: dict[str, Callable[..., dict[str, Any]]], until: float, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """One row a check and schedule that were asked for, as they end."""
    for what, run in steps.items():
        for schedule in built.plan.schedules:
            if what not in (options.checks or [what]) or schedule not in (options.schedules or [schedule]):
                continue
            row: dict[str, Any] = {"network": built.name, "schedule": schedule, "check": what}
            if time.monotonic() > until:
                yield {**row, "ok": None, "reason": "not run: no time left"}
                continue
            began = time.monotonic()
            try:
                row |= run(built, schedule, until)
            except Exception as error:  # one check that fails must not hide the others
                row |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
            yield {**row, "took_s": round(time.monotonic() - began, 2)}


def _in(built: Built, schedule: str, work: Callable[[Context], dict[str, Any]]) -> dict[str, Any]:
    with opened(built, schedule) as (context,):
        return work(context)


def used(built: Built) -> Iterator[str]:
    for schedule, item in built.plan.schedules.items():
        for capability, of in item.resources.items():
            for kernel in item.kernels:
                what = of[kernel.name]
                yield (
                    f"{built.name:<10} {schedule:<8} sm_{capability:<5} {kernel.name:<28} grid {kernel.grid:>4} "
                    f"registers {what.registers:>3} spills {what.spills:>3} shared {what.shared + kernel.shared:>6}"
                )


def line(row: dict[str, Any]) -> str:
    status = {True: "ok", False: "FAILED", None: "-"}[row["ok"]]
    told = ("worst", "launches", "differing", "competing_launches", "device_us", "chain_us", "host_us", "error", "reason", "skipped")
    ways = [name for name in row if name.startswith(("device_us_", "chain_us_", "host_us_")) and not name.endswith("_turns")]
    said = "  ".join(f"{name} {row[name]}" for name in (*told, *ways) if name in row)
    return f"{row['network']:<10} {row['schedule']:<8} {row['check']:<8} {status:<7} {said}"


def networks(options: argparse.Namespace) -> dict[str, Callable[[], Network]]:
    if options.onnx:
        return {options.onnx.stem: lambda: from_onnx.read(options.onnx)}
    return {name: NETWORKS[name] for name in options.networks or NETWORKS}


def main() -> int:
    options = arguments()
    until = time.monotonic() + options.seconds
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if options.seed is None else options.seed
    record: dict[str, Any] = {"command": " ".join(sys.argv), "seed": seed, "nvrtc": nvrtc.version(), "left_out": {}, "rows": []}
    on = "cpu" if options.compile_only else device.parse(options.device)
    if on != "cpu":
        found = device.describe(on)
        record |= {"gpu": found.name, "compute_capability": found.compute_capability, "driver_cuda": found.driver_cuda}
    print(f"{record.get('gpu', 'no GPU')}, NVRTC {record['nvrtc']}, seed {seed}", flush=True)
    draw = np.random.default_rng(seed)

    def keep(rows: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            record["rows"].append(row)
            print(line(row), flush=True)
            _write(options.out, record)

    # Compiled side by side, which is most of what is done before the GPU has something to do; taken in order.
    with tempfile.TemporaryDirectory(prefix="accel-fused-check-") as scratch, ThreadPoolExecutor(options.compilers) as pool:
        way = way_of(options.flow or {}, options.killed, options.number) if options.flow is not None or options.killed else None
        made = {name: pool.submit(build, name, make, Path(scratch) / name, on, way) for name, make in networks(options).items()}
        whole: list[Built] = []
        for name, future in made.items():
            try:
                built = future.result()
            except AccelError as error:
                keep([{"network": name, "schedule": "", "check": "export", "ok": False, "error": error.message}])
                continue
            record["left_out"][name] = dict(built.plan.left_out)
            print("\n".join(used(built)) if options.compile_only else f"{name}: {built.plan.why}", flush=True)
            if not options.compile_only:
                keep(check(built, first_checks(options, draw), until, options))
                whole += [built] if name in SHIPPED or options.networks or options.onnx else []
        for built in whole:
            keep(check(built, further_checks(options, draw), until, options))
    _write(options.out, record)
    failed = [row for row in record["rows"] if row["ok"] is False]
    print(f"{len(record['rows'])} checks, {len(failed)} failed, {sum(row['ok'] is None for row in record['rows'])} not run")
    return 1 if failed else 0


def _write(out: Path | None, record: dict[str, Any]) -> None:
    """After every check: what a later one does to the process loses nothing."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(records.text(record) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=170, help="begin no check after so long")
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), help="of fused_networks.py; all where none is named")
    parser.add_argument("--checks", nargs="*", help="these alone, by the names above")
    parser.add_argument("--schedules", nargs="*", choices=SCHEDULES, help="these alone")
    parser.add_argument("--onnx", type=Path, help="check this network with its weights instead")
    parser.add_argument("--flow", type=json.loads, help="of the grid: fields of generate.Flow as JSON, as '{\"ahead\": 0}'")
    parser.add_argument("--killed", type=Path, help="of the grid: one that ended its process in the tuning of this plan.json")
    parser.add_argument("--number", type=int, default=0, help="which of these")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=3, help="fresh ones that every layer is held against float64 on")
    parser.add_argument("--launches", type=int, default=LAUNCHES)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--seed", type=int, help="of the images; a new one where none is given")
    parser.add_argument("--compilers", type=int, default=min(os.cpu_count() or 1, 8), help="threads that generate and compile")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--compile-only", action="store_true", help="no GPU: generate and compile alone")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
