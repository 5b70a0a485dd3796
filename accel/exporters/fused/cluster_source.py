"""The schedule `cluster` as a Program: the plan of cluster.py as constants, packed weights and the one kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from accel.errors import UsageError
from accel.exporters.fused.cluster import CTAS, ClusterPlan, Layered, Stem, plan_cluster, pushed, raw_size
from accel.exporters.fused.network import Array, Convolution, Network
from accel.exporters.fused.pack import fragments, gemm, halves, k_offsets
from accel.exporters.fused.plan import SOURCES, _identifiers, _places
from accel.exporters.fused.program import Kernel, Program
from accel.exporters.fused.tiles import THREADS, Cut, Tile, padded

PARAMETERS = "const unsigned char* image, const unsigned char* weights, unsigned char* arena, float* logits, unsigned int* state"
TEMPLATES = ("primitives", "common", "cluster")
WEIGHT_ALIGNMENT = 128
Parts = Mapping[str, npt.NDArray[Any]]


def generate_cluster(
    network: Network, *, input_dtype: str = "float16", pixels: tuple[Array, Array] | None = None, timed: bool = False
) -> Program:
    """`network` as one kernel of one cluster; arguments as of generate.generate.

    Args:
        timed: to be measured (benchmarks/fused_cluster_steps.py), not exported: each CTA writes `stamps(plan)` moments to State.

    Raises:
        UnsupportedOperator: a layer that this schedule does not compute, named, or no room for the weights. UsageError: an image of bytes
            without `pixels`, or a weight that FP16 cannot hold.
    """
    plan = plan_cluster(network)
    parts = {f"{key} {part}": value for key, of in _packed(plan, input_dtype, pixels).items() for part, value in of.items()}
    offsets, blob = _blob(parts)
    outputs, arena_bytes = _places([of.layer for of in plan.layers])
    shape = network.input
    names = tuple(layer.name for layer in network.layers)
    folder = resources.files("accel.exporters.fused") / "templates"
    return Program(
        schedule="cluster",
        source="\n".join(
            [
                _table(plan, input_dtype),
                f"constexpr bool POLLS = false;\nconstexpr int CTAS = {CTAS};  // of the cluster\n"
                f"constexpr bool TIMED = {str(timed).lower()};\nconstexpr int STAMPS = {len(stamps(plan))};\n",
                *((folder / f"{name}.cuh").read_text(encoding="utf-8") for name in TEMPLATES),
                *_structs(plan, offsets, {name: place for name, (place, _) in outputs.items()}, input_dtype),
                *_kernel(plan),
            ]
        ),
        kernels=(Kernel("cluster", CTAS, THREADS, plan.shared, cluster=CTAS, layers=names),),
        weights=blob,
        arena_bytes=arena_bytes,
        state_bytes=CTAS * len(stamps(plan)) * 4 if timed else 0,
        input_shape=(1, shape.channels, shape.height, shape.width)
        if input_dtype == "float16"
        else (1, shape.height, shape.width, shape.channels),
        input_dtype=input_dtype,
        output_shape=(1, plan.head.outputs),
        outputs=outputs,
        plan=described(plan, input_dtype),
    )


def stamps(plan: ClusterPlan) -> tuple[str, ...]:
    """The moments that a measured program keeps of each CTA, in order."""
    of_layers = (f"{of.layer.name}: {what}" for of in plan.layers for what in ("weights in registers", "patch there", "pushed"))
    return ("begun", "pixels there", "stem done", *of_layers, "end")


def described(plan: ClusterPlan, input_dtype: str) -> dict[str, Any]:
    """What the planner chose, as JSON takes it: the stem as step 1, the head as part of the last."""
    stem = plan.stem.layer
    steps = [
        _described(stem.name, [stem.name], "stem", stem, plan.micros[0]) | {"ctas": plan.layers[0].split.ranks, "k_steps": plan.stem.steps}
    ]
    for number, (of, micros) in enumerate(zip(plan.layers, plan.micros[1:], strict=True), 1):
        layers = [of.layer.name, *(layer.name for layer in plan.head.layers if number == len(plan.layers))]
        steps.append(
            _described(of.layer.name, layers, "convolution", of.layer, micros)
            | {
                "tile": dataclasses.asdict(of.cut.tile),
                "split": dataclasses.asdict(of.split),
                "ctas": of.split.ranks,
                "k_steps": of.cut.steps,
                "shared_bytes": plan.shared,
                "fetched_weight_bytes": of.block_bytes,
                "fetched_in_step": plan.places[f"weights {number}"].first,
                "fetched_patch_bytes": of.cut.patch_bytes,
                "pushed_bytes": pushed(of, plan.layers[number]) if number < len(plan.layers) else plan.head.outputs * 4,
            }
        )
    total = round(sum(plan.micros), 1)
    return {"schedule": "cluster", "waits_for": "cluster barriers", "input_dtype": input_dtype, "predicted_us": total, "steps": steps}


def _described(name: str, layers: list[str], kind: str, layer: Convolution, micros: float) -> dict[str, Any]:
    source, target = layer.input, layer.output
    shape = f"{source.channels}×{source.height}×{source.width} → {target.channels}×{target.height}×{target.width}"
    return {"name": name, "layers": layers, "kind": kind, "shape": shape, "tile": None, "predicted_us": round(micros, 2)}


def _table(plan: ClusterPlan, input_dtype: str) -> str:
    """The plan as a comment."""
    titles = ("step", "shape", "tile y×x×n, warps m·n·k", "parts y·x·n", "weights", "fetched in step", "patch", "pushed", "predicted µs")
    rows = [titles]
    found = described(plan, input_dtype)
    for number, step in enumerate(found["steps"]):
        of = plan.layers[number - 1] if number else None
        split = f"{of.split.parts_y}·{of.split.parts_x}·{of.split.parts_n}" if of else ""
        sizes = [str(step.get(key, "")) for key in ("fetched_weight_bytes", "fetched_in_step", "fetched_patch_bytes", "pushed_bytes")]
        rows.append(
            (" + ".join(step["layers"]), step["shape"], str(of.cut.tile) if of else "stem", split, *sizes, f"{step['predicted_us']:.2f}")
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    head = (
        f"Generated by accel: schedule cluster, {CTAS} CTAs, {plan.shared} bytes of shared memory each, image {input_dtype}; "
        f"{found['predicted_us']} µs predicted, a model's estimate."
    )
    places = [f"{item.name}: {item.place} … {item.place + item.size}, steps {item.first} … {item.last}" for item in plan.places.values()]
    return "\n".join(f"// {line}".rstrip() for line in (head, "Bytes are a CTA's.", "", *lines, "", "Shared memory:", *places)) + "\n"


# Weights.


def _packed(plan: ClusterPlan, input_dtype: str, pixels: tuple[Array, Array] | None) -> dict[str, Parts]:
    """What the templates read: of each layer a block a channel part, fragments of B, biases and the table of its K steps."""
    stem = plan.stem
    channels = padded(stem.layer.output.channels)
    tile = Tile(1, 1, channels, stem.warps_m, stem.warps_n, 1)
    cut = Cut(tile, stem.steps, stem.steps, stem.loads, 1, 1, 0, 0, 0, 0, 0, 0, 0.0, 0.0)
    first: dict[str, npt.NDArray[Any]] = {
        "WEIGHTS": fragments(gemm(stem.layer, cut), cut),
        "BIAS": _padded(stem.layer.bias, channels),
        "OFFSETS": _offsets_of(stem, plan.layers[0]),
    }
    if input_dtype == "uint8":
        if pixels is None or any(values.size != stem.layer.input.channels for values in pixels):
            raise UsageError("an image of bytes needs a scale and an offset for each channel", remedy="export with --embed-preprocess")
        first["PIXELS"] = np.stack([values.reshape(-1).astype(np.float32) for values in pixels], 1)
    found: dict[str, Parts] = {"stem": first}
    for number, of in enumerate(plan.layers, 1):
        found[str(number)] = {"WEIGHTS": _blocks(of)}
    found["head"] = {"WEIGHTS": _head_blocks(plan)}
    return found


def _head_blocks(plan: ClusterPlan) -> npt.NDArray[np.uint8]:
    """A row a channel part of the last convolution: logits × its channels in FP16, and the biases."""
    last = plan.layers[-1].cut
    weight, bias = _linear(plan)
    rows = np.pad(weight, ((0, 0), (0, last.channel_tiles * last.tile.n - weight.shape[1])))
    by_part = rows.reshape(len(rows), last.channel_tiles, last.tile.n).transpose(1, 0, 2)
    blocks = np.ascontiguousarray(by_part).view(np.uint8).reshape(last.channel_tiles, -1)
    biases = np.broadcast_to(_padded(bias, -(-bias.size // 4) * 4).view(np.uint8), (last.channel_tiles, -(-bias.size // 4) * 16))
    return np.concatenate([blocks, biases], 1)


def _linear(plan: ClusterPlan) -> tuple[npt.NDArray[np.float16], Array]:
    """Of the head, logits × channels; where there is no linear layer the mean itself is the answer."""
    linear = plan.head.linear
    if linear is None:
        return np.eye(plan.head.outputs, dtype=np.float16), np.zeros(plan.head.outputs, np.float32)
    return halves(linear.name, linear.weight), linear.bias


def _blocks(of: Layered) -> npt.NDArray[np.uint8]:
    parts, tile = of.split.parts_n, of.cut.tile
    weights = np.ascontiguousarray(fragments(gemm(of.layer, of.cut), of.cut)).view(np.uint8).reshape(parts, -1)
    biases = _padded(of.layer.bias, parts * tile.n).view(np.uint8).reshape(parts, -1)
    table = np.broadcast_to(k_offsets(of.layer, of.cut).reshape(-1).view(np.uint8), (parts, of.table_bytes))
    return np.concatenate([weights, biases, table], 1)


def _offsets_of(stem: Stem, first: Layered) -> npt.NDArray[np.int32]:
    """K steps × 4 × 4: bytes from a pixel's first tap in the raw picture to the values of a row of A that a lane has, by lane % 4."""
    layer = stem.layer
    rows, columns = raw_size(layer, first)
    step, q, i = np.indices((stem.steps, 4, 4))
    k = step * 16 + q * 2 + i % 2 + i // 2 * 8
    channel, tap = np.divmod(k, layer.kernel[0] * layer.kernel[1])
    y, x = np.divmod(tap, layer.kernel[1])
    return np.where(channel < layer.input.channels, (channel * rows * columns + y * columns + x) * 2, 0).astype(np.int32)


def _padded(values: Array, size: int) -> Array:
    return np.pad(values.astype(np.float32), (0, size - values.size))


def _blob(parts: Mapping[str, npt.NDArray[Any]]) -> tuple[dict[str, int], bytes]:
    offsets, blob = dict[str, int](), bytearray()
    for name, values in parts.items():
        offsets[name] = len(blob)
        blob += np.ascontiguousarray(values).tobytes()
        blob += bytes(-len(blob) % WEIGHT_ALIGNMENT)
    return offsets, bytes(blob)


# Source.


def _structs(plan: ClusterPlan, offsets: Mapping[str, int], arena: Mapping[str, int], input_dtype: str) -> Iterator[str]:
    names = _names(plan)
    places = {name: item.place for name, item in plan.places.items()}
    for number, (of, name) in enumerate(zip(plan.layers, names[1:], strict=True), 1):
        tile, split = of.cut.tile, of.split
        constants = _shapes(of.layer, padded(of.layer.input.channels)) | {
            "TILE_Y": tile.y,
            "TILE_X": tile.x,
            "TILE_N": tile.n,
            "PARTS_Y": split.parts_y,
            "PARTS_X": split.parts_x,
            "PARTS_N": split.parts_n,
            "WARPS_M": tile.warps_m,
            "WARPS_N": tile.warps_n,
            "WARPS_K": tile.warps_k,
            "STEPS": of.cut.steps,
            "CHUNK_STEPS": of.cut.chunk_steps,
            "PIXEL_PITCH": of.cut.pixel_pitch,
            "ROW_PITCH": of.cut.row_pitch,
            "WEIGHTS": offsets[f"{number} WEIGHTS"],
            "OUTPUT": arena[of.layer.name],
            "BLOCK_BARRIER": number * 8,
            "PATCH_BARRIER": (len(plan.layers) + number) * 8,
            "PUSHED": "true" if number > 1 else "false",
            "HELD": places[f"weights {number}"],
            "PATCH": places[f"patch {number}"],
            "SUMS": places[f"sums {number}"],
            "STAMP": number * 3 + 1,
        }
        yield _struct(name, of.layer.name, constants, f"Clustered<Of_{name}>")
    stem, head, last = plan.stem, plan.head, names[-1]
    constants = _shapes(stem.layer, stem.layer.input.channels) | {
        "SOURCE": SOURCES[input_dtype],
        "STEPS": stem.steps,
        "WARPS_M": stem.warps_m,
        "WARPS_N": stem.warps_n,
        "RAW": places["raw"],
        **{part: offsets[f"stem {part}"] for part in ("WEIGHTS", "BIAS", "OFFSETS", "PIXELS") if f"stem {part}" in offsets},
    }
    yield _struct(names[0], stem.layer.name, constants, f"Stem<Of_{names[0]}, Layer_{names[1]}>")
    constants = {
        "OUT_REAL": head.outputs,
        "PIXELS": head.pixels,
        "ROUNDED": "true" if head.linear else "false",
        "ACTIVATION": (head.linear.activation if head.linear else "none").upper(),
        "WEIGHTS": offsets["head WEIGHTS"],
        "BLOCK_BARRIER": 0,
        # The first patch is pushed by nobody.
        "SHARES_BARRIER": (len(plan.layers) + 1) * 8,
        **{name.upper(): places[name] for name in ("means", "shares")},
        "HELD": places["head"],
    }
    yield _struct(
        "head_", " + ".join(layer.name for layer in head.layers) or "the answer", constants, f"ClusterHead<Of_head_, Layer_{last}>"
    )


def _shapes(layer: Convolution, channels: int) -> dict[str, int | str]:
    found: dict[str, int | str] = {
        "CHANNELS": channels,
        "OUT_CHANNELS": padded(layer.output.channels),
        "ACTIVATION": layer.activation.upper(),
    }
    for field, shape in {"": layer.input, "OUT_": layer.output}.items():
        found[f"{field}HEIGHT"], found[f"{field}WIDTH"] = shape.height, shape.width
    for field, pair in {"KERNEL": layer.kernel, "STRIDE": layer.stride, "PAD": layer.padding}.items():
        found[f"{field}_Y"], found[f"{field}_X"] = pair
    return found


def _struct(name: str, title: str, constants: Mapping[str, int | str], template: str) -> str:
    types = {"SOURCE": "Source", "ACTIVATION": "Activation", "ROUNDED": "bool", "PUSHED": "bool"}
    lines = [f"    static constexpr {types.get(key, 'int')} {key} = {value};" for key, value in constants.items()]
    return "\n".join([f"// {title}", f"struct Of_{name} {{", *lines, "};", f"using Layer_{name} = {template};", ""])


def _names(plan: ClusterPlan) -> list[str]:
    return _identifiers([plan.stem.layer.name, *(of.layer.name for of in plan.layers)])


def _kernel(plan: ClusterPlan) -> Iterator[str]:
    names = [f"Layer_{name}" for name in _names(plan)]
    stem, layers, head = names[0], names[1:], "Layer_head_"
    lines = [
        "const Run run{image, weights, arena, logits, state, nullptr};",
        "stamp(run, 0);",
        "if (thread() == SENDER) {",
        f"    make_barriers({2 * len(layers) + 1});",
        *(f"    {layer}::expect_all();" for layer in (*layers, head)),
        f"    {layers[0]}::fetch_alone(run);",
        "}",
        "cluster_arrive();",
        f"{stem}::Prepared first;",
        f"{stem}::prepare(run, first);",
        *_clearings(plan, layers, 0),
        "cluster_wait();  // all CTAs have begun, and can be sent to",
        "if (thread() == SENDER) {",
        *_fetches(plan, layers, 0),
        "}",
        f"{stem}::store_pixels(first);",
        "sync();",
        "stamp(run, 1);",
        f"{stem}::finish(first);",
        "stamp(run, 2);",
    ]
    for number, layer in enumerate(layers, 1):
        ready, fetches = f"ready_{number}", list(_fetches(plan, layers, number))
        lines += ["", f"// Step {number}", f"{layer}::Prepared {ready};", f"{layer}::prepare({ready});"]
        # All of this CTA have done the step before, and their weights are in registers: sums may lie where these were.
        lines += ["sync();", f"stamp(run, {3 * number});", *(["cluster_wait();"] if number > 1 else [])]
        lines += ["if (thread() == SENDER) {", "    before_blocks();", *fetches, "}"] if fetches else []
        lines += _clearings(plan, layers, number)
        if number < len(layers):
            lines += [
                f"{layer}::compute<PushedTo<{layer}, {layers[number]}>>(run, {ready});",
                f"stamp(run, {3 * number + 2});",
                "cluster_arrive();",
            ]
        else:
            lines += [
                f"{layer}::compute<{head}>(run, {ready});",
                f"stamp(run, {3 * number + 2});",
                f"{head}::push_shares();",
                f"{head}::answer(run);",
            ]
    lines += [f"stamp(run, {3 * len(layers) + 3});"]
    body = "\n".join(f"    {line}".rstrip() for line in lines)
    yield f'extern "C" __global__ void __launch_bounds__(THREADS, 1) cluster({PARAMETERS}) {{\n{body}\n}}\n'


def _fetches(plan: ClusterPlan, layers: Sequence[str], step: int) -> Iterator[str]:
    """The blocks of weights that one thread sends for in a step, without the first."""
    names = {f"weights {number}": layer for number, layer in enumerate(layers[1:], 2)} | {"head": "Layer_head_"}
    for name, layer in names.items():
        if plan.places[name].first == step:
            yield f"    {layer}::fetch{'_alone' if step == 1 else ''}(run);"


def _clearings(plan: ClusterPlan, layers: Sequence[str], step: int) -> Iterator[str]:
    """The patches whose borders are cleared in a step; the first is the stem's, zeros and all."""
    for number, layer in enumerate(layers[1:], 2):
        if plan.places[f"patch {number}"].first == step:
            yield f"{layer}::clear_border();"
