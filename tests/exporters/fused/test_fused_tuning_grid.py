"""The grid's tiles by measurement: single changes, what is faster together, how far ahead weights are fetched; scripted times."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.core", reason="cuda-core is not installed")

from exporters.fused import reference
from exporters.fused.emulation import Emulator, available
from exporters.fused.networks import Build, plain, student

from accel.device import nvrtc
from accel.exporters.fused import generate, ring, tuning_grid
from accel.exporters.fused.chains import TURNS
from accel.exporters.fused.generate import Flow
from accel.exporters.fused.grid_kernels import Kernels, Way
from accel.exporters.fused.network import Network
from accel.exporters.fused.pack import pack
from accel.exporters.fused.plan import make
from accel.exporters.fused.tiles import Tile
from accel.exporters.fused.tuning_grid import Change, Search
from accel.types import Resources

A, B, C, D = (Tile(4, 4, n, 1, 1, 8) for n in (8, 16, 32, 64))
START = Way((("one", A), ("two", A), ("three", A)), Flow(2, fetch_late=False, look_first=True, pause=0, blocks=False))
INF = float("inf")
US = {("one", A): 5.0, ("one", B): 4.8, ("one", C): 4.5, ("two", A): 3.0, ("two", B): 2.9, ("three", A): 2.0, ("three", B): 2.2}
AHEAD = {0: 1.0, 1: 0.5, 2: 0.4, 3: 0.2}


class Scripted:
    """Times of grids: the sum of what tiles and fetching take, and of `more` for a whole grid; builds all but what `refused` says."""

    def __init__(self, more: Callable[[Way], float] = lambda way: 0.0, refused: Callable[[Way], bool] = lambda way: False) -> None:
        self.more, self.refused = more, refused
        self.built, self.timed, self.limits = list[list[Way]](), list[list[Way]](), list[float | None]()

    def build(self, ways: Sequence[Way], until: float | None) -> set[Way]:
        self.built.append(list(ways))
        self.limits.append(until)
        return {way for way in ways if not self.refused(way)}

    def compare(self, ways: Sequence[Way]) -> list[list[float]]:
        self.timed.append(list(ways))
        return [[sum(US[item] for item in way.tiles) + AHEAD[way.flow.ahead] + self.more(way) for way in ways] for _ in range(TURNS)]

    def search(self, candidates: Any = None, flows: Any = (), others: Sequence[Way] = (), seconds: float = 60.0) -> Any:
        search = Search(START, self.build, self.compare, time.monotonic() + seconds)
        return search.run({"one": [B, C], "two": [B], "three": [B]} if candidates is None else candidates, flows, others)


def us(way: Way) -> float:
    return sum(US[item] for item in way.tiles) + AHEAD[way.flow.ahead]


def test_what_is_faster_alone_is_tried_together_and_kept_together() -> None:
    script = Scripted()
    found = script.search()
    assert dict(found.way.tiles) == {"one": C, "two": B, "three": A}
    # A layer's cuts in turn with the current grid, which stands at both ends.
    assert script.timed[0] == [START, START.with_("one", B), START.with_("one", C), START]
    both = START.with_("one", C).with_("two", B)
    assert script.timed[3] == [START, START.with_("one", C), both, START]
    assert script.timed[4] == [START, both, START]
    # The second cut of a layer is compiled behind the first of all layers.
    assert script.built[0] == [START.with_("one", B), START.with_("two", B), START.with_("three", B), START.with_("one", C)]
    assert (found.before_us, found.after_us) == (pytest.approx(us(START)), pytest.approx(us(both)))
    kept = [(one["layer"], one["tile"]["n"]) for one in found.to_dict()["tried"] if one["kept"]]
    assert kept == [("one", 32), ("two", 16)]
    assert len(found.to_dict()["tried"]) == 4
    json.dumps(found.to_dict(), allow_nan=False)


def test_what_is_not_faster_together_leaves_the_best_alone() -> None:
    both = START.with_("one", C).with_("two", B)
    found = Scripted(lambda way: 1.0 if way == both else 0.0).search()
    assert dict(found.way.tiles) == {"one": C, "two": A, "three": A}


def test_how_far_ahead_weights_are_fetched_is_a_change_like_others() -> None:
    script = Scripted()
    late = [Change(None, field="fetch_late", value=value) for value in (False, True)]
    late.append(Change(None, field="blocks", value=True, more=(("fetch_looking", True),)))
    found = script.search(flows=[[Change(None, field="ahead", value=value) for value in range(4)], late])
    assert (found.way.flow, dict(found.way.tiles)["one"]) == (dataclasses.replace(START.flow, ahead=3), C)
    told = found.to_dict()
    assert told["flow"] == dataclasses.asdict(dataclasses.replace(START.flow, ahead=3))
    tried = [{name: one[name] for name in one if name not in ("us", "own_us")} for one in told["tried_flow"]]
    assert tried == [
        {"ahead": 0, "kept": False},
        {"ahead": 1, "kept": False},
        {"ahead": 3, "kept": True},
        {"fetch_late": True, "kept": False},
        {"blocks": True, "fetch_looking": True, "kept": False},
    ]


def test_the_chains_tiles_are_where_it_begins_if_they_are_faster() -> None:
    chains = START.with_("one", B)
    script = Scripted()
    script.search({"two": [B]}, others=[chains])
    assert script.timed[:2] == [[START, chains, START], [chains, chains.with_("two", B), chains]]
    script = Scripted(lambda way: 1.0 if way == chains else 0.0)
    script.search({"two": [B]}, others=[chains])
    assert script.timed[1][0] == START


def test_rounds_go_on_with_further_cuts_as_long_as_there_is_time() -> None:
    tiles = [Tile(2, 8, n, 1, 1, 8) for n in range(8, 8 * 13, 8)]
    costs = {("one", tile): 4.9 - 0.1 * index for index, tile in enumerate(tiles)}
    script = Scripted(lambda way: costs.get(way.tiles[0], 0.0))
    known = dict(US)
    US.update(dict.fromkeys(costs, 0.0))
    try:
        found = script.search({"one": tiles})
        assert (found.rounds, found.way.tiles[0]) == (3, ("one", tiles[-1]))
        assert len(found.tried) == 12
        assert found.untried == ()
        assert all(limit is None or limit < time.monotonic() + 60 for limit in script.limits)
        none = Scripted(lambda way: costs.get(way.tiles[0], 0.0)).search({"one": tiles}, seconds=-1)
        assert (none.rounds, none.tried, none.untried, none.way) == (0, (), ("one",), START)
    finally:
        US.clear()
        US.update(known)


def test_what_was_compiled_is_timed_though_its_compilation_took_the_time(caplog: pytest.LogCaptureFixture) -> None:
    class Slow(Scripted):
        def build(self, ways: Sequence[Way], until: float | None) -> set[Way]:
            time.sleep(0.11 if until is not None else 0)
            return super().build(ways, until)

    script = Slow()
    found = script.search(seconds=0.1)
    assert (found.rounds, len(found.tried), found.untried) == (1, 4, ())
    assert dict(found.way.tiles) == {"one": C, "two": B, "three": A}
    assert caplog.messages == []


def test_it_is_said_if_nothing_could_be_tried(caplog: pytest.LogCaptureFixture) -> None:
    found = Scripted().search(seconds=-1)
    assert (found.tried, found.way) == ((), START)
    assert caplog.messages == ["the time did not suffice to compile and try other grids: give --budget more"]


def test_a_grid_that_is_refused_or_answers_otherwise_is_never_kept() -> None:
    def wrong(way: Way) -> float:
        return INF if ("one", C) in way.tiles else 0.0

    found = Scripted(wrong, refused=lambda way: ("two", B) in way.tiles).search()
    assert dict(found.way.tiles) == {"one": B, "two": A, "three": A}
    assert [one.us for one in found.tried if one.change.tile == C] == [None]
    assert "two" in found.untried
    json.dumps(found.to_dict(), allow_nan=False)


def test_what_is_not_faster_at_the_end_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    script = Scripted()
    compare = script.compare

    def turned(ways: Sequence[Way]) -> list[list[float]]:
        found = compare(ways)
        last = len(script.timed) == 5
        return [[turn[0], turn[0] + 1, turn[0]] for turn in found] if last else found

    script.compare = turned  # type: ignore[method-assign]
    found = script.search()
    assert (found.way, found.before_us, found.after_us) == (START, found.after_us, found.before_us)
    assert not any(one["kept"] for one in found.to_dict()["tried"])
    assert "not faster after all" in caplog.text


# What is compiled.


def test_the_candidates_of_the_grid_differ_from_its_own_tiles_and_from_one_another() -> None:
    network = student("student_b")
    start = tuning_grid._way(make(network, sms=132))
    found = tuning_grid.candidates_of(network, start, 132)
    own = dict(start.tiles)
    assert list(found) == list(own)
    assert all(len(set(of)) == len(of) == tuning_grid.CUTS - 1 and own[name] not in of for name, of in found.items())
    orders = [change for of in tuning_grid.flows(make(network, sms=132)) for change in of]
    assert [(change.field, change.value) for change in orders if change.is_in(start)] == [
        ("ahead", start.flow.ahead),
        ("blocks", True),
        ("pause", 200),
        ("head_in_last", True),
    ]
    assert min(change.value for change in orders if change.field == "ahead") == 0


def test_a_grids_weights_are_those_of_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = []

    def compile(source: str, name: str, capability: str) -> nvrtc.Compiled:
        sources.append(source)
        return nvrtc.Compiled(b"code", {"grid": Resources(40, spills=8 if "TILE_N = 8;" in source else 0)}, "")

    monkeypatch.setattr(nvrtc, "compile", compile)
    network = plain()
    start = tuning_grid._way(make(network, sms=132))
    kernels = Kernels(network, 132, "float16", None, "9.0")
    layer, tiles = next(iter(tuning_grid.candidates_of(network, start, 132).items()))
    other = dataclasses.replace(
        start.with_(layer, next(tile for tile in tiles if tile.n != 8)), flow=Flow(1, True, look_first=False, blocks=True)
    )
    for way in (start, other):
        part = kernels.part(way)
        program = generate.generate(network, "grid", tuning=way.tuning, flow=way.flow)
        assert (part.weights, part.kernels, part.state_bytes) == (program.weights, program.kernels, program.state_bytes)
        assert part.weights == pack(make(network, sms=132, tuning=way.tuning))
        assert sources[-1] == program.source
    spilling = start.with_(layer, next(tile for tile in tiles if tile.n == 8))
    assert set(kernels.parts([other, spilling], None)) <= {other}
    assert kernels.parts([other], time.monotonic() - 1).keys() <= {other}


@pytest.mark.skipif(not available(), reason="g++ is absent, which compiles the emulator")
@pytest.mark.parametrize("blocks", [False, True], ids=["copies", "blocks"])
@pytest.mark.parametrize("fetch", ["fetch_early", "fetch_late", "fetch_looking"])
@pytest.mark.parametrize("ahead", range(ring.FURTHEST_AHEAD + 1))
def test_in_whatever_order_it_works_the_grid_computes_what_the_reference_does(ahead: int, fetch: str, blocks: bool, tmp_path: Path) -> None:
    network = plain()
    start = tuning_grid._way(make(network, sms=5))
    candidates = tuning_grid.candidates_of(network, start, 5)
    way = start
    for layer, tiles in candidates.items():
        way = way.with_(layer, tiles[ahead])
    look_first = (fetch == "fetch_late") is (ahead < 2)
    flow = Flow(ahead, fetch == "fetch_late", fetch == "fetch_looking", look_first, 100 * ahead, blocks)
    program = generate.generate(network, "grid", sms=5, tuning=way.tuning, flow=flow)
    assert f"static constexpr int PAUSE = {100 * ahead};" in program.source
    assert ("all.make_barriers<" in program.source) is (blocks and ahead > 0)
    distance = ring.hold_weights(make(network, sms=5, tuning=way.tuning).steps, ahead)[1]
    assert f", {distance}, {str(look_first).lower()}> all;" in program.source
    emulator = Emulator(program, tmp_path)
    image = np.random.default_rng(ahead).standard_normal((1, 3, 12, 12)).astype(np.float16)
    expected = reference.run(network, image[0])
    # Twice, because launches take turns between two exchanges.
    for _ in range(2):
        logits = emulator.run(image)
        answer = expected[network.layers[-1].name].reshape(1, -1)
        np.testing.assert_allclose(logits, answer, rtol=0, atol=5e-3 * np.abs(answer).max())


def ends_as_resnet() -> Network:
    """ResNet-18's last stage behind a small stem: 256 channels of 8×8 to 512 of 4×4, a 1×1 shortcut, an addition."""
    build = Build(3, 8, 8, seed=12).conv("stem", 256, 1, activation="relu")
    build.conv("short", 512, 1, 2, source="stem").conv("first", 512, 3, 2, 1, source="stem", activation="relu")
    build.conv("second", 512, 3, 1, 1, residual="short", activation="relu")
    return build.pool("pool", "average").linear("classifier", 10).network()


@pytest.mark.slow
@pytest.mark.skipif(not available(), reason="g++ is absent, which compiles the emulator")
@pytest.mark.parametrize("number", range(20))
def test_every_grid_that_is_tried_for_resnets_last_stage_stays_in_its_memory(number: int, tmp_path: Path) -> None:
    """Each order of work with the model's tiles, then each rank of all layers' cuts in turn, with and without weights ahead."""
    network = ends_as_resnet()
    plan = make(network, sms=132)
    start = tuning_grid._way(plan)
    assert dict(start.tiles)["second"] == Tile(4, 4, 8, 1, 1, 8)
    orders = [change.of(start) for of in tuning_grid.flows(plan) for change in of if not change.is_in(start)]
    ranks = []
    for rank in range(0, tuning_grid.CUTS - 1, 4):
        way = start
        for layer, cuts in tuning_grid.candidates_of(network, start, 132).items():
            way = way.with_(layer, cuts[min(rank, len(cuts) - 1)])
        ranks.append(dataclasses.replace(way, flow=Flow(ahead=3 * (rank % 8 == 0))))
    ways = [*orders, *ranks]
    assert len(ways) == 20
    program = generate.generate(network, "grid", sms=132, tuning=ways[number].tuning, flow=ways[number].flow)
    image = np.random.default_rng(number).standard_normal((1, 3, 8, 8)).astype(np.float16)
    answer = reference.run(network, image[0])["classifier"].reshape(1, -1)
    logits = Emulator(program, tmp_path).run(image, backwards=number % 2 == 1)
    np.testing.assert_allclose(logits, answer, rtol=0, atol=5e-3 * np.abs(answer).max())
