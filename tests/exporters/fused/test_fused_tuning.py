"""Tiles are chosen by measured times: what is kept, what noise and wrong answers do, what is recorded; scripted times and a fake GPU."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.core", reason="cuda-core is not installed")

from exporters.fused import reference
from exporters.fused.emulation import Emulator, available
from exporters.fused.networks import plain, student
from fake_cuda import installed
from fake_kernels import KernelDriver, Launched
from fake_worker import nearby

from accel import device
from accel.device import nvrtc
from accel.engines import fused_plan
from accel.errors import AccelError, CorruptArtifact, UsageError
from accel.exporters import BuildOptions, ExportRequest
from accel.exporters.fused import chains, exporting, generate, tuning
from accel.exporters.fused.chains import TURNS, Chains, part_of
from accel.exporters.fused.network import Convolution, Network
from accel.exporters.fused.pack import pack
from accel.exporters.fused.plan import make
from accel.exporters.fused.tiles import Tile, best, choose
from accel.exporters.fused.tuning import Way
from accel.types import Kernel, Resources, TensorSpec

A, B, C = (Way(Tile(4, 4, n, 1, 1, 8)) for n in (8, 16, 32))
BASE = {"one": A, "two": A}
INF = float("inf")


class Scripted:
    """Times of chains: the sum of what each (layer, way) takes, plus what `noise` says for the turn and the chain's place."""

    def __init__(self, us: dict[tuple[str, Way], float], noise: Callable[[int, int], float] = lambda turn, place: 0.0) -> None:
        self.us, self.noise, self.asked = us, noise, list[list[dict[str, Way]]]()

    def __call__(self, ways: Sequence[Any]) -> list[list[float]]:
        self.asked.append([dict(way) for way in ways])
        sums = [sum(self.us[item] for item in way.items()) for way in ways]
        return [[one + self.noise(turn, place) for place, one in enumerate(sums)] for turn in range(TURNS)]


def searched(us: dict[tuple[str, Way], float], candidates: Any = None, over: Callable[[], bool] = lambda: False, **how: Any) -> Any:
    compare = Scripted(us, **how)
    found = tuning.search(BASE, candidates or {"one": [B, C], "two": [B]}, compare, over)
    return found, compare


TIMES = {("one", A): 5.0, ("one", B): 4.8, ("one", C): 4.5, ("two", A): 3.0, ("two", B): 3.2}


def test_the_fastest_tile_of_a_layer_is_kept_and_the_next_layer_is_timed_with_it() -> None:
    found, compare = searched(TIMES)
    assert found.ways == {"one": C, "two": A}
    # The chain that was kept stands at both ends of every comparison.
    assert compare.asked[0] == [BASE, {"one": B, "two": A}, {"one": C, "two": A}, BASE]
    assert compare.asked[1] == [{"one": C, "two": A}, {"one": C, "two": B}, {"one": C, "two": A}]
    assert compare.asked[2] == [BASE, {"one": C, "two": A}, BASE]
    assert (found.before_us, found.after_us, found.noise_us, found.untried) == (8.0, 7.5, 0.0, ())
    assert [(one.layer, one.way, one.us, one.own_us, one.kept) for one in found.tried] == [
        ("one", B, 7.8, 8.0, False),
        ("one", C, 7.5, 8.0, True),
        ("two", B, 7.7, 7.5, False),
    ]
    assert found.tuning["one"] == {"y": 4, "x": 4, "n": 32, "warps_m": 1, "warps_n": 1, "warps_k": 8, "chunks": 1}


def test_the_other_way_of_the_tile_that_was_kept_is_timed_behind_the_tiles() -> None:
    us = {**TIMES, ("one", A.other): 4.0, ("one", B.other): 4.0, ("one", C.other): 4.2, ("two", A.other): 3.1}
    found, compare = searched(us, {"one": [A.other, B, C, B.other, C.other], "two": [A.other, B, B.other]})
    assert compare.asked[0] == [BASE, {"one": B, "two": A}, {"one": C, "two": A}, BASE]
    assert compare.asked[1] == [{"one": C, "two": A}, {"one": C.other, "two": A}, {"one": C, "two": A}]
    assert compare.asked[3] == [{"one": C.other, "two": A}, {"one": C.other, "two": A.other}, {"one": C.other, "two": A}]
    assert found.ways == {"one": C.other, "two": A}
    assert (found.tables, found.before_us, found.after_us) == (("one",), 8.0, pytest.approx(7.2))
    told = [(one["layer"], one["tile"]["n"], one["tables"], one["kept"]) for one in found.to_dict()["tried"]]
    assert told == [
        ("one", 16, False, False),
        ("one", 32, False, True),
        ("one", 32, True, True),
        ("two", 16, False, False),
        ("two", 8, True, False),
    ]


def test_where_the_time_ends_between_the_tiles_and_the_other_way_the_layer_is_named_and_its_tile_stays() -> None:
    asked = iter([False, True, True])
    found, _ = searched({**TIMES, ("one", C.other): 1.0}, {"one": [A.other, B, C, B.other, C.other], "two": [B]}, over=lambda: next(asked))
    assert found.ways == {"one": C, "two": A}
    assert found.untried == ("one", "two")


def test_what_is_faster_by_less_than_the_same_chain_differs_from_itself_is_not_kept() -> None:
    def noise(turn: int, place: int) -> float:
        # The last of a comparison is the first once more.
        return 0.3 if place in (2, 3) else 0.0

    found, _ = searched({**TIMES, ("one", C): 4.9}, noise=noise)
    assert found.ways == BASE
    assert found.noise_us == pytest.approx(0.6)
    assert not any(one.kept for one in found.tried)


def test_what_is_faster_in_most_turns_but_not_in_nearly_all_is_not_kept() -> None:
    def noise(turn: int, place: int) -> float:
        return 1.0 if place == 1 and turn % 4 == 0 else 0.0

    us = {**TIMES, ("one", B): 4.0, ("one", C): 5.1}
    found, _ = searched(us, noise=noise)
    assert found.ways == BASE
    found, _ = searched(us, noise=lambda turn, place: 1.0 if place == 1 and turn == 0 else 0.0)
    assert found.ways == {"one": B, "two": A}


def test_a_tile_that_answers_otherwise_is_told_and_never_kept() -> None:
    found, _ = searched({**TIMES, ("one", C): INF, ("two", B): INF})
    assert found.ways == {"one": B, "two": A}
    assert [one.us for one in found.tried] == [7.8, None, None]
    json.dumps(found.to_dict(), allow_nan=False)


def test_when_the_time_is_over_the_rest_is_named_and_what_was_kept_stays() -> None:
    asked = iter([False, True])
    found, compare = searched(TIMES, over=lambda: next(asked))
    assert found.ways == {"one": C, "two": A}
    assert found.untried == ("two",)
    assert len(compare.asked) == 2


def test_what_is_not_faster_together_is_given_up() -> None:
    us = dict(TIMES)

    class Turned(Scripted):
        def __call__(self, ways: Sequence[Any]) -> list[list[float]]:
            found = super().__call__(ways)
            if [dict(way) for way in ways] == [BASE, {"one": C, "two": A}, BASE]:
                return [[turn[0], turn[0] + 1, turn[0]] for turn in found]
            return found

    found = tuning.search(BASE, {"one": [B, C]}, Turned(us), lambda: False)
    assert found.ways == BASE
    assert (found.before_us, found.after_us) == (8.0, 8.0)
    assert not any(one.kept for one in found.tried)


def test_the_candidates_begin_with_the_models_choice_and_differ() -> None:
    for layer in (layer for name in ("student_a", "student_b") for layer in student(name).layers if isinstance(layer, Convolution)):
        cuts = best(layer, 132, 6)
        assert len({cut.tile for cut in cuts}) == 6
        assert cuts[0] == choose(layer, 132)
        kinds = {(cut.tile.y * cut.tile.x, cut.tile.n, cut.tile.warps_k) for cut in cuts}
        assert len(kinds) > 1


def base_of(network: Network) -> dict[str, Way]:
    return {step.layer_names[-1]: Way(step.cut.tile) for step in make(network, sms=132).steps if step.cut}


def test_no_layer_has_its_own_kernel_as_a_candidate() -> None:
    network = student("student_b")
    base = base_of(network)
    found = tuning.candidates_of(network, base, 132)
    assert list(found) == list(base)
    for name, of in found.items():
        assert of[0] == base[name].other
        assert len({way.tile for way in of[1:6]} - {base[name].tile}) == 5
        assert (of[6:], len(of), base[name] in of) == ([way.other for way in of[1:6]], 11, False)


@pytest.mark.skipif(not available(), reason="g++ is absent, which compiles the emulator")
@pytest.mark.parametrize("rank", range(5))
def test_every_candidate_computes_what_the_reference_does(rank: int, tmp_path: Path) -> None:
    network = plain()
    chosen = {name: dataclasses.asdict(of[1 + rank].tile) for name, of in tuning.candidates_of(network, base_of(network), 132).items()}
    image = np.random.default_rng(rank).standard_normal((1, 3, 12, 12)).astype(np.float16)
    both = []
    for name, tables in (("computed", ()), ("read", tuple(chosen))):
        (tmp_path / name).mkdir()
        emulator = Emulator(generate.generate(network, "chain", tuning=chosen, tables=tables), tmp_path / name)
        both.append(emulator.run(image))
    logits = both[0]
    assert np.array_equal(*both)
    expected = reference.run(network, image[0])
    for name, found in emulator.results().items():
        real = found[: expected[name].shape[0]].astype(np.float64)
        np.testing.assert_allclose(real, expected[name], rtol=0, atol=5e-3 * np.abs(expected[name]).max(), err_msg=name)
    answer = expected[network.layers[-1].name].reshape(1, -1)
    np.testing.assert_allclose(logits, answer, rtol=0, atol=5e-3 * np.abs(answer).max())


def test_a_kernel_alone_is_the_chains_and_compiles() -> None:
    plan = make(plain(), sms=132)
    program = generate.generate(plain(), "chain")
    for index, kernel in enumerate(program.kernels):
        source, alone = generate.link(plan, index)
        assert alone == kernel
        assert source.count('extern "C" __global__') == 1
        begin = source.index('extern "C" __global__')
        assert source[begin:] in program.source
    assert list(nvrtc.compile(source, "alone.cu", "9.0").kernels) == [alone.name]


def test_a_kernel_alone_reads_tables_where_it_is_told_to() -> None:
    plan = make(plain(), sms=132)
    computed, read = (generate.link(plan, 1, tables)[0] for tables in ((), ("wide",)))
    places = [plan.weights["wide", part] for part in generate.TABLES]
    assert [f"{name} = {place};" in read for name, place in zip(generate.TABLES, places, strict=True)] == [True, True]
    constants = computed[computed.index("struct Of_") :]
    assert re.findall(r"(OFFSETS|AIMS) = (-?\d+);", constants) == [("AIMS", "-1"), ("OFFSETS", "-1")]


def test_a_part_has_its_steps_weights_as_the_whole_file_has_them() -> None:
    plan = make(plain(), sms=132)
    whole = pack(plan)
    covered = 0
    for index, step in enumerate(plan.steps):
        part = part_of(plan, index, Kernel(step.name, 1, 32), b"", None)
        assert part.weights == whole[part.offset : part.offset + len(part.weights)]
        assert len(part.weights) >= sum(step.parts.values())
        covered += len(part.weights)
    assert covered > 0.9 * len(whole)


# On a GPU of host memory, whose time is what `cost` says of each launch.


class CostDriver(KernelDriver):
    def __init__(self, kernels: dict[str, Any], cost: Callable[[Launched], float]) -> None:
        super().__init__(kernels)
        self.cost, self.now_us, self.events = cost, 0.0, dict[int, float]()

    def _cuEventCreate(self, flags: int) -> tuple[int]:  # noqa: N802
        self.events[len(self.events) + 1] = 0.0
        return (len(self.events),)

    def _cuEventRecord(self, event: int, stream: int) -> tuple[()]:  # noqa: N802
        self.events[event] = self.now_us
        return ()

    def _cuEventElapsedTime(self, begin: int, end: int) -> tuple[float]:  # noqa: N802
        return ((self.events[end] - self.events[begin]) / 1000,)

    def _cuGraphLaunch(self, executable: int, stream: int) -> tuple[()]:  # noqa: N802
        self.now_us += sum(self.cost(work.launched) for work in self.graphs[executable])  # type: ignore[attr-defined]
        return super()._cuGraphLaunch(executable, stream)


def answers(value: float) -> Callable[[Sequence[int]], None]:
    """A kernel that gives 10 logits."""

    def run(arguments: Sequence[int]) -> None:
        ctypes.memmove(arguments[3], np.full(10, value, np.float32).tobytes(), 40)

    return run


def nothing(arguments: Sequence[int]) -> None: ...


STEPS = ("step_00_stem", "step_01_wide", "step_02_again", "step_03_down")
KERNELS = {**dict.fromkeys(STEPS, nothing), "step_04_classifier": answers(1.0), "grid": answers(1.0)}
CODE = b"\x7fELF of a test"


def compiled(source: str, name: str, capability: str) -> nvrtc.Compiled:
    found = re.findall(r'extern "C" __global__ void __launch_bounds__\([^)]*\) (\w+)\(', source)
    return nvrtc.Compiled(CODE, {kernel: Resources(32) for kernel in found}, "")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[CostDriver]:
    """Every launch costs a microsecond and a hundredth for each CTA; the compiler is none."""
    monkeypatch.setattr(nvrtc, "compile", compiled)
    monkeypatch.setattr(nvrtc, "version", lambda: "13.9")
    monkeypatch.setattr(chains, "WARM_S", 0.0)
    with installed(CostDriver(KERNELS, lambda launched: 1 + 0.01 * launched.grid)) as driver, nearby():
        yield driver


def request(folder: Path, device: str = "cuda:0", **options: Any) -> ExportRequest:
    inputs = (TensorSpec("image", ("batch", 3, 12, 12), "float32", "NCHW"),)
    outputs = (TensorSpec("logits", ("batch", 10), "float32", "NC"),)
    folder.mkdir()
    return ExportRequest(None, inputs, outputs, "fp16", folder, device=device, options=BuildOptions(tune=True, **options))


def test_a_tuned_export_has_the_tiles_that_were_fastest_and_says_what_was_timed(gpu: CostDriver, tmp_path: Path) -> None:
    entry = exporting.export_network(plain(), request(tmp_path / "tuned"))
    plain_one = dataclasses.replace(request(tmp_path / "plain"), options=BuildOptions())
    exporting.export_network(plain(), plain_one)
    tuned, before = (fused_plan.read(tmp_path / name / "plan.json") for name in ("tuned", "plain"))
    chain = tuned.schedules["chain"]
    record = chain.plan["tuned"]
    ctas = [kernel.grid for kernel in before.schedules["chain"].kernels]
    assert sum(kernel.grid for kernel in chain.kernels) < sum(ctas)
    assert record["before_us"] == pytest.approx(5 + 0.01 * sum(ctas), abs=1e-3)
    assert record["after_us"] == pytest.approx(5 + 0.01 * sum(kernel.grid for kernel in chain.kernels), abs=1e-3)
    kept = {one["layer"]: one["tile"] for one in record["tried"] if one["kept"]}
    assert kept
    steps = {step["layers"][-1]: step["tile"] for step in chain.plan["steps"]}
    assert all(steps[layer] == tile for layer, tile in kept.items())
    # The grid costs by its CTAs here: the one of fewest was found, with weights packed for it.
    grid, grids = tuned.schedules["grid"], before.schedules["grid"]
    assert grid.kernels[0].grid < grids.kernels[0].grid
    told = grid.plan["tuned"]
    assert (told["before_us"], told["after_us"]) == tuple(pytest.approx(1 + 0.01 * one.kernels[0].grid, abs=1e-3) for one in (grids, grid))
    assert {one["layer"]: one["tile"] for one in told["tried"] if one["kept"]}.items() <= {
        step["layers"][-1]: step["tile"] for step in grid.plan["steps"]
    }.items()
    assert told["flow"]["ahead"] in {0, 1, 2, 3}
    # Of both the whole was timed at the end, and the faster one runs.
    assert told["device_us"] == pytest.approx(1 + 0.01 * grid.kernels[0].grid, abs=1e-3)
    assert record["device_us"] == pytest.approx(5 + 0.01 * sum(kernel.grid for kernel in chain.kernels), abs=1e-3)
    # So it is without a search, too.
    assert (tuned.chosen, before.chosen) == ("grid", "grid")
    assert re.fullmatch(r"chain \d\.\d µs, grid \d\.\d µs measured on \S.*", before.why)
    assert re.match(
        r"grid: chain \d\.\d µs, grid \d\.\d µs measured on \S.*; replays of the chain .*with its tiles tuned", entry.toolchain["chosen"]
    )
    assert fused_plan.rows(tmp_path / "tuned" / "plan.json")[-1]["schedule"] == f"grid (chosen, {told['device_us']:.1f} µs)"
    assert json.loads(entry.toolchain["options"]) == {"tune": True}
    rows = fused_plan.rows(tmp_path / "tuned" / "plan.json")
    assert re.fullmatch(r"6 tried, \d\.\d\d → \d\.\d\d µs(, kept)?", rows[1]["tuned"])
    assert "tuned" not in fused_plan.rows(tmp_path / "plain" / "plan.json")[0]
    # Nothing of the search is left on the GPU: what is loaded there later is an engine's.
    assert (gpu.loaded, gpu.graphs) == ({}, {})


def test_a_network_that_cannot_be_compared_is_exported_all_the_same(
    gpu: CostDriver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody asked for a tuning, so what keeps schedules from being timed is no error: the chain is the default."""
    gpu.kernels = {name: answers(float("inf")) for name in gpu.kernels}
    exporting.export_network(plain(), dataclasses.replace(request(tmp_path / "plain"), options=BuildOptions()))
    plan = fused_plan.read(tmp_path / "plain" / "plan.json")
    assert plan.chosen == "chain"
    assert "predicted, not measured" in plan.why
    assert "the schedules are not timed: the first of them answers with infinities" in caplog.text
    assert (gpu.loaded, gpu.graphs) == ({}, {})


def test_both_ways_of_the_chain_are_timed_beside_the_grid(gpu: CostDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """benchmarks/fused_chain_tables.py, on the GPU of host memory, whose kernels answer without looking."""
    monkeypatch.setattr(sys, "path", [str(Path(__file__).resolve().parents[3] / "benchmarks"), *sys.path])
    import fused_chain_tables

    limits = fused_chain_tables.kernels.limits("cuda:0")
    programs = fused_chain_tables.ways(plain(), limits.sms)
    assert [program.source.count(" OFFSETS = -1;") for program in programs.values()] == [4, 0, 0]
    found = fused_chain_tables.measured(plain(), "cuda:0")
    us = {name: sum(1 + 0.01 * kernel.grid for kernel in program.kernels) for name, program in programs.items()}
    assert {name: found[name]["us"] for name in us} == pytest.approx(us, abs=1e-3)
    assert {name: found[name]["single_us"] for name in us} == pytest.approx(us, abs=1e-3)
    assert found["noise_us"] == {"us": 0.0, "single_us": 0.0}
    gpu.kernels["grid"] = answers(2.0)
    assert fused_chain_tables.measured(plain(), "cuda:0")["grid"] == {"us": None, "single_us": None}


def test_where_no_tile_is_faster_the_models_stay_and_that_is_said(gpu: CostDriver, tmp_path: Path) -> None:
    gpu.cost = lambda launched: 1.0
    exporting.export_network(plain(), request(tmp_path / "tuned"))
    chain = fused_plan.read(tmp_path / "tuned" / "plan.json").schedules["chain"]
    assert not any(one["kept"] for one in chain.plan["tuned"]["tried"])
    assert chain.kernels == generate.generate(plain(), "chain").kernels
    grid = fused_plan.read(tmp_path / "tuned" / "plan.json").schedules["grid"]
    assert grid.kernels == generate.generate(plain(), "grid").kernels
    assert not any(one["kept"] for name in ("tried", "tried_flow") for one in grid.plan["tuned"][name])


def test_in_no_time_nothing_is_timed_and_every_layer_is_named(gpu: CostDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporting.export_network(plain(), request(tmp_path / "tuned", tune_s=1e-9))
    record = fused_plan.read(tmp_path / "tuned" / "plan.json").schedules["chain"].plan["tuned"]
    assert set(record["untried"]) <= {"stem", "wide", "again", "down"}
    assert record["tried"] == []
    grid = fused_plan.read(tmp_path / "tuned" / "plan.json").schedules["grid"].plan["tuned"]
    assert (grid["tried"], grid["rounds"], set(grid["untried"])) == ([], 0, {"stem", "wide", "again", "down"})


def test_a_candidate_that_the_compiler_refuses_or_spills_is_left_out(
    gpu: CostDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile = nvrtc.compile
    base = make(plain(), sms=132)
    tile = next(step.cut.tile for step in base.steps if step.name == "wide" and step.cut)

    def partly(source: str, name: str, capability: str) -> nvrtc.Compiled:
        found = compile(source, name, capability)
        if name == "step_01_wide.cu" and f"TILE_N = {tile.n};" not in source:
            raise nvrtc.NotCompiled("no", "log")
        spilled = {kernel: Resources(128, spills=8) for kernel in found.kernels}
        return dataclasses.replace(found, kernels=spilled) if name == "step_02_again.cu" else found

    monkeypatch.setattr(nvrtc, "compile", partly)
    exporting.export_network(plain(), request(tmp_path / "tuned"))
    tried = fused_plan.read(tmp_path / "tuned" / "plan.json").schedules["chain"].plan["tuned"]["tried"]
    assert {one["tile"]["n"] for one in tried if one["layer"] == "wide"} <= {tile.n}
    assert "again" not in {one["layer"] for one in tried}
    assert {"stem", "down"} <= {one["layer"] for one in tried}


def test_a_kernel_of_the_chain_itself_that_is_refused_ends_the_search(
    gpu: CostDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: str, name: str, capability: str) -> nvrtc.Compiled:
        raise nvrtc.NotCompiled("no", "log")

    monkeypatch.setattr(nvrtc, "compile", refuse)
    with pytest.raises(nvrtc.NotCompiled):
        exporting.export_network(plain(), request(tmp_path / "tuned"))
    assert list((tmp_path / "tuned").iterdir()) == []


def test_a_chain_that_answers_otherwise_takes_for_ever(gpu: CostDriver) -> None:
    gpu.kernels |= {"right": answers(2.0), "almost": answers(2.01), "wrong": answers(2.1), "none": nothing}
    stream = device.open_stream("cuda:0")
    assert stream is not None
    both = Chains("cuda:0", stream, np.ones((1, 3, 4, 4), np.float16), 256, 10)
    plan = make(plain(), sms=132)
    calls = [0]

    def failing(arguments: Sequence[int]) -> None:
        # A wait that runs out later: the launches behind it end at once.
        calls[0] += 1
        (answers(2.0) if calls[0] < 50 else nothing)(arguments)

    gpu.kernels["failing"] = failing
    both.add("failing", part_of(plan, 0, Kernel("failing", 10, 32), CODE, None))
    for name in ("right", "almost", "wrong", "none"):
        both.add(name, part_of(plan, 0, Kernel(name, 10, 32), CODE, None))
    turns = both.compare([["right"], ["almost"], ["wrong"], ["none"], ["right"]])
    assert len(turns) == TURNS
    assert turns[0] == [pytest.approx(1.1), pytest.approx(1.1), INF, INF, pytest.approx(1.1)]
    assert gpu.graphs == {}
    assert both.compare([["right"], ["failing"]])[0][1] == INF
    assert both.compare([["right"]], single=True)[0] == [pytest.approx(1.1)]
    with pytest.raises(AccelError, match="answers with infinities"):
        both.compare([["none"], ["right"]])


def test_each_kernel_reads_its_own_weights_where_its_plan_has_them(gpu: CostDriver, tmp_path: Path) -> None:
    plan = make(plain(), sms=132)
    seen = {}
    for index in (1, 3):
        part = part_of(plan, index, Kernel("look", 1, 32), CODE, None)

        def look(arguments: Sequence[int], part: Any = part) -> None:
            seen[part.offset] = ctypes.string_at(arguments[1] + part.offset, len(part.weights)) == part.weights
            answers(1.0)(arguments)

        gpu.kernels["look"] = look
        stream = device.open_stream("cuda:0")
        assert stream is not None
        one = Chains("cuda:0", stream, np.ones((1, 3, 4, 4), np.float16), 256, 10)
        one.add("look", part)
        one.compare([["look"]])
    assert list(seen.values()) == [True, True]


def test_a_schedule_that_answers_otherwise_or_cannot_be_launched_is_not_chosen(
    gpu: CostDriver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.kernels["grid"] = answers(2.0)
    exporting.export_network(plain(), request(tmp_path / "wrong", tune_s=1e-9))
    plan = fused_plan.read(tmp_path / "wrong" / "plan.json")
    assert plan.chosen == "chain"
    assert "device_us" not in plan.schedules["grid"].plan["tuned"]
    assert "answers otherwise than the chain" in caplog.text
    gpu.room = 0
    exporting.export_network(plain(), request(tmp_path / "large", tune_s=1e-9))
    plan = fused_plan.read(tmp_path / "large" / "plan.json")
    assert (plan.chosen, "tuned" in plan.schedules["grid"].plan) == ("chain", False)
    assert "the grid's tiles are not tuned" in caplog.text
    assert "the schedule grid is not timed" in caplog.text
    # What is not tuned has no time at all.
    assert "measured on" in plan.why
    assert "grid" not in plan.why.partition(" measured on")[0]


# What is refused.


def test_without_a_gpu_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no GPU here") as refused:
        exporting.export_network(plain(), request(tmp_path / "tuned", device="cpu"))
    assert "leave --tune out" in str(refused.value)
    assert list((tmp_path / "tuned").iterdir()) == []


def test_for_other_gpus_than_the_one_here_it_is_refused(gpu: CostDriver, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"of compute capability 9\.0; the engine is for 8\.0"):
        exporting.export_network(plain(), request(tmp_path / "tuned", compute_capabilities=("8.0",)))


def test_no_time_at_all_is_no_option_and_other_formats_have_none() -> None:
    with pytest.raises(UsageError, match="cannot be tuned in 0 s"):
        BuildOptions(tune_s=0)


@pytest.mark.parametrize("doctored", [{"tried": [{"layer": "wide"}]}, {"tried": [1]}, [], {"device_us": "fast"}])
def test_a_doctored_record_is_refused(gpu: CostDriver, tmp_path: Path, doctored: Any) -> None:
    exporting.export_network(plain(), request(tmp_path / "tuned", tune_s=1e-9))
    file = tmp_path / "tuned" / "plan.json"
    data = json.loads(file.read_text())
    data["schedules"]["chain"]["plan"]["tuned"] = doctored
    file.write_text(json.dumps(data))
    with pytest.raises(CorruptArtifact, match="'plan'"):
        fused_plan.rows(file)
