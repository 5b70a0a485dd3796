"""Tiles chosen by measurement: a layer's best cuts by the model, each timed in the whole chain, in which it alone is another."""

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
from accel.exporters.fused.chains import Part, median, opened, part_of
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

Tiles = Mapping[str, Tile]
"""Layer → its tile, of every convolution that has one."""
Compare = Callable[[Sequence[Tiles]], list[list[float]]]
"""Times of several chains in µs, a list a turn; infinite for one that answers otherwise than the first."""


@dataclasses.dataclass(frozen=True)
class Tried:
    """A tile that was timed in place of a layer's own.

    Attributes:
        us: of the whole chain with it; None where it answered otherwise. own_us: of the chain with the layer's own tile, in the same turns.
        kept: it was faster by more than the noise, and than all others.
    """

    layer: str
    tile: Tile
    us: float | None
    own_us: float
    kept: bool


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What the search found.

    Attributes:
        tiles: of every convolution. tried: in order. untried: layers for which the time did not suffice.
        before_us, after_us: of the chain with the model's tiles and with `tiles`, timed in turn at the end. noise_us: in those turns.
    """

    tiles: Tiles
    tried: tuple[Tried, ...]
    untried: tuple[str, ...]
    before_us: float
    after_us: float
    noise_us: float

    @property
    def tuning(self) -> Tuning:
        return {layer: dataclasses.asdict(tile) for layer, tile in self.tiles.items()}

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
                    "tile": dataclasses.asdict(one.tile),
                    "us": None if one.us is None else round(one.us, 3),
                    "own_us": round(one.own_us, 3),
                    "kept": one.kept,
                }
                for one in self.tried
            ],
        }


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
    """Search the tiles of `network`'s chain on `cuda:N`, for about `seconds`.

    Raises:
        UsageError: `on` is a CPU. Beside that as `generate` and the compiler.
    """
    if on == "cpu":
        raise UsageError(
            "tiles are tuned by timing them, and there is no GPU here", remedy="leave --tune out, or export on the GPU that will run it"
        )
    until = time.monotonic() + seconds
    plan = make(network, sms=sms, input_dtype=input_dtype)
    base = {step.layer_names[-1]: step.cut.tile for step in plan.steps if step.cut}
    candidates = candidates_of(network, base, sms)
    with opened(network, on, input_dtype, plan.arena_bytes) as chains:
        keys = [(index, base.get(step.layer_names[-1])) for index, step in enumerate(plan.steps)]
        wanted = [*keys, *_in_order(plan, candidates)]
        made = _compiled(network, plan, base, wanted, capability, pixels, time.monotonic() + COMPILING * seconds, len(keys), progress)
        for key, part in made.items():
            chains.add(key, part)
        known = {layer: [tile for tile in of if (_index(plan, layer), tile) in made] for layer, of in candidates.items()}

        def compare(ways: Sequence[Tiles]) -> list[list[float]]:
            return chains.compare([[(index, way.get(step.layer_names[-1])) for index, step in enumerate(plan.steps)] for way in ways])

        return search(base, known, compare, lambda: time.monotonic() > until, progress)


def candidates_of(network: Network, base: Tiles, sms: int) -> dict[str, list[Tile]]:
    """What is timed in place of each layer's own tile: the best of the rest."""
    layers = {layer.name: layer for layer in network.layers if isinstance(layer, Convolution)}
    return {
        name: [cut.tile for cut in tiles.best(layers[name], sms, CANDIDATES) if cut.tile != own][: CANDIDATES - 1]
        for name, own in base.items()
    }


def search(
    base: Tiles, candidates: Mapping[str, Sequence[Tile]], compare: Compare, is_over: Callable[[], bool], progress: Progress = silent
) -> Tuned:
    """A layer after another: its candidates, each in the chain of what was kept until then, in turn with that chain itself, twice.

    The two times of the same chain tell the noise: a candidate is kept if it is faster by more than that, and in nearly every turn. At the
    end the chain of all that was kept is timed against the first one, and given up if it is not faster after all.
    """
    chosen, tried, untried = dict(base), list[Tried](), list[str]()
    for number, (layer, of_layer) in enumerate(candidates.items()):
        progress("tune", number, len(candidates))
        if not of_layer:
            continue
        if is_over():
            untried.append(layer)
            continue
        turns = compare([chosen, *({**chosen, layer: tile} for tile in of_layer), chosen])
        last = len(of_layer) + 1
        own, fastest = median(turns, 0), min(range(1, last), key=lambda index: median(turns, index))
        kept = fastest if is_faster(turns, fastest, last) else 0
        for index, tile in enumerate(of_layer, start=1):
            us = median(turns, index)
            tried.append(Tried(layer, tile, us if us < float("inf") else None, own, index == kept))
        if kept:
            chosen[layer] = of_layer[kept - 1]
    turns = compare([base, chosen, base])
    if chosen != base and not is_faster(turns, 1, 2):
        logger.warning("the tuned tiles are not faster together: the model's stay")
        chosen, tried = dict(base), [dataclasses.replace(one, kept=False) for one in tried]
        return Tuned(chosen, tuple(tried), tuple(untried), median(turns, 0), median(turns, 0), noise(turns, 2))
    return Tuned(chosen, tuple(tried), tuple(untried), median(turns, 0), median(turns, 1), noise(turns, 2))


def is_faster(turns: Sequence[Sequence[float]], index: int, again: int) -> bool:
    """Whether chain `index` is faster than chain 0 by more than the noise, and in all turns but one."""
    gains = [turn[0] - turn[index] for turn in turns]
    return statistics.median(gains) > noise(turns, again) and sum(gain <= 0 for gain in gains) <= 1


def noise(turns: Sequence[Sequence[float]], again: int) -> float:
    """Twice the usual difference between chain 0 and the same chain once more."""
    return 2 * statistics.median(abs(turn[0] - turn[again]) for turn in turns)


def _in_order(plan: Plan, candidates: Mapping[str, Sequence[Tile]]) -> Iterator[tuple[int, Tile]]:
    """The second best of every layer, then the third: where the time ends, each has been given some."""
    for rank in range(CANDIDATES):
        for layer, of_layer in candidates.items():
            if rank < len(of_layer):
                yield _index(plan, layer), of_layer[rank]


def _index(plan: Plan, layer: str) -> int:
    return next(index for index, step in enumerate(plan.steps) if step.layer_names[-1] == layer)


def _compiled(
    network: Network,
    plan: Plan,
    base: Tiles,
    wanted: Sequence[tuple[int, Tile | None]],
    capability: str,
    pixels: tuple[Array, Array] | None,
    until: float,
    needed: int,
    progress: Progress,
) -> dict[tuple[int, Tile | None], Part]:
    """Kernels by (step, tile); the first `needed` of `wanted` in any case, the others as long as there is time, less those that spill."""

    def make_part(key: tuple[int, Tile | None]) -> Part | None:
        index, tile = key
        chosen = {**base, plan.steps[index].layer_names[-1]: tile} if tile else base
        tuning = {layer: dataclasses.asdict(of) for layer, of in chosen.items()}
        own = make(network, sms=plan.sms, input_dtype=plan.input_dtype, tuning=tuning)
        source, kernel = generate.link(own, index)
        compiled = nvrtc.compile(source, f"{kernel.name}.cu", capability)
        if key not in wanted[:needed] and compiled.kernels[kernel.name].spills:
            return None
        return part_of(own, index, kernel, compiled.cubin, pixels)

    found: dict[tuple[int, Tile | None], Part] = {}
    with ThreadPoolExecutor(min(os.cpu_count() or 1, THREADS)) as pool:
        futures: dict[tuple[int, Tile | None], Future[Part | None]] = {key: pool.submit(make_part, key) for key in wanted}
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
