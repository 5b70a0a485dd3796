"""Places in the shared memory of one CTA of a cluster, for things that live for some steps only."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Sequence

SHARED = 227 * 1024
"""Bytes a CTA of sm_90 can have."""
BARRIER_BYTES = 128
"""Of the barriers of blocks, 8 bytes each."""
ALIGNMENT = 128


@dataclasses.dataclass(frozen=True)
class Placed:
    """Something in shared memory: `place` in bytes, and the steps in which it lives, both ends included."""

    name: str
    place: int
    size: int
    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Something that needs a place: the earliest and the latest step with which its life may begin, and the step with which it ends."""

    name: str
    size: int
    earliest: int
    latest: int
    end: int


def placed(order: Sequence[Wanted], draw: random.Random | None) -> dict[str, Placed] | None:
    """Places taken one after another, each life begun as late as it may; then, in the order of need, as early as there is room.

    Args:
        draw: decides between the lowest place and the highest; without it all are the lowest.
    """

    def from_above() -> bool:
        return draw is not None and draw.random() < 0.5

    found = {"barriers": Placed("barriers", 0, BARRIER_BYTES, 0, max(item.end for item in order))}
    for item in order:
        place = _gap(found.values(), item.size, item.latest, item.end, from_above())
        if place is None:
            return None
        found[item.name] = Placed(item.name, place, item.size, item.latest, item.end)
    for item in sorted(order, key=lambda item: item.end):
        others = [other for other in found.values() if other.name != item.name]
        for first in range(item.earliest, item.latest):
            if (place := _gap(others, item.size, first, item.end, from_above())) is not None:
                found[item.name] = Placed(item.name, place, item.size, first, item.end)
                break
    return found


def _gap(items: Iterable[Placed], size: int, first: int, last: int, above: bool) -> int | None:
    """The lowest place (or the highest) of `size` bytes that nothing else has in the steps from `first` to `last`."""
    taken = sorted((item.place, item.place + item.size) for item in items if item.first <= last and first <= item.last)
    gaps, free = [], 0
    for start, end in (*taken, (SHARED, SHARED)):
        if free + size <= start:
            gaps.append((start - size) // ALIGNMENT * ALIGNMENT if above else free)
        free = max(free, -(-end // ALIGNMENT) * ALIGNMENT)
    return (gaps[-1] if above else gaps[0]) if gaps else None
