"""The plan of a network: its steps, each with the constants that a template takes, and where weights and activations lie.

A step is a kernel of the chain, or what lies between two barriers of the grid. The plan does not depend on the schedule, so that one file
of weights serves all of them.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal

from accel.errors import UsageError
from accel.exporters.fused.network import INPUT, Convolution, Layer, Linear, Network, Pool, refused
from accel.exporters.fused.program import ARENA_ALIGNMENT
from accel.exporters.fused.tiles import CLOCK, LATENCY, THREADS, WARPS, Cut, aim_loads, can_be_aimed, choose, padded

Kind = Literal["convolution", "windows", "head", "partial_head"]
Tuning = Mapping[str, Mapping[str, int]]
"""Layer → fields of tiles.Tile that are fixed; the rest is chosen."""

HEAD_OUTPUTS = 16
"""Outputs a CTA of a linear layer computes."""
WEIGHT_ALIGNMENT = 128
SOURCES = {"float16": "IMAGE_HALF", "uint8": "IMAGE_BYTES"}


@dataclasses.dataclass(frozen=True)
class Step:
    """One or two layers that one template computes.

    Attributes:
        name: an identifier of C++. layers: one, or a global average with its linear layer.
        constants: of the template's struct, without the places of its weights. parts: of the weights, part → bytes.
        tiles: CTAs it has work for. shared: bytes a CTA. registers: estimated.
        cut: of a convolution. body_us, bandwidth_us: by the model, see Cut.
    """

    name: str
    kind: Kind
    layers: tuple[Layer, ...]
    constants: Mapping[str, int | str]
    parts: Mapping[str, int]
    tiles: int
    shared: int
    body_us: float
    bandwidth_us: float
    cut: Cut | None = None

    @property
    def layer_names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Steps in order; offset of each result in the arena; offset of each part of the weights, by (step, part)."""

    steps: tuple[Step, ...]
    sms: int
    input_dtype: str
    outputs: Mapping[str, tuple[int, tuple[int, int, int]]]
    arena_bytes: int
    weights: Mapping[tuple[str, str], int]
    weight_bytes: int


def make(network: Network, *, sms: int, input_dtype: str = "float16", tuning: Tuning | None = None) -> Plan:
    """Plan `network` for a GPU of `sms` SMs.

    Raises:
        UnsupportedOperator: a layer that no template computes, named with the reason. UsageError: an input dtype or tuning that is not.
    """
    if input_dtype not in SOURCES:
        raise UsageError(f"the fused engine cannot take {input_dtype} images", remedy=f"choose one of: {', '.join(SOURCES)}")
    unknown = set(tuning or {}) - {layer.name for layer in network.layers if isinstance(layer, Convolution)}
    if unknown:
        raise UsageError(f"tuning names {sorted(unknown)}, which are no convolutions of this network", remedy="name layers of the plan")
    groups = list(_groups(network))
    outputs, arena_bytes = _places([group[-1] for group in groups[:-1]])
    _refuse(network, groups)
    names = _identifiers([group[-1].name for group in groups])
    steps = []
    for group, name in zip(groups, names, strict=True):
        step = _step(name, group, network, outputs, sms, input_dtype, (tuning or {}).get(group[-1].name))
        steps.append(step)
    weights, weight_bytes = {}, 0
    for step in steps:
        for part, size in step.parts.items():
            weights[step.name, part] = weight_bytes
            weight_bytes += -(-size // WEIGHT_ALIGNMENT) * WEIGHT_ALIGNMENT
    return Plan(tuple(steps), sms, input_dtype, outputs, arena_bytes, weights, weight_bytes)


def _groups(network: Network) -> Iterator[tuple[Layer, ...]]:
    """Layers that one step computes: a global average that a linear layer alone reads goes with it."""
    readers: Counter[str] = Counter()
    for layer in network.layers:
        readers.update({layer.source, getattr(layer, "residual", None) or layer.source})
    held: tuple[Layer, ...] = ()
    for index, layer in enumerate(network.layers):
        later = network.layers[index + 1] if index + 1 < len(network.layers) else None
        joins = isinstance(layer, Pool) and layer.is_global and layer.how == "average"
        if joins and isinstance(later, Linear) and later.source == layer.name and readers[layer.name] == 1:
            held = (layer,)
            continue
        yield (*held, layer)
        held = ()


def _places(layers: list[Layer]) -> tuple[dict[str, tuple[int, tuple[int, int, int]]], int]:
    """Each result's place in the arena, none shared, so that every one can be looked at after a run."""
    found, offset = {}, 0
    for layer in layers:
        shape = layer.output.height, layer.output.width, padded(layer.output.channels)
        found[layer.name] = offset, shape
        offset += -(-shape[0] * shape[1] * shape[2] * 2 // ARENA_ALIGNMENT) * ARENA_ALIGNMENT
    return found, max(offset, ARENA_ALIGNMENT)


def _refuse(network: Network, groups: list[tuple[Layer, ...]]) -> None:
    for layer in network.layers:
        operator = type(layer).__name__.lower()
        if isinstance(layer, Convolution) and layer.groups > 1:
            if layer.source == INPUT:
                raise refused(layer.name, operator, "it reads the image in groups")
            if not layer.groups == layer.input.channels == layer.output.channels:
                raise refused(layer.name, operator, f"its {layer.groups} groups are neither one nor one a channel")
        elif layer.source == INPUT and not isinstance(layer, Convolution):
            raise refused(layer.name, operator, "only a convolution can read the image")
        if getattr(layer, "residual", None) == INPUT:
            raise refused(layer.name, operator, "it adds the image itself")
    last = groups[-1][-1]
    if last.output.pixels != 1:
        raise refused(last.name, type(last).__name__.lower(), f"the network's answer is {last.output}; one pixel is expected")


def _identifiers(names: list[str]) -> list[str]:
    """Names of C++ for names of layers, none twice."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower() or "layer"
        plain = plain if plain[0].isalpha() else f"layer_{plain}"
        found.append(plain if plain not in found else f"{plain}_{len(found)}")
    return found


def _step(
    name: str,
    group: tuple[Layer, ...],
    network: Network,
    outputs: Mapping[str, tuple[int, tuple[int, int, int]]],
    sms: int,
    input_dtype: str,
    override: Mapping[str, int] | None,
) -> Step:
    layer = group[-1]
    last = layer is network.layers[-1]
    source = group[0].source
    common: dict[str, int | str] = {
        "CHANNELS": group[0].input.channels if source == INPUT else padded(group[0].input.channels),
        "OUT_CHANNELS": padded(layer.output.channels),
        "OUT_REAL": layer.output.channels,
        "INPUT": 0 if source == INPUT else outputs[source][0],
        "OUTPUT": 0 if last else outputs[layer.name][0],
        "TO_LOGITS": "true" if last else "false",
        "ACTIVATION": getattr(layer, "activation", "none").upper(),
    }
    if isinstance(layer, Linear):
        return _head(name, group, common)
    residual = getattr(layer, "residual", None)
    common["RESIDUAL"] = outputs[residual][0] if residual else -1
    for field, pair in {"": (layer.input.height, layer.input.width), "OUT_": (layer.output.height, layer.output.width)}.items():
        common[f"{field}HEIGHT"], common[f"{field}WIDTH"] = pair
    for field, pair in {"KERNEL": layer.kernel, "STRIDE": layer.stride, "PAD": layer.padding}.items():
        common[f"{field}_Y"], common[f"{field}_X"] = pair
    if isinstance(layer, Pool) or layer.groups > 1:
        return _windows(name, layer, common)
    return _convolution(name, layer, common, choose(layer, sms, override), sms, input_dtype)


def _convolution(name: str, layer: Convolution, common: dict[str, int | str], cut: Cut, sms: int, input_dtype: str) -> Step:
    tile = cut.tile
    constants = common | {
        "SOURCE": SOURCES[input_dtype] if layer.source == INPUT else "ARENA",
        "TILE_Y": tile.y,
        "TILE_X": tile.x,
        "TILE_N": tile.n,
        "WARPS_M": tile.warps_m,
        "WARPS_N": tile.warps_n,
        "WARPS_K": tile.warps_k,
        "STEPS": cut.steps,
        "CHUNKS": tile.chunks,
        "CHUNK_STEPS": cut.chunk_steps,
        "PIXEL_PITCH": cut.pixel_pitch,
        "ROW_PITCH": cut.row_pitch,
        "PARTIALS": -1,
        "AIMS": -1,
        "AIMABLE": "true" if can_be_aimed(layer) else "false",
    }
    parts = {"WEIGHTS": cut.channel_tiles * cut.weight_bytes, "BIAS": cut.channel_tiles * tile.n * 4}
    parts["OFFSETS"] = tile.warps_k * tile.chunks * -(-cut.chunk_steps // 4) * 16
    # Not where a CTA has several tiles: all but the first would wait for them.
    if cut.tiles <= sms and can_be_aimed(layer):
        parts["AIMS"] = cut.pixel_tiles * aim_loads(layer, tile) * THREADS * 16
    if layer.source == INPUT and input_dtype == "uint8":
        parts["PIXELS"] = layer.input.channels * 8
    return Step(name, "convolution", (layer,), constants, parts, cut.tiles, cut.shared, cut.body_us, cut.bandwidth_us, cut)


def _windows(name: str, layer: Convolution | Pool, common: dict[str, int | str]) -> Step:
    channels, taps = padded(layer.output.channels), layer.kernel[0] * layer.kernel[1]
    items = layer.output.pixels * channels // 8
    constants = common | {"FACTOR": f"1.0f / {taps}" if isinstance(layer, Pool) and layer.how == "average" else "1.0f"}
    parts = {} if isinstance(layer, Pool) else {"WEIGHTS": taps * channels * 4, "BIAS": channels * 4}
    us = (LATENCY * max(1, taps / 16) + 200 + taps * 40) / CLOCK / 1000
    return Step(name, "windows", (layer,), constants, parts, -(-items // THREADS), 0, us, 0.0)


def _head(name: str, group: tuple[Layer, ...], common: dict[str, int | str]) -> Step:
    layer, pixels = group[-1], group[0].input.pixels
    channels = padded(group[0].input.channels)
    tiles = -(-layer.output.channels // HEAD_OUTPUTS)
    pieces = channels // 8
    groups = 1 if pieces >= THREADS else min(THREADS // pieces, pixels)
    shared = (groups + 1) * channels * 4
    if shared > 48 * 1024:
        raise refused(layer.name, "linear", f"it takes {layer.input.channels} features; more than {48 * 256 // 2} do not fit")
    constants = common | {"PIXELS": pixels, "TILE_N": HEAD_OUTPUTS}
    parts = {"WEIGHTS": tiles * HEAD_OUTPUTS * channels * 2, "BIAS": tiles * HEAD_OUTPUTS * 4}
    loads = -(-pixels // groups)
    us = (LATENCY * (1 + (loads - 1) // 8) + 4 * 60 + groups * 25 + HEAD_OUTPUTS // WARPS * 220 + 200) / CLOCK / 1000
    return Step(name, "head", group, constants, parts, tiles, shared, us, 0.0)
