"""The chain's kernels chosen by measurement: a layer's best cuts by the model, each timed in the whole chain, in which it alone is another,
and then whether the kernel of the fastest computes its tables or reads them."""

from __future__ import annotations

import dataclasses
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from accel.device import nvrtc
from accel.errors import AccelError, UsageError
from accel.exporters.fused import generate, tiles
from accel.exporters.fused.apart import Apart, Died, opened
from accel.exporters.fused.chains import Part, median, part_of
from accel.exporters.fused.network import Convolution, Network
from accel.exporters.fused.plan import Plan, Tuning, make
from accel.exporters.fused.tiles import Tile
from accel.progress import Progress, silent
from accel.types import Array

logger = logging.getLogger(__name__)

CANDIDATES = 6
"""Cuts of a layer that are timed, the model's choice among them."""
SECONDS = 60.0
COMPILING = 0.6
"""Of the time, which compiling may take: what is not compiled by then is not tried."""
THREADS = 16
"""Most compilers at once."""


@dataclasses.dataclass(frozen=True)
class Way:
    """A convolution's kernel: its tile, and whether it reads its tables (generate.TABLES) or computes them."""

    tile: Tile
    tables: bool = False

    @property
    def other(self) -> Way:
        return dataclasses.replace(self, tables=not self.tables)


Ways = Mapping[str, Way]
"""Layer → its kernel, of every convolution that has a tile."""
Compare = Callable[[Sequence[Ways]], list[list[float]]]
"""Times of several chains in µs, a list a turn; infinite for one that answers otherwise than the first."""


@dataclasses.dataclass(frozen=True)
class Tried:
    """A kernel that was timed in place of a layer's own.

    Attributes:
        us: of the whole chain with it; None where it answered otherwise. own_us: of the chain with the layer's own, in the same turns.
        kept: it was faster by more than the noise, and than all others.
    """

    layer: str
    way: Way
    us: float | None
    own_us: float
    kept: bool


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What the search found.

    Attributes:
        ways: of every convolution. tried: in order. untried: layers for which the time did not suffice.
        before_us, after_us: of the chain with the model's tiles and no tables, and with `ways`, timed in turn at the end. noise_us: in
            those turns.
        killed: kernels that ended the process in which they were timed, alone or together, and what was said of it.
    """

    ways: Ways
    tried: tuple[Tried, ...]
    untried: tuple[str, ...]
    before_us: float
    after_us: float
    noise_us: float
    killed: tuple[tuple[Ways, str], ...] = ()

    @property
    def tuning(self) -> Tuning:
        return {layer: dataclasses.asdict(way.tile) for layer, way in self.ways.items()}

    @property
    def tables(self) -> tuple[str, ...]:
        return tuple(layer for layer, way in self.ways.items() if way.tables)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "before_us": round(self.before_us, 3),
            "after_us": round(self.after_us, 3),
            "noise_us": round(self.noise_us, 3),
            "untried": list(self.untried),
            "tried": [
                {
                    "layer": one.layer,
                    "tile": dataclasses.asdict(one.way.tile),
                    "tables": one.way.tables,
                    "us": None if one.us is None else round(one.us, 3),
                    "own_us": round(one.own_us, 3),
                    "kept": one.kept,
                }
                for one in self.tried
            ],
            "killed": [{"kernels": {layer: _told(way) for layer, way in of.items()}, "error": error} for of, error in self.killed],
        }


def _told(way: Way) -> dict[str, Any]:
    return {"tile": dataclasses.asdict(way.tile), "tables": way.tables}


def tune(
    network: Network,
    on: str,
    capability: str,
    *,
    sms: int,
    input_dtype: str = "float16",
    pixels: tuple[Array, Array] | None = None,
    seconds: float = SECONDS,
    progress: Progress = silent,
) -> Tuned:
    """Search the kernels of `network`'s chain on `cuda:N`, for about `seconds`.

    Raises:
        UsageError: `on` is a CPU. Beside that as `generate` and the compiler.
    """
    if on == "cpu":
        raise UsageError(
            "tiles are tuned by timing them, and there is no GPU here", remedy="leave --tune out, or export on the GPU that will run it"
        )
    until = time.monotonic() + seconds
    plan = make(network, sms=sms, input_dtype=input_dtype)
    base = {step.layer_names[-1]: Way(step.cut.tile) for step in plan.steps if step.cut}
    candidates = candidates_of(network, base, sms)
    with opened(network, on, input_dtype, plan.arena_bytes) as chains:
        keys = [(index, base.get(step.layer_names[-1])) for index, step in enumerate(plan.steps)]
        wanted = [*keys, *_in_order(plan, candidates)]
        made = _compiled(network, plan, base, wanted, capability, pixels, time.monotonic() + COMPILING * seconds, len(keys), progress)
        for key, part in made.items():
            try:
                chains.add(key, part)
            except Died:
                _warn(*_killed(plan, chains)[-1])
                if key in keys:
                    raise
        known = {layer: [way for way in of if (_index(plan, layer), way) in chains] for layer, of in candidates.items()}

        def compare(several: Sequence[Ways]) -> list[list[float]]:
            before = len(chains.killed)
            try:
                return chains.compare([[(index, of.get(step.layer_names[-1])) for index, step in enumerate(plan.steps)] for of in several])
            finally:
                for one in _killed(plan, chains)[before:]:
                    _warn(*one)

        found = search(base, known, compare, lambda: time.monotonic() > until, progress)
        return dataclasses.replace(found, killed=tuple(_killed(plan, chains)))


def _killed(plan: Plan, chains: Apart) -> list[tuple[Ways, str]]:
    """By layer, the kernels that ended their process."""
    return [({plan.steps[index].layer_names[-1]: way for index, way in one.keys if way}, one.error) for one in chains.killed]


def _warn(of: Ways, error: str) -> None:
    told = ", ".join(f"{layer} as {way.tile}{', tables' if way.tables else ''}" for layer, way in of.items())
    logger.warning("kernels ended the process that timed them, and are left out: %s: %s", told, error)


def candidates_of(network: Network, base: Ways, sms: int) -> dict[str, list[Way]]:
    """What is timed in place of each layer's own kernel: its other way, the best of the other cuts, and the other way of each."""
    layers = {layer.name: layer for layer in network.layers if isinstance(layer, Convolution)}
    found = {}
    for name, own in base.items():
        cuts = [cut.tile for cut in tiles.best(layers[name], sms, CANDIDATES) if cut.tile != own.tile][: CANDIDATES - 1]
        ways = [dataclasses.replace(own, tile=tile) for tile in cuts]
        found[name] = [own.other, *ways, *(way.other for way in ways)]
    return found


def search(
    base: Ways, candidates: Mapping[str, Sequence[Way]], compare: Compare, is_over: Callable[[], bool], progress: Progress = silent
) -> Tuned:
    """A layer after another: its candidates, each in the chain of what was kept until then, in turn with that chain itself, twice. First
    those that differ in the tile, then the other way of the one that was kept.

    The two times of the same chain tell the noise: a candidate is kept if it is faster by more than that, and in nearly every turn. At the
    end the chain of all that was kept is timed against the first one, and given up if it is not faster after all.
    """
    chosen, tried, untried = dict(base), list[Tried](), list[str]()
    for number, (layer, of_layer) in enumerate(candidates.items()):
        progress("tune", number, len(candidates))
        for differing in ("tile", "tables"):
            own = chosen[layer]
            some = [way for way in of_layer if (way.tables == own.tables if differing == "tile" else way == own.other)]
            if some and is_over():
                untried.append(layer)
                break
            if some:
                found = _timed(chosen, layer, some, compare)
                tried += found
                chosen[layer] = next((one.way for one in found if one.kept), own)
    turns = compare([base, chosen, base])
    if chosen != base and not is_faster(turns, 1, 2):
        logger.warning("the tuned kernels are not faster together: the model's stay")
        chosen, tried = dict(base), [dataclasses.replace(one, kept=False) for one in tried]
        return Tuned(chosen, tuple(tried), tuple(untried), median(turns, 0), median(turns, 0), noise(turns, 2))
    return Tuned(chosen, tuple(tried), tuple(untried), median(turns, 0), median(turns, 1), noise(turns, 2))


def _timed(chosen: Ways, layer: str, ways: Sequence[Way], compare: Compare) -> list[Tried]:
    """`ways` in the place of a layer's own in the chain `chosen`; one is kept at most."""
    turns = compare([chosen, *({**chosen, layer: way} for way in ways), chosen])
    last = len(ways) + 1
    own, fastest = median(turns, 0), min(range(1, last), key=lambda index: median(turns, index))
    kept = fastest if is_faster(turns, fastest, last) else 0
    times = [median(turns, index) for index in range(1, last)]
    return [
        Tried(layer, way, us if us < float("inf") else None, own, index == kept)
        for index, (way, us) in enumerate(zip(ways, times, strict=True), start=1)
    ]


def is_faster(turns: Sequence[Sequence[float]], index: int, again: int) -> bool:
    """Whether chain `index` is faster than chain 0 by more than the noise, and in all turns but one."""
    gains = [turn[0] - turn[index] for turn in turns]
    return statistics.median(gains) > noise(turns, again) and sum(gain <= 0 for gain in gains) <= 1


def noise(turns: Sequence[Sequence[float]], again: int) -> float:
    """Twice the usual difference between chain 0 and the same chain once more."""
    return 2 * statistics.median(abs(turn[0] - turn[again]) for turn in turns)


def _in_order(plan: Plan, candidates: Mapping[str, Sequence[Way]]) -> Iterator[tuple[int, Way]]:
    """The first candidate of every layer, then the second: where the time ends, each has been given some."""
    for rank in range(max(map(len, candidates.values()), default=0)):
        for layer, of_layer in candidates.items():
            if rank < len(of_layer):
                yield _index(plan, layer), of_layer[rank]


def _index(plan: Plan, layer: str) -> int:
    return next(index for index, step in enumerate(plan.steps) if step.layer_names[-1] == layer)


def _compiled(
    network: Network,
    plan: Plan,
    base: Ways,
    wanted: Sequence[tuple[int, Way | None]],
    capability: str,
    pixels: tuple[Array, Array] | None,
    until: float,
    needed: int,
    progress: Progress,
) -> dict[tuple[int, Way | None], Part]:
    """Kernels by (step, way); the first `needed` of `wanted` in any case, the others as long as there is time, less those that spill."""

    def make_part(key: tuple[int, Way | None]) -> Part | None:
        index, way = key
        layer = plan.steps[index].layer_names[-1]
        chosen = {**base, layer: way} if way else base
        tuning = {name: dataclasses.asdict(of.tile) for name, of in chosen.items()}
        own = make(network, sms=plan.sms, input_dtype=plan.input_dtype, tuning=tuning)
        source, kernel = generate.link(own, index, [layer] if way and way.tables else [])
        compiled = nvrtc.compile(source, f"{kernel.name}.cu", capability)
        if key not in wanted[:needed] and compiled.kernels[kernel.name].spills:
            return None
        return part_of(own, index, kernel, compiled.cubin, pixels)

    found: dict[tuple[int, Way | None], Part] = {}
    with ThreadPoolExecutor(min(os.cpu_count() or 1, THREADS)) as pool:
        futures: dict[tuple[int, Way | None], Future[Part | None]] = {key: pool.submit(make_part, key) for key in wanted}
        try:
            for number, (key, future) in enumerate(futures.items()):
                progress("compile candidates", number, len(futures))
                if number >= needed and time.monotonic() > until and not future.done():
                    future.cancel()
                    continue
                try:
                    part = future.result()
                except AccelError as error:
                    if number < needed:
                        raise
                    logger.warning("a candidate for %s is left out: %s", plan.steps[key[0]].name, error.message)
                    continue
                if part is not None:
                    found[key] = part
        finally:
            pool.shutdown(cancel_futures=True)
    return found
