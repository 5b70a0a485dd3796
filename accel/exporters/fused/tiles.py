"""How one convolution is cut into CTAs, warps and K steps, and which of the ways the model of its time prefers."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping

from accel.errors import UsageError
from accel.exporters.fused.network import INPUT, Convolution, refused

WARPS = 8
THREADS = 32 * WARPS
REGISTERS = 128
"""A lane's, so that 256 threads of the next kernel of a chain fit on the SM beside this one's."""
SHARED = 96 * 1024
"""Bytes a CTA: what sm_86 and sm_89 have (99 KB), and two of it fit on an SM of sm_90."""
HELD_WEIGHTS = 72
"""Registers a lane that weights may take; a longer K is fetched in chunks."""

NEAR = 1.5
"""Times the best cut's estimate up to which another kind of cut is worth timing: the model was 30 to 40 % off."""

AIMED_PIECES = 1 << 18
"""Of 16 bytes, of a layer's input: what pack.aims can tell apart."""

CLOCK = 1.7
"""Cycles a nanosecond of an H100 or H200 under such a load; assumed."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """y × x output pixels and n channels a CTA; its warps along m (pixels), n (channels) and k; chunks of weights that a warp fetches."""

    y: int
    x: int
    n: int
    warps_m: int
    warps_n: int
    warps_k: int
    chunks: int = 1

    def __str__(self) -> str:
        warps = f"{self.warps_m}·{self.warps_n}·{self.warps_k}"
        return f"{self.y}×{self.x}×{self.n}, warps {warps}" + (f", {self.chunks} chunks" if self.chunks > 1 else "")


@dataclasses.dataclass(frozen=True)
class Cut:
    """A layer in tiles, with what follows from that.

    Attributes:
        steps: K steps of 16 in all; chunk_steps: of one chunk of one warp.
        loads: 16-byte loads of weights a lane and chunk. registers: of weights, sums and what each thread stores, estimated.
        pixel_pitch, row_pitch: bytes from a pixel of the patch in shared memory to its neighbour, and to the one below.
        patch_bytes, weight_bytes: that a CTA fetches. shared: bytes a CTA.
        body_us: of a CTA behind the wait, by the model. bandwidth_us: that the L2 needs to hand out what all CTAs fetch.
    """

    tile: Tile
    steps: int
    chunk_steps: int
    loads: int
    pixel_tiles: int
    channel_tiles: int
    pixel_pitch: int
    row_pitch: int
    patch_bytes: int
    weight_bytes: int
    shared: int
    registers: int
    body_us: float
    bandwidth_us: float

    @property
    def tiles(self) -> int:
        return self.pixel_tiles * self.channel_tiles


def padded(channels: int) -> int:
    """Channels as they lie in the arena: a multiple of 16, the rest zeros."""
    return -(-channels // 16) * 16


def k_steps(layer: Convolution) -> int:
    """Steps of 16 of the implicit GEMM's K: taps × padded channels, or, from the image, taps × channels padded once."""
    taps = layer.kernel[0] * layer.kernel[1]
    return -(-taps * layer.input.channels // 16) if layer.source == INPUT else taps * padded(layer.input.channels) // 16


def patch_of(layer: Convolution, tile: Tile) -> tuple[int, int]:
    """Rows and columns of the input that a tile reads."""
    rows, columns = ((side - 1) * stride for side, stride in zip((tile.y, tile.x), layer.stride, strict=True))
    return rows + layer.kernel[0], columns + layer.kernel[1]


def copies_of(layer: Convolution, tile: Tile) -> int:
    """Pieces of 16 bytes of a tile's patch."""
    rows, columns = patch_of(layer, tile)
    return rows * columns * (padded(layer.input.channels) // 8)


def aim_loads(layer: Convolution, tile: Tile) -> int:
    """16-byte loads that tell a thread its copies of the patch and the places of its outputs, a word each (pack.aims)."""
    return -(-(-(-copies_of(layer, tile) // THREADS) + -(-tile.y * tile.x * tile.n // 2 // THREADS)) // 4)


def can_be_aimed(layer: Convolution) -> bool:
    """Whether 18 bits name 16 bytes of what it reads."""
    return layer.source != INPUT and layer.input.pixels * (padded(layer.input.channels) // 8) < AIMED_PIECES


def choose(layer: Convolution, sms: int, override: Mapping[str, int] | None = None) -> Cut:
    """The cut of the least estimated time, among those that fit; `override` fixes fields of Tile.

    Raises:
        UnsupportedOperator: none fits. UsageError: `override` names what Tile does not have, or leaves none that fits.
    """
    fields = {field.name for field in dataclasses.fields(Tile)}
    if override and not fields.issuperset(override):
        raise UsageError(
            f"tuning of {layer.name!r} names {sorted(set(override) - fields)}", remedy=f"choose among {', '.join(sorted(fields))}"
        )
    found = min(_cuts(layer, override), key=lambda one: _rank(one, sms), default=None)
    if found is None:
        if override:
            raise UsageError(f"no tile of {layer.name!r} that fits has {dict(override)}", remedy="leave a field out")
        raise refused(layer.name, "convolution", f"no tile of it fits into {SHARED // 1024} KB of shared memory and {REGISTERS} registers")
    return found


def best(layer: Convolution, sms: int, count: int) -> list[Cut]:
    """`count` cuts to be timed, the model's choice first: the best of each number of pixels, channels and K splits, then of the rest.

    What the model is least sure of is what those three cost; cuts that are alike in them differ in what it counts exactly, as bytes and
    banks. What it says to take over NEAR times as long as the best does not come before those.
    """
    ranked = sorted(_cuts(layer, None), key=lambda one: _rank(one, sms))
    kinds: dict[tuple[int, int, int], Cut] = {}
    for one in ranked:
        if _cost(one, sms) <= NEAR * _cost(ranked[0], sms):
            kinds.setdefault((one.tile.y * one.tile.x, one.tile.n, one.tile.warps_k), one)
    first = list(kinds.values())[:count]
    return [*first, *(one for one in ranked if one not in first)][:count]


def _cuts(layer: Convolution, override: Mapping[str, int] | None) -> Iterator[Cut]:
    """All that fit and have what `override` fixes."""
    for tile in _tiles(layer):
        if override and any(getattr(tile, name) != value for name, value in override.items() if name != "chunks"):
            continue
        found = cut(layer, dataclasses.replace(tile, chunks=override["chunks"]) if override and "chunks" in override else tile)
        if found is not None:
            yield found


def _rank(found: Cut, sms: int) -> tuple[float, int, int]:
    return _cost(found, sms), found.tiles, found.shared


def _cost(found: Cut, sms: int) -> float:
    """µs of a layer beyond its barrier or launch: rounds of bodies, or the L2, whichever is longer, and what they do not overlap."""
    rounds = -(-found.tiles // sms)
    again = (rounds - 1) * _fetch_us(found.weight_bytes)
    fetch = _fetch_us(found.weight_bytes)
    body = rounds * found.body_us + again + max(0.0, fetch - HIDDEN_US) + 0.15 * fetch
    return max(body, found.bandwidth_us) + 0.25 * min(body, found.bandwidth_us)


def _tiles(layer: Convolution) -> Iterator[Tile]:
    sizes = [(y, x) for y, x in itertools.product((1, 2, 4, 8, 16), repeat=2) if 16 <= y * x <= 128]
    channels = padded(layer.output.channels)
    for (y, x), n, (m, k) in itertools.product(sizes, (8, 16, 32, 64), itertools.product((1, 2, 4, 8), repeat=2)):
        if n > channels or (m * k) > WARPS:
            continue
        # A tile that is much larger than the image computes what nobody stores.
        if y * x > 16 and ((y > 1 and y // 2 >= layer.output.height) or (x > 1 and x // 2 >= layer.output.width)):
            continue
        along_n = WARPS // (m * k)
        if (y * x // 16) % m == 0 and (n // 8) % along_n == 0:
            yield Tile(y, x, n, m, along_n, k)


@functools.lru_cache(maxsize=4096)
def _row_pitch(y: int, x: int, stride_y: int, columns: int, pixel_pitch: int) -> tuple[int, float]:
    """Bytes from a row of the patch to the next with the fewest bank conflicts of ldmatrix, and accesses each 8 rows then take."""
    best = (0, 9.0)
    for extra in range(8):
        pitch = columns * pixel_pitch + extra * 16
        phases = [
            max(_counts(((pixel // x) * stride_y * pitch + pixel % x * pixel_pitch) // 16 % 8 for pixel in range(first, first + 8)))
            for first in range(0, y * x, 8)
        ]
        average = sum(phases) / len(phases)
        if average < best[1]:
            best = pitch, average
    return best


def _counts(banks: Iterator[int]) -> list[int]:
    found = list(banks)
    return [found.count(bank) for bank in set(found)]


def cut(layer: Convolution, tile: Tile) -> Cut | None:
    """`layer` cut by `tile`, or None where that does not fit."""
    steps, from_image = k_steps(layer), layer.source == INPUT
    fragments_m, fragments_n = tile.y * tile.x // 16, tile.n // 8
    mine_m, mine_n = fragments_m // tile.warps_m, fragments_n // tile.warps_n
    a_warp = -(-steps // tile.warps_k)
    chunks = tile.chunks if tile.chunks > 1 else max(1, -(-(4 * -(-a_warp * mine_n // 2)) // HELD_WEIGHTS))
    chunk_steps = -(-a_warp // chunks)
    loads = -(-chunk_steps * mine_n // 2)
    pairs = tile.y * tile.x * tile.n // 2
    mine_pairs = -(-pairs // THREADS)
    sets = 1 if mine_m * mine_n >= 4 else 2 if mine_m * mine_n >= 2 else 4
    registers = 4 * loads + 4 * mine_m * mine_n * sets + 4 * mine_pairs + mine_m + 32
    patch_y = (tile.y - 1) * layer.stride[0] + layer.kernel[0]
    patch_x = (tile.x - 1) * layer.stride[1] + layer.kernel[1]
    columns = layer.stride[1] * -(-patch_x // layer.stride[1])
    fetched = min(patch_y, layer.input.height) * min(patch_x, layer.input.width) * 2  # the rest of the patch is zeros, from nowhere
    if from_image:
        pixel_pitch, row_pitch, conflicts = steps * 32 + 16, 0, 1.0
        patch, patch_bytes = tile.y * tile.x * pixel_pitch, fetched * layer.input.channels
    else:
        pixel_pitch = padded(layer.input.channels) * 2 + 16
        row_pitch, conflicts = _row_pitch(tile.y, tile.x, layer.stride[0], columns, pixel_pitch)
        patch, patch_bytes = patch_y * row_pitch, fetched * padded(layer.input.channels)
    shared = tile.warps_k * chunks * -(-chunk_steps // 4) * 16 + tile.warps_k * pairs * 8 + patch
    if shared > SHARED or registers > REGISTERS:
        return None
    pixel_tiles = -(-layer.output.height // tile.y) * -(-layer.output.width // tile.x)
    channel_tiles = -(-padded(layer.output.channels) // tile.n)
    weight_bytes = loads * chunks * 16 * 32 * tile.warps_k * tile.warps_n
    gathers = -(-tile.y * tile.x * steps * 16 // THREADS) if from_image else -(-patch_bytes // 16 // THREADS)
    cycles = _cycles(tile, steps, chunks, chunk_steps, mine_m, mine_n, sets, mine_pairs, conflicts, gathers, patch_bytes)
    everything = pixel_tiles * channel_tiles * (patch_bytes + weight_bytes)
    return Cut(
        tile=dataclasses.replace(tile, chunks=chunks),
        steps=steps,
        chunk_steps=chunk_steps,
        loads=loads,
        pixel_tiles=pixel_tiles,
        channel_tiles=channel_tiles,
        pixel_pitch=pixel_pitch,
        row_pitch=row_pitch,
        patch_bytes=patch_bytes,
        weight_bytes=weight_bytes,
        shared=shared,
        registers=registers,
        body_us=cycles / CLOCK / 1000,
        bandwidth_us=everything / L2_BYTES_A_CYCLE / CLOCK / 1000,
    )


# The model: cycles, from public microbenchmarks of Hopper and rounded; none measured here.
LATENCY = 550
"""From a load of the L2 under light load, over the copy's arrival and a barrier, to the first instruction that uses it."""
SM_BYTES_A_CYCLE = 40
L2_BYTES_A_CYCLE = 3000
HIDDEN_US = 0.7
"""Of the fetching of weights, behind a barrier or the end of the layer before."""
MULTIPLY_LATENCY, MULTIPLY_EVERY = 33, 7
"""mma.m16n8k16: until the next that adds to the same sums, and between two of the 2 warps of an SM's quarter."""


def _fetch_us(size: int) -> float:
    return (LATENCY + size / SM_BYTES_A_CYCLE) / CLOCK / 1000


def _cycles(
    tile: Tile,
    steps: int,
    chunks: int,
    chunk_steps: int,
    mine_m: int,
    mine_n: int,
    sets: int,
    mine_pairs: int,
    conflicts: float,
    gathers: int,
    patch_bytes: int,
) -> float:
    """Of one CTA from the end of its wait to its last store."""
    arrival = LATENCY + max(patch_bytes / SM_BYTES_A_CYCLE, gathers * 8 * 2)
    per_warp = chunk_steps * chunks
    reads = WARPS * per_warp * mine_m * 4 * conflicts
    chain = per_warp / sets * MULTIPLY_LATENCY
    multiplications = 2 * per_warp * mine_m * mine_n * MULTIPLY_EVERY
    again = (chunks - 1) * LATENCY
    adding = WARPS * mine_m * mine_n * 4 + mine_pairs * tile.warps_k * WARPS * 2 + 200
    return arrival + max(reads, chain, multiplications) + 60 + again + adding
