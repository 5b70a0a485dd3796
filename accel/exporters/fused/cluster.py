"""The plan of the schedule `cluster`: how each layer is cut over the CTAs of one cluster, and what lies where in their shared memory.

Steps: 0 is the first convolution (the stem), which every CTA computes for its own patch of the next; 1 … n the others, one cluster barrier
behind each; the linear layer is the end of step n. Everything in shared memory has a place for the steps in which it lives.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
from collections.abc import Iterator, Sequence

from accel.errors import UnsupportedOperator
from accel.exporters.fused.cluster_chain import Head, chain_of
from accel.exporters.fused.cluster_places import SHARED, Placed, Wanted, placed
from accel.exporters.fused.network import Convolution, Network, refused
from accel.exporters.fused.tiles import (
    CLOCK,
    LATENCY,
    MULTIPLY_EVERY,
    MULTIPLY_LATENCY,
    SM_BYTES_A_CYCLE,
    THREADS,
    WARPS,
    Cut,
    Tile,
    _row_pitch,
    k_steps,
    padded,
)

CTAS = 16
"""Of the cluster: the most that Hopper takes, with the attribute for sizes that are not portable."""
REGISTERS = 232
"""A lane's, of 255, in the estimate: one CTA of 256 threads an SM."""
ORDERS = 200
"""In which the places in shared memory are given out, until one is the best."""
PRICES = (0.0, 0.02, 0.03, 0.04, 0.06, 0.08, 0.16)
"""Cycles a byte of weights counts beside the time: the dearer, the less is fetched by several CTAs."""

# The model: cycles. The rate of remote stores was measured on an H200 (shared/reference/latency-floor.md).
ARRIVAL = 300
"""From the last byte pushed to the first instruction that uses it; assumed (a cluster barrier of 16 CTAs takes 360)."""
PUSH_BYTES_A_CYCLE = 21
"""Remote stores of a CTA."""
PORT_BYTES_A_CYCLE = 400
"""From the L2 to the one GPC in which all CTAs of the cluster are; assumed, not measured. What several of them need passes once."""
BEGUN = 600
"""Until all CTAs are known to have begun; assumed."""
PROLOGUE = 900
"""From the kernel's first instruction to the image's pixels in shared memory; assumed."""
TAIL, ROUND = 200, 100
"""Of a step: adding up, the shuffles and the first store, in latency; and what a second round adds to that. Assumed."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Pixel parts along y and x and channel parts, one a CTA, and how the 8 warps of it stand along pixels, channels and K."""

    parts_y: int
    parts_x: int
    parts_n: int
    warps_m: int
    warps_n: int
    warps_k: int

    @property
    def parts(self) -> int:
        return self.parts_y * self.parts_x

    @property
    def ranks(self) -> int:
        return self.parts * self.parts_n


@dataclasses.dataclass(frozen=True, eq=False)
class Layered:
    """One convolution behind the stem, split.

    Attributes:
        cut: as pack.py takes it: a channel tile a channel part, `pixel_tiles` pixel parts, bytes of the patch of one CTA.
        patch: its height and width in pixels. patch_bytes, sums_bytes, table_bytes: in shared memory. block_bytes: weights, biases and the
            table of K steps of a CTA, which come together.
        multiply, adding, reading: cycles of a CTA: of the multiplications, of what follows up to the first store, of its weights' way to
            registers. rounds: what the first of two computed is pushed while the second multiplies.
    """

    layer: Convolution
    split: Split
    cut: Cut
    patch: tuple[int, int]
    patch_bytes: int
    block_bytes: int
    sums_bytes: int
    table_bytes: int
    multiply: float
    adding: float
    reading: float
    rounds: int

    @property
    def cycles(self) -> float:
        return self.multiply + self.adding


@dataclasses.dataclass(frozen=True)
class Stem:
    """The first convolution: its warps along pixels and channels, and 16-byte loads of weights a lane."""

    layer: Convolution
    warps_m: int
    warps_n: int
    steps: int
    loads: int
    raw_bytes: int
    cycles: float


@dataclasses.dataclass(frozen=True)
class ClusterPlan:
    """Attributes:
    places: by name: `raw`, `means`, `shares`, `head`, and `weights`, `patch`, `sums` with the number of a layer (`patch 1`).
    shared: bytes a CTA. micros: of each step, 0 the stem, by the model.
    """

    stem: Stem
    layers: tuple[Layered, ...]
    head: Head
    places: dict[str, Placed]
    shared: int
    micros: tuple[float, ...]


def plan_cluster(network: Network) -> ClusterPlan:
    """Plan `network` for one cluster.

    Raises:
        UnsupportedOperator: a layer that this schedule does not compute, or weights that have no room, with the bytes.
    """
    convolutions, head = chain_of(network)
    candidates = [list(_layered(layer)) for layer in convolutions[1:]]
    for layer, found in zip(convolutions[1:], candidates, strict=True):
        if not found:
            raise refused(layer.name, "convolution", f"no split of it over {CTAS} CTAs fits into their registers")
    best: ClusterPlan | None = None
    for chosen in dict.fromkeys(_choose(convolutions[0], candidates, price) for price in PRICES):
        stem = _stem(convolutions[0], chosen[0])
        arranged = _arranged(stem, chosen, head) if stem else None
        if not stem or not arranged:
            continue
        places, micros = arranged
        if best is None or sum(micros) < sum(best.micros):
            best = ClusterPlan(stem, chosen, head, places, max(item.place + item.size for item in places.values()), micros)
    if best is None:
        weights = sum(padded(layer.output.channels) * k_steps(layer) * 32 for layer in convolutions)
        raise UnsupportedOperator(
            f"the schedule cluster has no room for this network: its weights take {weights} bytes, and the shared memory of {CTAS} CTAs "
            f"has {CTAS * SHARED}, in which activations lie too and two layers' weights at a time must",
            remedy="use the schedule chain or grid",
        )
    return best


# Splits of one layer.


def _layered(layer: Convolution) -> Iterator[Layered]:
    """Each way to divide a layer among the CTAs, with the warps that the model prefers there."""
    height, width, pieces = layer.output.height, layer.output.width, padded(layer.output.channels) // 8
    for parts_y, parts_x, parts_n in itertools.product((1, 2, 4, 8, 16), repeat=3):
        if parts_y * parts_x * parts_n > CTAS or parts_y > height or parts_x > width or parts_n > pieces:
            continue
        ways = [
            found
            for m, n in itertools.product((1, 2, 4, 8), repeat=2)
            if m * n <= WARPS and (found := _split(layer, Split(parts_y, parts_x, parts_n, m, n, WARPS // (m * n))))
        ]
        for rounds in (1, 2):
            if these := [way for way in ways if way.rounds == rounds]:
                yield min(these, key=lambda way: way.cycles)


def _split(layer: Convolution, split: Split) -> Layered | None:
    """`layer` split so, or None where that does not fit."""
    tile_y, tile_x = -(-layer.output.height // split.parts_y), -(-layer.output.width // split.parts_x)
    tile_n = -(-padded(layer.output.channels) // 8 // split.parts_n) * 8
    fragments_m, fragments_n = -(-tile_y * tile_x // 16), tile_n // 8
    if fragments_m % split.warps_m or fragments_n % split.warps_n:
        return None
    mine = fragments_m // split.warps_m * (fragments_n // split.warps_n)
    mine_m, mine_n = fragments_m // split.warps_m, fragments_n // split.warps_n
    steps = k_steps(layer)
    a_warp = -(-steps // split.warps_k)
    loads = -(-a_warp * mine_n // 2)
    rounds = 2 if mine_m % 2 == 0 else 1
    sets = 1 if mine // rounds >= 4 else 2 if mine // rounds >= 2 else 4
    registers = 4 * loads + 4 * mine // rounds * sets + mine_m + 60
    patch = tuple((tile - 1) * stride + kernel for tile, stride, kernel in zip((tile_y, tile_x), layer.stride, layer.kernel, strict=True))
    columns = layer.stride[1] * -(-patch[1] // layer.stride[1])
    pixel_pitch = padded(layer.input.channels) * 2 + 16
    row_pitch, conflicts = _row_pitch(tile_y, tile_x, layer.stride[0], columns, pixel_pitch)
    patch_bytes, weight_bytes = patch[0] * row_pitch, loads * split.warps_n * split.warps_k * 512
    table_bytes = split.warps_k * -(-a_warp // 4) * 16
    sums_bytes = split.warps_k * fragments_m * fragments_n * 512
    if registers > REGISTERS or patch_bytes + weight_bytes + sums_bytes > SHARED:
        return None
    multiply = (
        max(2 * a_warp * mine * MULTIPLY_EVERY, rounds * a_warp / sets * MULTIPLY_LATENCY, WARPS * a_warp * mine_m * 4 * conflicts) + 60
    )
    adding = WARPS * mine * 4 + split.warps_k * fragments_m * fragments_n * 4 + TAIL + (rounds - 1) * ROUND
    cut = Cut(
        tile=Tile(tile_y, tile_x, tile_n, split.warps_m, split.warps_n, split.warps_k),
        steps=steps,
        chunk_steps=a_warp,
        loads=loads,
        pixel_tiles=split.parts,
        channel_tiles=split.parts_n,
        pixel_pitch=pixel_pitch,
        row_pitch=row_pitch,
        patch_bytes=patch[0] * patch[1] * padded(layer.input.channels) * 2,
        weight_bytes=weight_bytes,
        shared=0,
        registers=registers,
        body_us=0.0,
        bandwidth_us=0.0,
    )
    return Layered(
        layer=layer,
        split=split,
        cut=cut,
        patch=(patch[0], patch[1]),
        patch_bytes=patch_bytes,
        block_bytes=weight_bytes + tile_n * 4 + table_bytes,
        sums_bytes=sums_bytes,
        table_bytes=table_bytes,
        multiply=multiply,
        adding=adding,
        reading=WARPS * loads * 4.0,
        rounds=rounds,
    )


def _stem(layer: Convolution, first: Layered) -> Stem | None:
    """The first convolution for the patch of the next one."""
    steps, pieces = k_steps(layer), padded(layer.output.channels) // 8
    fragments_m = -(-first.patch[0] * first.patch[1] // 16)
    best: tuple[tuple[int, int], Stem] | None = None
    for warps_n in (1, 2, 4, 8):
        if pieces % warps_n:
            continue
        mine_n, warps_m = pieces // warps_n, WARPS // warps_n
        loads, rounds = -(-steps * mine_n // 2), -(-fragments_m // warps_m)
        rows, columns = raw_size(layer, first)
        values = rows * columns * layer.input.channels
        registers = 4 * loads + 6 * mine_n + 4 * steps + -(-values // THREADS) + 50
        if registers > REGISTERS:
            continue
        cycles = PROLOGUE + -(-values // THREADS) * 30 + rounds * (steps * (40 + mine_n * MULTIPLY_EVERY * 2) + mine_n * 16 + 60)
        rank = cycles, loads
        if best is None or rank < best[0]:
            best = rank, Stem(layer, warps_m, warps_n, steps, loads, values * 2, cycles)
    return best[1] if best else None


def raw_size(stem: Convolution, first: Layered) -> tuple[int, int]:
    """Rows and columns of the picture that the stem reads for one patch of the next layer."""
    rows, columns = ((size - 1) * stride + kernel for size, stride, kernel in zip(first.patch, stem.stride, stem.kernel, strict=True))
    return rows, columns


def pushed(before: Layered, after: Layered) -> int:
    """The most bytes that a CTA of `before` pushes to those of `after`."""
    sizes = zip(
        (before.cut.tile.y, before.cut.tile.x),
        (before.split.parts_y, before.split.parts_x),
        (before.layer.output.height, before.layer.output.width),
        (after.cut.tile.y, after.cut.tile.x),
        (after.split.parts_y, after.split.parts_x),
        after.layer.stride,
        after.layer.padding,
        after.patch,
        strict=True,
    )
    along = [_copies(*of) for of in sizes]
    return along[0] * along[1] * before.cut.tile.n * 2 * after.split.parts_n


def received(layer: Layered) -> int:
    """The most bytes that come to a CTA's patch: those of it inside the image."""
    of, split = layer.layer, layer.split
    rows = _inside(layer.cut.tile.y, split.parts_y, of.stride[0], of.padding[0], layer.patch[0], of.input.height)
    columns = _inside(layer.cut.tile.x, split.parts_x, of.stride[1], of.padding[1], layer.patch[1], of.input.width)
    return rows * columns * padded(of.input.channels) * 2


@functools.lru_cache(maxsize=4096)
def _inside(tile: int, parts: int, stride: int, padding: int, patch: int, size: int) -> int:
    """Rows or columns of a patch inside the image; of the part that has the most."""
    firsts = [part * tile * stride - padding for part in range(parts)]
    return max(min(first + patch, size) - max(first, 0) for first in firsts)


@functools.lru_cache(maxsize=4096)
def _copies(tile: int, parts: int, size: int, next_tile: int, next_parts: int, stride: int, padding: int, patch: int) -> int:
    """Rows or columns of a tile, each counted as often as next tiles have it in their patch; of the tile with the most."""
    firsts = [part * next_tile * stride - padding for part in range(next_parts)]
    return max(
        sum(first <= row < first + patch for row in range(part * tile, min(size, (part + 1) * tile)) for first in firsts)
        for part in range(parts)
    )


def _handing_on(before: Layered, after: Layered) -> float:
    """Cycles from the last result to the next layer's first multiplication."""
    push = max(pushed(before, after), received(after)) / PUSH_BYTES_A_CYCLE
    if before.rounds == 2:
        push = push / 2 + max(0.0, push - before.multiply) / 2
    return max(push + ARRIVAL, after.reading)


def _choose(stem: Convolution, candidates: Sequence[Sequence[Layered]], price: float) -> tuple[Layered, ...]:
    """A split a layer, of the least cycles in all, where a byte of weights costs `price` of them."""
    ways: list[tuple[float, tuple[Layered, ...]]] = []
    for way in candidates[0]:
        if first := _stem(stem, way):
            ways.append((first.cycles + way.cycles + price * way.block_bytes, (way,)))
    for layer in candidates[1:]:
        ways = [
            min(
                ((cost + _handing_on(path[-1], way) + way.cycles + price * way.block_bytes, (*path, way)) for cost, path in ways),
                key=lambda found: found[0],
            )
            for way in layer
        ]
    return min(ways, key=lambda found: found[0])[1]


# Places in shared memory.


def _arranged(stem: Stem, layers: Sequence[Layered], head: Head) -> tuple[dict[str, Placed], tuple[float, ...]] | None:
    """A place for everything with which the steps take the least time, or None: the best of ORDERS orders, the same ones in every run."""
    wanted, draw = _wanted(stem, layers, head), random.Random(0)
    best: tuple[dict[str, Placed], tuple[float, ...]] | None = None
    # In the order of their lives, the large ones first; beyond the first turns by chance.
    by_need = sorted(wanted, key=lambda item: (item.end, -item.size))
    for turn in range(ORDERS):
        order = by_need if turn <= 1 else draw.sample(wanted, len(wanted))
        found = placed(order, draw if turn % 2 else None)
        if found is None:
            continue
        for number, of in enumerate(layers, 1):
            place = found[f"weights {number}"].place
            found.setdefault(f"sums {number}", Placed(f"sums {number}", place, of.sums_bytes, number, number))
        micros = _micros(stem, layers, found)
        if best is None or sum(micros) < sum(best[1]):
            best = found, micros
    return best


def _wanted(stem: Stem, layers: Sequence[Layered], head: Head) -> list[Wanted]:
    last = len(layers)
    tile = layers[-1].cut.tile
    # What peers push in step i - 1 comes when this CTA has passed its step i - 2; the first of them when it has begun.
    pushed_into = {i: 0 if i <= 2 else i - 1 for i in range(1, last + 2)}
    found = [Wanted("raw", stem.raw_bytes, 0, 0, 0)]
    found += [Wanted("shares", CTAS * head.outputs * 4, pushed_into[last + 1], pushed_into[last + 1], last + 1)]
    found += [Wanted("means", -(-tile.y * tile.x // 16) * tile.n * 4, last, last, last)]
    for i, of in enumerate(layers, 1):
        found.append(Wanted(f"patch {i}", of.patch_bytes, pushed_into[i], pushed_into[i], i))
        found.append(Wanted(f"weights {i}", of.block_bytes, 0, i - 1, i))
        # Sums may lie where the weights were, which are in registers then.
        if of.sums_bytes > of.cut.weight_bytes:
            found.append(Wanted(f"sums {i}", of.sums_bytes, i, i, i))
    found.append(Wanted("head", head.outputs * tile.n * 2 + -(-head.outputs // 4) * 16, 0, last - 1, last))
    return found


def _micros(stem: Stem, layers: Sequence[Layered], places: dict[str, Placed]) -> tuple[float, ...]:
    """µs of each step by the model: blocks of weights come one after another, from the step on in which they have room."""
    now, port, arrived, found = 0.0, 0.0, dict[int, float](), list[float]()
    for step in range(len(layers) + 1):
        begun = now
        for number, of in enumerate(layers, 1):
            if places[f"weights {number}"].first == step:
                # Each CTA reads its own where it is not known that the others are ready for it; else a slice, for all of its channel part.
                copies = of.split.ranks if number == 1 or step == 1 else of.split.parts_n
                sent = now + (BEGUN if step == 0 and number > 1 else 0) + LATENCY
                port = max(port, sent) + max(of.block_bytes * copies / PORT_BYTES_A_CYCLE, of.block_bytes / SM_BYTES_A_CYCLE)
                arrived[number] = port
        if step == 0:
            now += stem.cycles
        else:
            here = layers[step - 1]
            now = max(now, arrived[step]) + here.cycles
            now += _handing_on(here, layers[step]) if step < len(layers) else 2 * TAIL + ARRIVAL
        found.append((now - begun) / CLOCK / 1000)
    return tuple(found)
