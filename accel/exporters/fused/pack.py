"""The weights of a plan as its templates read them: fragments of mma.m16n8k16's B for convolutions, rows for the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from accel.errors import UsageError
from accel.exporters.fused.network import INPUT, Array, Convolution, Linear
from accel.exporters.fused.plan import HEAD_OUTPUTS, Plan, Step
from accel.exporters.fused.tiles import THREADS, Cut, Tile, aim_loads, copies_of, padded, patch_of


def pack(plan: Plan, pixels: tuple[Array, Array] | None = None) -> bytes:
    """All parts at their offsets, zeros between them.

    Args:
        pixels: scale and offset a channel, for an image of bytes: the first layer computes byte · scale - offset.

    Raises:
        UsageError: bytes without `pixels`, or a weight that FP16 cannot hold.
    """
    blob = bytearray(plan.weight_bytes)
    for step in plan.steps:
        for start, data in placed(plan, step, pixels):
            blob[start : start + len(data)] = data
    return bytes(blob)


def placed(plan: Plan, step: Step, pixels: tuple[Array, Array] | None = None) -> Iterator[tuple[int, bytes]]:
    """The parts of one step: offset in the file of weights, and bytes; raises as `pack`."""
    for part, data in packed(step, pixels).items():
        yield plan.weights[step.name, part], data


def packed(step: Step, pixels: tuple[Array, Array] | None = None) -> dict[str, bytes]:
    """The parts of one step, wherever they will lie; raises as `pack`."""
    found = {part: np.ascontiguousarray(values).tobytes() for part, values in _parts(step, pixels).items()}
    for part, data in found.items():
        if len(data) != step.parts[part]:
            raise ValueError(f"{step.name} {part} has {len(data)} bytes, planned were {step.parts[part]}")
    return found


def _parts(step: Step, pixels: tuple[Array, Array] | None) -> Mapping[str, npt.NDArray[Any]]:
    layer = step.layers[-1]
    parts: dict[str, npt.NDArray[Any]]
    if isinstance(layer, Linear):
        rows = step.tiles * HEAD_OUTPUTS
        weight = np.zeros((rows, padded(layer.input.channels)), np.float16)
        weight[: layer.output.channels, : layer.input.channels] = halves(layer.name, layer.weight)
        return {"WEIGHTS": weight, "BIAS": _longer(layer.bias, rows)}
    if not isinstance(layer, Convolution):
        return {}
    if step.cut is None:
        channels = padded(layer.output.channels)
        taps = layer.weight.reshape(layer.output.channels, -1).T
        return {"WEIGHTS": np.pad(taps, ((0, 0), (0, channels - taps.shape[1]))), "BIAS": _longer(layer.bias, channels)}
    parts = {
        "WEIGHTS": fragments(gemm(layer, step.cut), step.cut),
        "BIAS": _longer(layer.bias, step.cut.channel_tiles * step.cut.tile.n),
        "OFFSETS": k_offsets(layer, step.cut),
    }
    if "AIMS" in step.parts:
        parts["AIMS"] = aims(layer, step.cut)
    if "PIXELS" in step.parts:
        if pixels is None or any(values.size != layer.input.channels for values in pixels):
            raise UsageError("an image of bytes needs a scale and an offset for each channel", remedy="export with --embed-preprocess")
        parts["PIXELS"] = np.stack([values.reshape(-1).astype(np.float32) for values in pixels], 1)
    return parts


def halves(name: str, weight: Array) -> npt.NDArray[np.float16]:
    """`weight` in FP16. UsageError: one is not finite there."""
    with np.errstate(over="ignore"):
        found = weight.astype(np.float16)
    if not np.isfinite(found).all():
        raise UsageError(f"layer {name!r} has a weight of {np.abs(weight).max():g}, which FP16 cannot hold", remedy="use another format")
    return found


def gemm(layer: Convolution, cut: Cut) -> npt.NDArray[np.float16]:
    """B of the implicit GEMM, K × channels, both padded with zeros to what the warps and tiles take."""
    weight = halves(layer.name, layer.weight)
    if layer.source == INPUT:
        columns = weight.reshape(weight.shape[0], -1).T
    else:
        taps = weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[1], weight.shape[0])
        extra = padded(weight.shape[1]) - weight.shape[1]
        columns = np.pad(taps, ((0, 0), (0, extra), (0, 0))).reshape(-1, weight.shape[0])
    k = cut.tile.warps_k * cut.tile.chunks * cut.chunk_steps * 16
    return np.pad(columns, ((0, k - columns.shape[0]), (0, cut.channel_tiles * cut.tile.n - columns.shape[1])))


def fragments(b: npt.NDArray[np.float16], cut: Cut) -> npt.NDArray[np.float16]:
    """B in the order of loads: channel tile, warp along N, warp along K, chunk, load, lane, two fragments of four values.

    Lane 4·c + q holds of column c the rows 2q, 2q+1, 2q+8, 2q+9 of a fragment of 16×8 (PTX ISA, mma.m16n8k16).
    """
    tile = cut.tile
    mine_n = tile.n // 8 // tile.warps_n
    split = b.reshape(tile.warps_k, tile.chunks, cut.chunk_steps, 2, 4, 2, cut.channel_tiles, tile.warps_n, mine_n, 8)
    #                 0            1            2                3  4  5  6                  7            8       9
    ordered = split.transpose(6, 7, 0, 1, 2, 8, 9, 4, 3, 5).reshape(-1, cut.chunk_steps * mine_n, 32, 4)
    even = np.pad(ordered, ((0, 0), (0, 2 * cut.loads - ordered.shape[1]), (0, 0), (0, 0)))
    return even.reshape(-1, cut.loads, 2, 32, 4).transpose(0, 1, 3, 2, 4)


def k_offsets(layer: Convolution, cut: Cut) -> npt.NDArray[np.int32]:
    """Warps along K × chunks × K steps, padded to four: bytes from a pixel's row in the patch to what the step reads, by tap and channels.

    A step beyond the last has weights of zero; it reads what step 0 reads, which is there and belongs to the same output.
    """
    tile = cut.tile
    steps = np.arange(tile.warps_k * tile.chunks * cut.chunk_steps)
    real = np.where(steps < cut.steps, steps, 0)
    if layer.source == INPUT:
        found = real * 32
    else:
        tap, piece = np.divmod(real, padded(layer.input.channels) // 16)
        y, x = np.divmod(tap, layer.kernel[1])
        found = y * cut.row_pitch + _column_of(layer, tile, x) * cut.pixel_pitch + piece * 32
    rows = found.reshape(tile.warps_k * tile.chunks, cut.chunk_steps)
    return np.pad(rows, ((0, 0), (0, -cut.chunk_steps % 4))).astype(np.int32)


def aims(layer: Convolution, cut: Cut) -> npt.NDArray[np.uint32]:
    """Pixel tile × warp × load × lane × 4 words: of each copy of a thread where it reads and writes, of each pair of outputs where it lies.

    A copy: the highest bit says that it is outside the image or none, bits 4 to 21 with zeros below are the byte of the layer that it
    reads; the rest, bits 22 to 30 above bits 0 to 3, counts 16 bytes of the patch, to which it writes.
    A pair: halves from the layer's place to the first channel of the tile that it belongs to, or all ones.
    """
    tile, height, width = cut.tile, layer.input.height, layer.input.width
    tiles_x = -(-layer.output.width // tile.x)
    first_y, first_x = np.divmod(np.arange(cut.pixel_tiles)[:, None], tiles_x)
    first_y, first_x = first_y * tile.y, first_x * tile.x
    columns, pieces = patch_of(layer, tile)[1], padded(layer.input.channels) // 8
    copies = np.arange(_mine(copies_of(layer, tile)))
    pixel, piece = np.divmod(np.where(copies < copies_of(layer, tile), copies, 0), pieces)
    y, x = np.divmod(pixel, columns)
    to = y * cut.row_pitch // 16 + _column_of(layer, tile, x) * (cut.pixel_pitch // 16) + piece
    from_y, from_x = first_y * layer.stride[0] - layer.padding[0] + y, first_x * layer.stride[1] - layer.padding[1] + x
    inside = (from_y >= 0) & (from_y < height) & (from_x >= 0) & (from_x < width)
    read = inside & (copies < copies_of(layer, tile))
    words = np.where(read, (from_y * width + from_x) * pieces + piece << 4, 1 << 31) | to >> 4 << 22 | to & 15
    pairs, across = np.arange(_mine(tile.y * tile.x * tile.n // 2)), tile.n // 8
    y, x = np.divmod(pairs // 64 // across * 16 + pairs % 2 * 8 + pairs % 64 // 8, tile.x)
    out_y, out_x = first_y + y, first_x + x
    channel = pairs // 64 % across * 8 + pairs // 2 % 4 * 2
    place = (out_y * layer.output.width + out_x) * padded(layer.output.channels) + channel
    places = np.where((out_y < layer.output.height) & (out_x < layer.output.width), place, (1 << 32) - 1)
    both = np.concatenate([words, places], 1)
    loads = aim_loads(layer, tile)
    both = np.pad(both, ((0, 0), (0, loads * 4 * THREADS - both.shape[1])))
    return both.reshape(-1, loads, 4, THREADS // 32, 32).transpose(0, 3, 1, 4, 2).astype(np.uint32)


def _column_of(layer: Convolution, tile: Tile, x: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Columns of the patch are sorted by their remainder modulo the stride, as convolution.cuh does."""
    stride = layer.stride[1]
    return x % stride * -(-patch_of(layer, tile)[1] // stride) + x // stride


def _mine(items: int) -> int:
    """What the threads take of `items`, one after another, all of them as many."""
    return -(-items // THREADS) * THREADS


def _longer(values: Array, size: int) -> Array:
    return np.pad(values.astype(np.float32), (0, size - values.size))
