"""What accel's call costs beyond its library's own: `host_us` through the runtime against a loop written by hand, in one process.

    python benchmarks/host_overhead.py --bundle engines/resnet18.accel --out results/h200/host-overhead.json

Both sides do the same: one device-to-device copy of the input into the place that the graph reads, one launch, one wait for the stream.
Blocks alternate, the first side of each pair too. The hand-written side launches the very graph that the runtime captured, with the
library's own call, and the answers are compared first. A second hand-written series, in blocks of its own, tells how far two equal loops
are apart.

A part whose package is absent, or that this machine cannot run, has a row that says why: without torch and ONNX Runtime (the Python 3.10
of TensorRT 8.6) only TensorRT's rows have numbers. Wanted is a ratio of at most 1.03 and at most 2 µs; with `--check` more is exit code 3.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accel import device, doctor, runtimes, trt
from accel.bench.environment import snapshot
from accel.device import driver
from accel.engines import Bundle, trust
from accel.errors import AccelError, BundleMissing, RuntimeUnavailable
from accel.types import Array, Binding, DeviceArray, EngineSource, Runtime, TensorSpec, Variant

RATIO, EXTRA_US = 1.03, 2.0
INPUTS, DISCARD = 8, 20
ONE_NODE = (TensorSpec("x", (1, 4)),), (TensorSpec("y", (1, 4)),)

Block = Callable[[Array, int], None]
"""Fill the samples (int64 nanoseconds), beginning with input number `offset`."""


class Raw(NamedTuple):
    """The side that is written by hand: its block, and its answer to the input that it ran last."""

    block: Block
    answer: Callable[[], Array]


class Case(NamedTuple):
    model: str
    variant: str
    source: Callable[[], EngineSource]
    raw: Callable[..., contextlib.AbstractContextManager[Raw]]


def main() -> int:
    options = arguments()
    try:
        options.device = device.parse(options.device)
        machine = snapshot(options.device)
    except AccelError as error:
        print(f"host_overhead: {error}", file=sys.stderr)
        return error.exit_code
    plan = {"blocks": options.blocks, "block": options.block, "discarded": DISCARD, "inputs": INPUTS}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="accel-overhead-") as scratch:
        for case in cases(options, Path(scratch)):
            if options.only and not case.variant.startswith(tuple(options.only)):
                continue
            rows.append(run(case, options))
            print(line(rows[-1]), flush=True)
            # After every case: what a later one does to the process loses nothing.
            if options.out:
                record = {"command": " ".join(sys.argv), "plan": plan, "machine": machine, "rows": rows}
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 3 if options.check and any(row.get("within") is False for row in rows) else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("engines/resnet18.accel"), help="with the engines of the larger model")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--blocks", type=int, default=30, help="of each side")
    parser.add_argument("--block", type=int, default=200, help="timed calls of a block")
    parser.add_argument("--only", action="append", help="a runtime, as tensorrt; may be repeated")
    parser.add_argument("--trusted", action="store_true", help="run code of a bundle that somebody else exported")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--check", action="store_true", help=f"exit 3 for a ratio over {RATIO} or more than {EXTRA_US} µs")
    return parser.parse_args()


def cases(options: argparse.Namespace, scratch: Path) -> Iterator[Case]:
    place, model = options.device, options.bundle.name.removesuffix(".accel")
    for variant, raw in (("tensorrt:fp16", raw_graph), ("onnxruntime:fp16+graph", raw_onnxruntime), ("eager:fp16+graph", raw_torch)):
        yield Case(model, variant, lambda variant=variant: of_bundle(options, variant), raw)
    # The smallest thing that can be launched: what a call costs is nearly all that it takes.
    for variant, raw, make in (
        ("tensorrt:fp32", raw_graph, lambda: {"file": one_node_plan(scratch / "model.plan")}),
        ("onnxruntime:fp32+graph", raw_onnxruntime, lambda: {"file": one_node_onnx(scratch / "model.onnx")}),
        ("eager:fp32+graph", raw_torch, lambda: {"module": one_node_module}),
    ):
        yield Case("one node", variant, lambda variant=variant, make=make: of_one_node(variant, place, **make()), raw)


def run(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """One row: p50 of both sides and what lies between them, or why there is none."""
    row: dict[str, Any] = {"model": case.model, "variant": case.variant}
    try:
        driver.activate(options.device)
        runtimes.check(Variant.parse(case.variant))
        source = case.source()
        stream = device.open_stream(source.device)
        try:
            runtime = runtimes.create(source)
            try:
                runtime.open(stream)
                return {**row, **compare(case, source, runtime, int(stream or 0), options)}
            finally:
                runtime.close()
        finally:
            device.close_stream(stream)
    except AccelError as error:
        return {**row, "not_run": error.message}


def compare(case: Case, source: EngineSource, runtime: Runtime, stream: int, options: argparse.Namespace) -> dict[str, Any]:
    given = inputs_for(runtime, stream)
    (name,) = (spec.name for spec in runtime.inputs)
    bindings = [runtime.prepare({name: array}) for array in given]
    with case.raw(source, runtime, stream, given) as raw:
        warm = np.empty(50 * INPUTS + 1, dtype=np.int64)
        for block in (through_accel(runtime, bindings, stream), raw.block):
            block(warm, 0)
        demand_same(case, first_output(runtime, bindings[0], stream), raw.answer())
        taken = alternate({"accel": through_accel(runtime, bindings, stream), "raw": raw.block, "raw_again": raw.block}, options)
    p50 = {side: statistics.median(np.concatenate(blocks).tolist()) / 1e3 for side, blocks in taken.items()}
    medians = {side: [statistics.median(block.tolist()) for block in blocks] for side, blocks in taken.items()}
    ratios = sorted(ours / theirs for ours, theirs in zip(medians["accel"], medians["raw"], strict=True))
    ratio, extra = p50["accel"] / p50["raw"], p50["accel"] - p50["raw"]
    return {
        "runtime_version": runtime.facts.get("runtime_version"),
        "graph_nodes": runtime.facts.get("graph_nodes"),
        "input": [list(runtime.inputs[0].shape), runtime.inputs[0].dtype],
        "p50_us": {side: round(value, 3) for side, value in p50.items()},
        "ratio": round(ratio, 4),
        "accel_minus_raw_us": round(extra, 3),
        "raw_again_over_raw": round(p50["raw_again"] / p50["raw"], 4),
        "block_ratio_quartiles": [round(value, 4) for value in statistics.quantiles(ratios, n=4)] if len(ratios) > 1 else ratios,
        "within": ratio <= RATIO and extra <= EXTRA_US,
    }


def alternate(sides: Mapping[str, Block], options: argparse.Namespace) -> dict[str, list[Array]]:
    """`options.blocks` blocks of each side in turn, every other round in reverse order; the garbage collector waits meanwhile."""
    taken: dict[str, list[Array]] = {side: [] for side in sides}
    discarded = np.empty(DISCARD, dtype=np.int64)
    for number in range(options.blocks):
        order: Sequence[str] = list(sides) if number % 2 == 0 else list(reversed(sides))
        for side in order:
            samples = np.empty(options.block, dtype=np.int64)
            gc.collect()
            gc.disable()
            sides[side](discarded, number)
            sides[side](samples, number + DISCARD)
            gc.enable()
            taken[side].append(samples)
    return taken


def through_accel(runtime: Runtime, bindings: Sequence[Binding], stream: int) -> Block:
    """As `accel bench` times host_us."""
    enqueue, synchronize, now, count = runtime.enqueue, device.synchronize, time.perf_counter_ns, len(bindings)

    def block(samples: Array, offset: int) -> None:
        for index in range(len(samples)):
            binding = bindings[(offset + index) % count]
            begin = now()
            enqueue(binding)
            synchronize(stream)
            samples[index] = now() - begin

    return block


def by_hand(copy_to: int, given: Sequence[DeviceArray], stream: int, launch: Callable[..., Any], *arguments: Any) -> Block:
    """A copy, `launch(*arguments)` and a wait, each the bare call with its handle made beforehand; the driver's codes are looked at."""
    cuda, now, count = driver.bindings(), time.perf_counter_ns, len(given)
    copy, wait, handle = cuda.cuMemcpyDtoDAsync, cuda.cuStreamSynchronize, cuda.CUstream(stream)
    target, size, sources = cuda.CUdeviceptr(copy_to), given[0].nbytes, [cuda.CUdeviceptr(array.ptr) for array in given]

    def block(samples: Array, offset: int) -> None:
        for index in range(len(samples)):
            source = sources[(offset + index) % count]
            begin = now()
            copied = copy(target, source, size, handle)
            launch(*arguments)
            waited = wait(handle)
            samples[index] = now() - begin
            if copied[0] or waited[0]:
                raise SystemExit(f"CUDA failed: {copied[0]}, {waited[0]}")

    return block


@contextlib.contextmanager
def raw_graph(source: EngineSource, runtime: Any, stream: int, given: Sequence[DeviceArray]) -> Iterator[Raw]:
    """cuda.bindings alone, with the graph that TensorRT's runtime captured."""
    cuda = driver.bindings()
    (home,) = runtime.home.inputs.values()
    (output,) = runtime.output(runtime.home).values()
    block = by_hand(home.ptr, given, stream, cuda.cuGraphLaunch, runtime.graph.executable, cuda.CUstream(stream))
    yield Raw(block, lambda: device.to_numpy(output, stream))


@contextlib.contextmanager
def raw_onnxruntime(source: EngineSource, runtime: Any, stream: int, given: Sequence[DeviceArray]) -> Iterator[Raw]:
    """ONNX Runtime's own call on the session and the IO binding that the runtime made, and cuda.bindings for copy and wait.

    Not a session of its own: each one searches cuDNN's algorithms anew, and two of one file were 4 µs of 740 apart on an H200.
    """
    (home,) = runtime.home.inputs.values()
    (output,) = runtime.output(runtime.home).values()
    block = by_hand(home.ptr, given, stream, runtime._session.run_with_iobinding, runtime._io, runtime._run_options)
    yield Raw(block, lambda: device.to_numpy(output, stream))


@contextlib.contextmanager
def raw_torch(source: EngineSource, runtime: Any, stream: int, given: Sequence[DeviceArray]) -> Iterator[Raw]:
    """The replay of the torch.cuda.CUDAGraph that the runtime recorded, and cuda.bindings for copy and wait."""
    (home,) = runtime.home.inputs.values()
    (output,) = runtime.output(runtime.home).values()
    yield Raw(by_hand(home.ptr, given, stream, runtime._captured._graph.replay), lambda: device.to_numpy(output, stream))


def of_bundle(options: argparse.Namespace, spelling: str) -> EngineSource:
    bundle = Bundle.open(options.bundle)
    source = runtimes.engine_source(bundle, Variant.parse(spelling), options.device)
    if source.entry is None:
        trust.demand_module(bundle, options.trusted)
    else:
        trust.demand_engine(bundle, source.entry, options.trusted)
    if len(bundle.inputs) != 1 or len(bundle.outputs) != 1:
        raise BundleMissing(f"{bundle.path} has several inputs or outputs", remedy="name a bundle of one input and one output")
    return source


def of_one_node(spelling: str, place: str, **what: Any) -> EngineSource:
    return EngineSource(Variant.parse(spelling), place, *ONE_NODE, **what)


def one_node_plan(path: Path) -> Path:
    """`y = x + x` for float32 1×4, by the network API of the TensorRT that is installed."""
    library = trt.load("tensorrt")
    module = library.trt
    flags = module.NetworkDefinitionCreationFlag
    chosen = "STRONGLY_TYPED" if hasattr(flags, "STRONGLY_TYPED") else "EXPLICIT_BATCH"
    builder = module.Builder(library.log)
    network = builder.create_network(1 << int(getattr(flags, chosen)))
    x = network.add_input("x", module.float32, (1, 4))
    y = network.add_elementwise(x, x, module.ElementWiseOperation.SUM).get_output(0)
    y.name = "y"
    network.mark_output(y)
    config = builder.create_builder_config()
    sources = getattr(module, "TacticSource", None)
    lone = [getattr(sources, name) for name in ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS") if hasattr(sources, name)]
    if lone:
        # 8.6 looks for cuBLAS and cuDNN otherwise, which need not be there.
        config.set_tactic_sources(sum(1 << int(item) for item in lone))
    with library.listening() as heard:
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeUnavailable(f"{library.title} built no plan of one node: {' | '.join(heard)}")
    path.write_bytes(bytes(plan))
    return path


def one_node_onnx(path: Path) -> Path:
    path.write_bytes(doctor.one_node_model())
    return path


def one_node_module() -> Any:
    import torch

    class Double(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x + x

    return Double()


def inputs_for(runtime: Runtime, stream: int) -> list[DeviceArray]:
    (spec,) = runtime.inputs
    draw = np.random.default_rng(0)
    place = next(iter(runtime.home.inputs.values())).device
    return [device.to_device(draw.standard_normal(spec.fixed(1)), spec.dtype, place, stream) for _ in range(INPUTS)]


def first_output(runtime: Runtime, binding: Binding, stream: int) -> Array:
    runtime.enqueue(binding)
    device.synchronize(stream)
    return device.to_numpy(next(iter(runtime.output(binding).values())), stream)


def demand_same(case: Case, ours: Array, theirs: Array) -> None:
    """The warm-up of the other side ended with the first input too."""
    difference = float(np.max(np.abs(ours.astype(np.float64) - theirs.astype(np.float64))))
    scale = float(np.max(np.abs(theirs.astype(np.float64)))) or 1.0
    if difference > 2e-2 * scale:
        raise RuntimeUnavailable(f"{case.variant} and the loop by hand answer differently: up to {difference:g} of {scale:g}")


def line(row: Mapping[str, Any]) -> str:
    head = f"{row['model']:<16} {row['variant']:<24}"
    if "not_run" in row:
        return f"{head} not run: {row['not_run'].splitlines()[0]}"
    p50 = row["p50_us"]
    return (
        f"{head} accel {p50['accel']:8.2f} µs   by hand {p50['raw']:8.2f} µs   ratio {row['ratio']:.3f}   "
        f"{row['accel_minus_raw_us']:+.2f} µs   two hands {row['raw_again_over_raw']:.3f}   {'ok' if row['within'] else 'OVER'}"
    )


if __name__ == "__main__":
    sys.exit(main())
