"""The grid's tiles chosen by measurement: whole kernels, each of which differs from the current one in one layer, or in the order of its
work; what is faster alone is then tried together."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from accel.errors import AccelError
from accel.exporters.fused import ring, tiles
from accel.exporters.fused.apart import Apart, CannotMeasure, Died, opened
from accel.exporters.fused.chains import Part, median
from accel.exporters.fused.generate import Flow
from accel.exporters.fused.grid_kernels import Kernels, Way
from accel.exporters.fused.network import Convolution, Network
from accel.exporters.fused.partial_head import drawn_in
from accel.exporters.fused.plan import Plan, Tuning, make
from accel.exporters.fused.tiles import Tile
from accel.exporters.fused.tuning import COMPILING, is_faster, noise
from accel.progress import Progress, silent
from accel.types import Array

logger = logging.getLogger(__name__)

EACH = 5
"""Other cuts of a layer a round."""
CUTS = 21
"""Cuts of a layer in all rounds, the model's choice among them."""
PAUSES = (0, 100, 200, 300, 400, 600)
"""Cycles in front of a first look that are tried."""
GRACE = 0.5
"""Of the search's time, what it may take beyond it to time what is compiled: that takes a second or two, and its compilation took most."""
LAST_S = 1.0
"""Of the time, which is kept for what comes behind the rounds, beside one compilation."""


@dataclasses.dataclass(frozen=True)
class Change:
    """One layer's tile, or (no layer) a field of Flow, or several that make sense together."""

    layer: str | None
    tile: Tile | None = None
    field: str = ""
    value: int = 0
    more: tuple[tuple[str, int], ...] = ()

    @property
    def fields(self) -> dict[str, Any]:
        return {self.field: self.value, **dict(self.more)}

    def of(self, way: Way) -> Way:
        if self.layer is not None and self.tile is not None:
            return way.with_(self.layer, self.tile)
        return dataclasses.replace(way, flow=dataclasses.replace(way.flow, **self.fields))

    def is_in(self, way: Way) -> bool:
        return self.of(way) == way


@dataclasses.dataclass(frozen=True)
class Tried:
    """A change that was timed.

    Attributes:
        us: of the grid with it; None where it answered otherwise. own_us: of the grid without it, in the same turns.
    """

    change: Change
    us: float | None
    own_us: float


@dataclasses.dataclass(frozen=True)
class TunedGrid:
    """What the search found.

    Attributes:
        way: the fastest. start: with what it began: the model's tiles. rounds: that were begun. untried: layers for which the time did not
            suffice, with at least one cut.
        before_us, after_us: of the start and `way`, timed in turn at the end. noise_us: in those turns.
        killed: grids that ended the process in which they were timed, and what was said of it.
    """

    way: Way
    start: Way
    tried: tuple[Tried, ...]
    untried: tuple[str, ...]
    rounds: int
    before_us: float
    after_us: float
    noise_us: float
    killed: tuple[tuple[Way, str], ...] = ()

    @property
    def tuning(self) -> Tuning:
        return self.way.tuning

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it; `tried` has the changes of tiles, `tried_flow` those of the order of work."""
        told = [(one, {"us": None if one.us is None else round(one.us, 3), "own_us": round(one.own_us, 3)}) for one in self.tried]
        kept = {id(one): one.change.is_in(self.way) and not one.change.is_in(self.start) for one in self.tried}
        return {
            "before_us": round(self.before_us, 3),
            "after_us": round(self.after_us, 3),
            "noise_us": round(self.noise_us, 3),
            "rounds": self.rounds,
            "flow": dataclasses.asdict(self.way.flow),
            "untried": list(self.untried),
            "tried": [
                {"layer": one.change.layer, "tile": dataclasses.asdict(one.change.tile), **us, "kept": kept[id(one)]}
                for one, us in told
                if one.change.layer is not None and one.change.tile is not None
            ],
            "tried_flow": [{**one.change.fields, **us, "kept": kept[id(one)]} for one, us in told if one.change.layer is None],
            "killed": [{**way.to_dict(), "error": error} for way, error in self.killed],
        }


Build = Callable[[Sequence[Way], float | None], set[Way]]
"""Which of these ways can be timed; until a moment (time.monotonic), or all of them."""
Compare = Callable[[Sequence[Way]], list[list[float]]]
"""Times in µs, a list a turn; infinite for a grid that answers otherwise than the first."""


def tune_grid(
    network: Network,
    on: str,
    capability: str,
    *,
    sms: int,
    input_dtype: str = "float16",
    pixels: tuple[Array, Array] | None = None,
    of_chain: Tuning | None = None,
    seconds: float,
    progress: Progress = silent,
) -> TunedGrid:
    """Search the tiles of `network`'s grid on `cuda:N`, for about `seconds`.

    Args:
        of_chain: the chain's tiles, which are tried first, all together.

    Raises:
        RuntimeUnavailable: this GPU cannot launch the grid. Beside that as `generate` and the compiler.
    """
    until = time.monotonic() + seconds
    plan = make(network, sms=sms, input_dtype=input_dtype)
    start = _way(plan)
    kernels = Kernels(network, sms, input_dtype, pixels, capability, progress)
    with opened(network, on, input_dtype, plan.arena_bytes) as apart:
        grids, began = Grids(apart, kernels, start), time.monotonic()
        grids.add(start, kernels.part(start))
        compiling = time.monotonic() - began
        search = Search(start, grids.build, grids.compare, until - compiling - LAST_S, progress)
        others = [_way(make(network, sms=sms, input_dtype=input_dtype, tuning=of_chain))] if of_chain else []
        found = search.run(candidates_of(network, start, sms), flows(plan), others)
        return dataclasses.replace(found, killed=tuple(grids.killed))


class Grids:
    """What can be timed, in a process apart; says of each grid that ends that process what it is."""

    def __init__(self, apart: Apart, kernels: Kernels, start: Way) -> None:
        self._apart, self._kernels, self._start = apart, kernels, start

    @property
    def killed(self) -> list[tuple[Way, str]]:
        return [(way, one.error) for one in self._apart.killed for way in one.keys]

    def add(self, way: Way, part: Part) -> None:
        with self._told():
            self._apart.add(way, part, lambda: self._kernels.part(way))

    def build(self, ways: Sequence[Way], until: float | None) -> set[Way]:
        known = {way for way, _ in self.killed}
        for way, part in self._kernels.parts([way for way in ways if way not in self._apart and way not in known], until).items():
            try:
                self.add(way, part)
            except CannotMeasure:
                raise
            except Died:
                continue
            except AccelError as error:
                logger.warning("a grid is left out: %s", error.message)
        return {way for way in ways if way in self._apart}

    def compare(self, ways: Sequence[Way]) -> list[list[float]]:
        with self._told():
            return self._apart.compare([[way] for way in ways])

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        before = len(self.killed)
        try:
            yield
        finally:
            for way, error in self.killed[before:]:
                what = "the model's own" if way == self._start else f"the model's but for {way.differs(self._start)}"
                logger.warning("a grid ended the process that timed it, and is left out: %s: %s", what, error)


def _way(plan: Plan) -> Way:
    found = tuple((step.layer_names[-1], step.cut.tile) for step in plan.steps if step.cut)
    return Way(found, Flow(ahead=ring.hold_weights(plan.steps)[1]))


def flows(plan: Plan) -> list[list[Change]]:
    """Other orders of work, those of one field together. Fewer steps ahead than FURTHEST_AHEAD where no more weights have room."""
    aheads = sorted({ring.hold_weights(plan.steps, ahead)[1] for ahead in range(ring.FURTHEST_AHEAD + 1)})
    ways = itertools.product((True, False), ((False, False), (True, False), (False, True)))
    fetching = [
        Change(None, field="blocks", value=blocks, more=(("fetch_late", late), ("fetch_looking", looking)))
        for blocks, (late, looking) in ways
    ]
    looking = [Change(None, field="pause", value=value, more=(("look_first", False),)) for value in PAUSES]
    looking.append(Change(None, field="look_first", value=True, more=(("pause", 0),)))
    heads = [Change(None, field="head_in_last", value=value) for value in (False, True)] if drawn_in(plan) is not plan else []
    return [[Change(None, field="ahead", value=value) for value in aheads], fetching, looking, *([heads] if heads else [])]


def candidates_of(network: Network, start: Way, sms: int) -> dict[str, list[Tile]]:
    """What is timed in place of each layer's own tile, the best by the model first."""
    layers = {layer.name: layer for layer in network.layers if isinstance(layer, Convolution)}
    return {name: [cut.tile for cut in tiles.best(layers[name], sms, CUTS) if cut.tile != own] for name, own in start.tiles}


class Search:
    """Rounds of single changes, and their combinations.

    Args:
        until: the moment (time.monotonic) at which nothing more is begun but the timing of what is compiled.
    """

    def __init__(self, start: Way, build: Build, compare: Compare, until: float, progress: Progress = silent) -> None:
        self._start = self._current = start
        self._build, self._compare, self._until, self._progress = build, compare, until, progress
        self._timed_until = until + GRACE * max(0.0, until - time.monotonic())
        self._tried: list[Tried] = []

    def run(self, candidates: Mapping[str, Sequence[Tile]], flows: Sequence[Sequence[Change]], others: Sequence[Way] = ()) -> TunedGrid:
        """Search, and time what was found against the start once more: if it is not faster after all the start stays."""
        self._begin(others)
        rounds = 0
        waiting = {layer: [Change(layer, tile) for tile in of] for layer, of in candidates.items()}
        while (any(waiting.values()) or rounds < 1) and not self._is_over():
            # Other tiles want another order of work: it is looked at twice.
            changes = [*(flows if rounds < 2 else ()), *(of[:EACH] for of in waiting.values() if of)]
            waiting, rounds = {layer: of[EACH:] for layer, of in waiting.items()}, rounds + 1
            self._round(changes, rounds)
        if not self._tried and any(candidates.values()):
            logger.warning("the time did not suffice to compile and try other grids: give --budget more")
        known = {one.change.layer for one in self._tried}
        untried = tuple(layer for layer, of in candidates.items() if of and layer not in known)
        turns = self._compare([self._start, self._current, self._start])
        if self._current != self._start and not is_faster(turns, 1, 2):
            logger.warning("the grid's tuned tiles are not faster after all: the model's stay")
            self._current = self._start
        after = median(turns, 0 if self._current == self._start else 1)
        return TunedGrid(self._current, self._start, tuple(self._tried), untried, rounds, median(turns, 0), after, noise(turns, 2))

    def _is_over(self) -> bool:
        return time.monotonic() > self._until

    def _begin(self, others: Sequence[Way]) -> None:
        if ready := [way for way in dict.fromkeys(others) if way != self._start and way in self._build([way], None)]:
            self._take(ready)

    def _round(self, changes: Sequence[Sequence[Change]], number: int) -> None:
        """Each group of changes (those of a layer) is timed in turn with the current grid, which stands at both ends for the noise."""
        begin = self._current
        groups = [[change for change in group if not change.is_in(begin)] for group in changes]
        # The best of every layer first: where the time ends, each has been given some.
        in_order = [group[rank] for rank in range(max(map(len, groups), default=0)) for group in groups if rank < len(group)]
        now = time.monotonic()
        made = self._build([change.of(begin) for change in in_order], now + COMPILING * max(0.0, self._until - now))
        gains: list[tuple[float, Change]] = []
        for index, group in enumerate(groups):
            self._progress(f"tune the grid, round {number}", index, len(groups))
            ready = [change for change in group if change.of(begin) in made]
            if ready and time.monotonic() <= self._timed_until:
                gains += self._gains(begin, ready)
        gains.sort(key=lambda one: -one[0])
        self._take(self._together(begin, [change for _, change in gains]))

    def _gains(self, begin: Way, changes: Sequence[Change]) -> list[tuple[float, Change]]:
        """The fastest of `changes` with the µs that it saves, if that is more than the noise."""
        turns = self._compare([begin, *(change.of(begin) for change in changes), begin])
        last, own = len(changes) + 1, median(turns, 0)
        for index, change in enumerate(changes, start=1):
            us = median(turns, index)
            self._tried.append(Tried(change, us if us < float("inf") else None, own))
        fastest = min(range(1, last), key=lambda index: median(turns, index))
        if not is_faster(turns, fastest, last):
            return []
        return [(statistics.median(turn[0] - turn[fastest] for turn in turns), changes[fastest - 1])]

    def _together(self, begin: Way, best_first: Sequence[Change]) -> list[Way]:
        """All that is faster alone in one grid, the better half of it, and the best alone."""
        counts = sorted({len(best_first), -(-len(best_first) // 2), min(1, len(best_first))} - {0})
        ways = []
        for count in counts:
            way = begin
            for change in best_first[:count]:
                way = change.of(way)
            ways.append(way)
        made = self._build(ways, None) if ways else set()
        return [way for way in ways if way in made]

    def _take(self, ways: Sequence[Way]) -> None:
        """The fastest of `ways` becomes the current one, if it is faster than that."""
        if not ways:
            return
        turns = self._compare([self._current, *ways, self._current])
        last = len(ways) + 1
        faster = [index for index in range(1, last) if is_faster(turns, index, last)]
        if faster:
            self._current = ways[min(faster, key=lambda index: median(turns, index)) - 1]
