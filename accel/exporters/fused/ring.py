"""Shared memory of a grid that waits for data: what its steps work in, and behind that a ring in which weights wait for their step."""

from __future__ import annotations

from collections.abc import Sequence

from accel.exporters.fused.plan import Step
from accel.exporters.fused.tiles import THREADS

FURTHEST_AHEAD = 3
"""Steps that the grid fetches weights ahead, where they fit."""
GRID_SHARED = 227 * 1024
"""Bytes a CTA of sm_90, of which the grid has one an SM."""


def hold_weights(steps: Sequence[Step], ahead: int = FURTHEST_AHEAD) -> tuple[dict[str, int], int, int]:
    """Where in shared memory the weights of steps wait: step → offset, how many steps ahead they are fetched, and bytes of a CTA in all.

    A ring behind the memory that steps work in: weights are written `distance` steps before they are read into registers.
    """
    first = work(steps)[1] + -(-(len(steps) + 1) * 8 // 128) * 128  # and a barrier a step, for weights that come in blocks
    sizes = [held_bytes(step) for step in steps]
    for distance in range(min(ahead, len(steps)), 0, -1):
        for places in (_in_a_row(sizes, first), _at_both_ends(sizes, first)):
            spans = [range(place, place + size) for place, size in zip(places, sizes, strict=True)]
            # While step s computes, the weights of s + 1 … s + distance are there or under way.
            apart = all(
                not (spans[a] and spans[b]) or spans[a].stop <= spans[b].start or spans[b].stop <= spans[a].start
                for a in range(len(steps))
                for b in range(a + 1, min(a + distance, len(steps)))
            )
            if apart and all(first <= span.start and span.stop <= GRID_SHARED for span in spans):
                held = {step.name: place for step, place, size in zip(steps, places, sizes, strict=True) if size}
                return held, distance, max(span.stop for span in spans)
    return {}, 0, first


def _in_a_row(sizes: Sequence[int], first: int) -> list[int]:
    places, next_place = [], first
    for size in sizes:
        places.append(next_place if next_place + size <= GRID_SHARED else first)
        next_place = places[-1] + size
    return places


def _at_both_ends(sizes: Sequence[int], first: int) -> list[int]:
    """In turn, so that two of any size are apart that have room together."""
    return [(GRID_SHARED - size) // 128 * 128 if index % 2 else first for index, size in enumerate(sizes)]


def work(steps: Sequence[Step]) -> tuple[tuple[int, int], int]:
    """Where sums and patches of the steps' convolutions lie in shared memory, and bytes that they and the other steps take.

    Nobody reads sums where another step's patch or table is written: no barrier is needed between the two.
    """
    cuts = {step.name: step.cut for step in steps if step.cut}
    tables = {step.name: step.parts["OFFSETS"] for step in steps if step.cut}
    adding = {name: cut.tile.warps_k * cut.tile.y * cut.tile.x * cut.tile.n * 4 for name, cut in cuts.items()}
    sums = max(tables.values(), default=0)
    patch = sums + max(adding.values(), default=0)
    sizes = [patch + step.shared - tables[step.name] - adding[step.name] if step.cut else step.shared for step in steps]
    return (sums, patch), -(-max(sizes) // 128) * 128


def held_bytes(step: Step) -> int:
    """Bytes that are fetched ahead of a step: weights, unless they come in chunks, aims, and in blocks K offsets and biases."""
    if step.cut is None:
        return 0
    weights = step.cut.loads * THREADS * 16 if step.cut.tile.chunks == 1 else 0
    found = weights + step.parts.get("AIMS", 0) // step.cut.pixel_tiles + step.parts["OFFSETS"] + step.cut.tile.n * 4
    return -(-found // 128) * 128
