"""benchmarks/fused_check.py on a driver of host memory: a right engine passes every check, a wrong one does not.

fused_vs_tensorrt.py on a scripted set, and what it refuses to compare.
."""

from __future__ import annotations

import dataclasses
import json
import lzma
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.core", reason="cuda-core is not installed")

from exporters.fused import handmade
from exporters.fused.networks import short
from fake_cuda import installed
from fake_kernels import KernelDriver
from fake_worker import nearby

from accel import device
from accel.bench import results
from accel.errors import GateError
from accel.exporters.fused import exporting
from accel.exporters.fused.generate import Flow, generate

ROOT = Path(__file__).resolve().parents[1]
CHECKS = ("layers", "times", "carveout", "images", "refused", "repeat", "threads", "crowded")


class TimedDriver(KernelDriver):
    """With events, a microsecond apart from each other."""

    def _cuEventCreate(self, flags: int) -> tuple[int]:  # noqa: N802
        return (1,)

    def _cuEventElapsedTime(self, begin: int, end: int) -> tuple[float]:  # noqa: N802
        return (0.001,)


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[int, dict[str, Any]]]]:
    """check(kernels) → exit code and record of a run with the handmade network."""
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import fused_check

    monkeypatch.setattr(exporting, "GENERATOR", "exporters.fused.handmade:generate")
    monkeypatch.setattr(fused_check, "NETWORKS", {"hand": handmade.network})
    monkeypatch.setattr(fused_check, "SHIPPED", ("hand",))
    monkeypatch.setattr(device, "parse", lambda text: "cuda:0")
    for name, value in {"WARM_S": 0.0, "LENGTH": 2, "ROUNDS": 2, "REPEATS": 2, "PART_LENGTH": 1, "WAY_ROUNDS": 2}.items():
        monkeypatch.setattr(fused_check.fused_timing, name, value)

    def run(kernels: dict[str, Any], *arguments: str) -> tuple[int, dict[str, Any]]:
        out = tmp_path / "check.json"
        words = ["--launches", "5", "--samples", "3", "--images", "2", "--seed", "1", "--out", str(out), *arguments]
        monkeypatch.setattr(sys, "argv", ["fused_check.py", *words])
        with installed(TimedDriver({"crowd": lambda arguments: None, **kernels})) as driver, nearby():
            driver.parameters["crowd"] = 1
            code = fused_check.main()
        return code, json.loads(out.read_text())

    yield run
    sys.modules.pop("fused_check", None)


def test_a_right_engine_passes_every_check_of_every_schedule(check: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    code, record = check(handmade.EMULATED)
    assert [(row["schedule"], row["check"]) for row in record["rows"]] == [(name, what) for what in CHECKS for name in ("chain", "grid")]
    assert {row["ok"] for row in record["rows"]} == {True}, record
    assert code == 0
    by = {(row["schedule"], row["check"]): row for row in record["rows"]}
    assert set(by["grid", "layers"]["of"]) == {"mean", "fc"}
    assert "1 of them cooperative; the graph has 1 and 0" in by["grid", "refused"]["not cooperative"]
    assert "resident at once" in by["grid", "refused"]["does not fit"]
    assert list(by["chain", "times"]["kernels_us"]) == ["mean", "fc"]
    assert "cluster of one CTA" in record["left_out"]["hand"]["cluster"]


def test_both_carve_outs_are_timed_in_turn_and_the_largest_is_what_stays(
    check: Callable[..., tuple[int, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    allow = TimedDriver._cuFuncSetAttribute

    def recorded(self: Any, function: str, attribute: Any, value: int) -> tuple[()]:
        if "CARVEOUT" in attribute.name and function == "fc":
            asked.append(value)
        return allow(self, function, attribute, value)

    monkeypatch.setattr(TimedDriver, "_cuFuncSetAttribute", recorded)
    _, record = check(handmade.EMULATED)
    (row,) = [row for row in record["rows"] if (row["schedule"], row["check"]) == ("chain", "carveout")]
    assert {name: len(turns) for name, turns in row["device_us_turns"].items()} == {"largest": 2, "driver": 2}
    assert (row["device_us_largest"], row["device_us_driver"]) == (1.0, 1.0)
    # Once when it is opened for each check; in this one in turn, and back.
    assert [value for value in asked if value == -1] == [-1, -1]
    first = asked.index(-1)
    assert asked[first - 1 : first + 4] == [100, -1, 100, -1, 100]


def test_images_in_turn_are_answered_from_where_they_are_and_the_ways_to_bring_them_are_timed(
    check: Callable[..., tuple[int, dict[str, Any]]],
) -> None:
    _, record = check(handmade.EMULATED)
    for schedule in ("chain", "grid"):
        (row,) = [row for row in record["rows"] if (row["schedule"], row["check"]) == (schedule, "images")]
        # With a graph and without.
        assert (row["launches"], row["differing"], row["differing_at_once"], row["blocked"]) == (10, 0, 0, 0)
        assert row["image"] == "read where it is"
        assert {name for name in row if name.startswith("host_us_")} == {
            f"host_us_{way}" for way in ("home", "set", "copied", "own", "turns")
        }


def test_an_engine_that_answers_from_another_memory_than_the_bindings_fails(
    check: Callable[..., tuple[int, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TimedDriver, "_cuGraphExecKernelNodeSetParams", lambda *_: ())
    code, record = check(handmade.EMULATED)
    failed = {(row["schedule"], row["check"]) for row in record["rows"] if row["ok"] is False}
    assert (code, failed) == (1, {("chain", "images"), ("grid", "images")})


def test_an_engine_that_leaves_a_layer_out_or_wavers_fails(check: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    draw = np.random.default_rng(0)

    def wavering(arguments: Any) -> None:
        handmade.fc(arguments)
        logits = handmade._array(arguments[3], (handmade.CLASSES,), np.float32)
        logits += draw.standard_normal(handmade.CLASSES).astype(np.float32) * np.float32(1e-4)

    code, record = check({"mean": lambda arguments: None, "fc": wavering, "whole": lambda arguments: None})
    failed = {(row["schedule"], row["check"]) for row in record["rows"] if row["ok"] is False}
    assert code == 1
    assert failed >= {("chain", "layers"), ("grid", "layers"), ("chain", "repeat"), ("grid", "repeat"), ("chain", "threads")}


def test_what_the_time_does_not_suffice_for_is_said(check: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    code, record = check(handmade.EMULATED, "--seconds", "-1")
    assert code == 0
    assert {(row["ok"], row["reason"]) for row in record["rows"]} == {(None, "not run: no time left")}


def test_without_a_gpu_it_compiles_and_prints_what_kernels_use(
    check: Callable[..., tuple[int, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = check(handmade.EMULATED, "--compile-only")
    said = capsys.readouterr().out
    assert code == 0
    assert [line.split()[3] for line in said.splitlines() if line.startswith("hand")] == ["mean", "fc", "whole"]


def test_checks_and_schedules_that_are_named_are_run_alone(check: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    code, record = check(handmade.EMULATED, "--checks", "layers", "repeat", "--schedules", "grid")
    assert code == 0
    assert [(row["schedule"], row["check"], row["ok"]) for row in record["rows"]] == [("grid", "layers", True), ("grid", "repeat", True)]


def test_the_steps_of_a_cluster_are_shown_beside_what_was_predicted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import fused_cluster_steps

    names = fused_cluster_steps.stamps(fused_cluster_steps.plan_cluster(short()))

    def clocked(arguments: Any) -> None:
        """Stamps 100 cycles apart, of CTA 3 130; the counter of all goes round between the first two."""
        state = handmade._array(arguments[4], (16, len(names)), np.uint32)
        apart = np.where(np.arange(16) == 3, 130, 100)[:, None] * np.arange(len(names))
        state[:] = (2**32 - 50 + apart).astype(np.uint64).astype(np.uint32)

    monkeypatch.setattr(fused_cluster_steps, "NETWORKS", {"short": short})
    monkeypatch.setattr(device, "parse", lambda text: "cuda:0")
    monkeypatch.setattr(sys, "argv", ["fused_cluster_steps.py", "--network", "short", "--out", str(tmp_path / "steps.json")])
    with installed(TimedDriver({"cluster": clocked})) as driver:
        assert fused_cluster_steps.main() == 0
        assert driver.launched[-1].cluster == 16
    lines = capsys.readouterr().out.splitlines()
    assert all(re.search(r" 100 +100 +130( +\d+)?$", line.rstrip()) for line in lines[2 : len(names) + 1])
    assert [line.split()[0] for line in lines if "patch there" in line] == ["last:"]
    assert f" {(len(names) - 1) * 100} " in lines[len(names) + 1]
    record = json.loads((tmp_path / "steps.json").read_text())["networks"]["short"]
    assert record["cycles"] == (len(names) - 1) * 100
    assert record["launch_us"] == pytest.approx(1 / 200, abs=1e-3)
    assert [row["up to"] for row in record["steps"]] == list(names[1:])
    steps = [row["step_predicted"] for row in record["steps"] if row["step_predicted"] is not None]
    assert sum(steps) == pytest.approx(record["predicted"], abs=len(steps))
    assert {(row["cta_0"], row["median"], row["most"]) for row in record["steps"]} == {(100, 100, 130)}


def test_a_kernel_that_does_nothing_is_timed_in_every_shape(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import fused_launch

    monkeypatch.setattr(device, "parse", lambda text: "cuda:0")
    monkeypatch.setattr(fused_launch, "SAMPLES", 2)
    monkeypatch.setattr(sys, "argv", ["fused_launch.py", "--out", str(tmp_path / "launch.json")])
    with installed(TimedDriver({"nothing": lambda arguments: None})) as driver:
        driver.parameters["nothing"] = 1
        assert fused_launch.main() == 0
        shapes = [(one.grid, one.shared, one.cluster, one.cooperative) for one in driver.launched]
    kernels = fused_launch.SHAPES.values()
    # Once alone, and once into a graph.
    assert shapes == [(one.grid, one.shared, one.cluster, one.cooperative) for one in kernels for _ in range(2)]
    assert json.loads((tmp_path / "launch.json").read_text())["us"] == dict.fromkeys(("nothing between", *fused_launch.SHAPES), 1.0)
    assert len(capsys.readouterr().out.splitlines()) == len(shapes) // 2 + 2


@pytest.fixture
def grid_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import fused_grid_steps

    yield fused_grid_steps
    del sys.modules["fused_grid_steps"]


def canned(module: Any, plan: Any, ctas: int) -> np.ndarray[Any, Any]:
    """CTAs × threads × stamps: 100 cycles from each to the next, of CTA 3 130, of the last warp 50 more; the counter goes round at 250."""
    times, place = dict[int, int](), module.stamps.place
    found = np.zeros((ctas, 2, module.stamps.words(plan)), np.uint32)
    parts = [span for span in module.spans(plan, ctas) if span.up_to not in ("the step", "the kernel")]
    for cta in range(ctas):
        for thread in (0, 1):
            times = {place("BEGIN"): 2**32 - 250}
            for span in parts:
                begin = times.setdefault(span.begin, max(times.values()))
                times[span.end] = begin + (130 if cta == 3 else 100) + 50 * thread
            for index, time in times.items():
                found[cta, thread, index] = time % 2**32
    found[:, :, place("NANOSECONDS_BEGIN")] = 1000 + 32 * np.arange(ctas)[:, None]
    found[:, :, place("NANOSECONDS_END")] = 9000 + 64 * np.arange(ctas)[:, None]
    return found


@pytest.mark.parametrize("own_head", [False, True])
def test_the_parts_of_a_grids_steps_are_differences_of_stamps(
    own_head: bool, grid_steps: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    network = short()
    flow = Flow(fetch_late=False, head_in_last=not own_head)
    plan = grid_steps.ordered(grid_steps.make(network, sms=132), flow)
    ctas = generate(network, "grid").kernels[0].grid
    assert 3 < plan.steps[0].tiles <= ctas
    moments, sizes = canned(grid_steps, plan, ctas), list[int]()

    def clocked(arguments: Any) -> None:
        # The kernel with stamps has more State, and comes first.
        if len(sizes) < 2 * grid_steps.LAUNCHES:
            size = generate(network, "grid", flow=flow, timed=True).state_bytes if not sizes else sizes[0]
            handmade._array(arguments[4], (size,), np.uint8)[-moments.nbytes :] = moments.view(np.uint8).ravel()
            sizes.append(size)

    monkeypatch.setattr(grid_steps, "LAUNCHES", 3)
    monkeypatch.setattr(grid_steps, "NETWORKS", {"short": short})
    monkeypatch.setattr(device, "parse", lambda text: "cuda:0")
    out = tmp_path / "steps.json"
    changed = json.dumps({"fetch_late": False, "head_in_last": not own_head})
    monkeypatch.setattr(sys, "argv", ["fused_grid_steps.py", "--network", "short", "--flow", changed, "--out", str(out)])
    with installed(TimedDriver({"grid": clocked})) as driver:
        assert grid_steps.main() == 0
        assert all(one.cooperative for one in driver.launched)
        assert len(driver.launched) == 4 * grid_steps.LAUNCHES
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 100
    assert f"CTAs begin {32 * (ctas - 1)} ns apart and end {64 * (ctas - 1)} ns apart" in said
    record = json.loads(out.read_text())["networks"]["short"]
    assert record["flow"] == dataclasses.asdict(flow)
    assert record["timed_us"] == pytest.approx(1 / 3, abs=1e-3)
    assert record["clocks"]["kernel_ns"] == 8000 + 64 * (ctas - 1)
    by: dict[str, list[Any]] = {}
    for row in record["rows"]:
        by.setdefault(row["step"], []).append(row)
        if row["up to"] not in ("the step", "the kernel"):
            has_3 = row["ctas"] > 3
            assert row["first"] == {"cta_0": 100, "median": 100, "most": 130 if has_3 else 100}, row
            assert row["last"] == {"cta_0": 150, "median": 150, "most": 180 if has_3 else 150}, row
    assert list(by) == ["kernel", *(step.name for step in plan.steps)]
    for number, step in enumerate(plan.steps, 1):
        *parts, whole = by[step.name]
        settled = number == 1
        assert len(parts) == len(grid_steps.stamps.OF_KIND[step.kind]) - 1 + settled
        assert whole["first"]["cta_0"] == len(parts) * 100
        assert {row["ctas"] for row in by[step.name]} == {min(step.tiles, ctas)}
    assert record["sums"]["multiplied"] == {"cta_0": 100 * (len(plan.steps) - 1), "median": 100 * (len(plan.steps) - 1)}


def test_a_tuned_grid_is_found_again_in_its_plan(grid_steps: Any) -> None:
    plans = json.loads(lzma.decompress((ROOT / "results" / "h200" / "fused" / "tuned.json.xz").read_bytes()))
    network = grid_steps.NETWORKS["student_a"]()
    way = grid_steps.tuned(plans["student_a"], network)
    assert (way.flow.ahead, way.flow.fetch_late, way.flow.look_first, way.flow.pause) == (2, True, False, 400)
    steps = {step.layer_names[0]: step for step in grid_steps.make(network, sms=132, tuning=way.tuning).steps}
    assert len(way.tuning) == 2
    for layer, tile in way.tuning.items():
        assert {name: getattr(steps[layer].cut.tile, name) for name in tile} == tile
    with pytest.raises(SystemExit, match="tiles of 5 layers"):
        grid_steps.tuned(plans["student_a"], short())


@pytest.fixture
def code_fetch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import fused_code_fetch

    yield fused_code_fetch
    del sys.modules["fused_code_fetch"]


def test_straight_code_is_timed_from_the_first_warp_to_the_last_in_every_way(
    code_fetch: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def running(name: str) -> Callable[[Any], None]:
        def clocked(arguments: Any) -> None:
            """Warps begin 3 cycles apart, the counter goes round; each takes 1000 cycles in the first pass and 700 in the second."""
            out, masks, skips, passes, count = arguments
            kept = handmade._array(out, (132, 2, 8, 2), np.uint32)
            launched.append((name, masks, skips, passes, count))
            for number in range(passes):
                for warp in (warp for warp in range(8) if masks >> (8 * number + warp) & 1):
                    begin = 2**32 - 10 + 3 * warp
                    kept[:, number, warp] = begin % 2**32, (begin + (700 if number else 1000)) % 2**32

        return clocked

    launched: list[tuple[Any, ...]] = []
    monkeypatch.setattr(device, "parse", lambda text: "cuda:0")
    monkeypatch.setattr(code_fetch, "SIZES", (2, 4))
    monkeypatch.setattr(code_fetch.measured, "__defaults__", ((2, 4),))
    monkeypatch.setattr(sys, "argv", ["fused_code_fetch.py", "--out", str(tmp_path / "code.json")])
    with installed(TimedDriver({name: running(name) for name in code_fetch.KERNELS})) as driver:
        assert code_fetch.main() == 0
        assert {(one.grid, one.block, one.shared) for one in driver.launched} == {(ctas, 256, code_fetch.SHARED) for ctas in (1, 132)}
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100
    rows = json.loads((tmp_path / "code.json").read_text())["rows"]
    assert [row["kb"] for row in rows] == [2, 4]
    assert rows[1]["bytes"] - rows[0]["bytes"] == 2048
    found = {name: of["cycles"] for name, of in rows[1]["columns"].items()}
    one, all_of_them, others = 1000, 1021, 718
    assert found == {
        **dict.fromkeys(("new module", "back to back", "behind another", "one CTA", "rolled", "skippable"), all_of_them),
        "2nd pass": 721,
        **dict.fromkeys(("ahead: warp 7", "skipping: warp 7"), one),
        **dict.fromkeys(("ahead: others", "skipping: others"), others),
    }
    beyond = {name: of["beyond_issue_a_kb"] for name, of in rows[1]["columns"].items()}
    # 256 instructions, by two warps a scheduler and by one; 3 beside a piece of 32 that can be skipped.
    assert beyond["back to back"] == round((1021 - 512) / 4, 1)
    assert beyond["ahead: warp 7"] == 1000 / 4 - 64
    assert beyond["skipping: warp 7"] == (1000 - 24) / 4
    assert beyond["skipping: others"] == round((718 - 2 * 280) / 4, 1)
    # In front of what is behind another stands the other.
    other = ("straight", 0xFF, 0, 1, code_fetch.pieces(code_fetch.OTHER))
    assert all(launched[index - 1] == other for index, one in enumerate(launched) if one[2] or one[3] == 2)
    assert ("skippable", 0x7F80, 0x80, 2, 8) in launched


def test_code_that_is_not_as_large_as_it_says_is_not_timed(code_fetch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_fetch.skipping(code_fetch.compiled(32, "9.0"), 32) == 3
    monkeypatch.setattr(code_fetch, "source", lambda kb, source=code_fetch.source: source(kb // 4))
    with pytest.raises(SystemExit, match=r"straight of 16 KB has .* bytes of machine code"):
        code_fetch.compiled(16, "9.0")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import fused_model

    yield fused_model
    del sys.modules["fused_model"]


def scripted(model: Any, file: Path, us: Callable[[int, Any], float], network: str = "student_b") -> Path:
    steps = model.make(model.NETWORKS[network](), sms=model.SMS).steps
    kernels = {f"step_{index:02}_{step.name}": us(index, step) for index, step in enumerate(steps)}
    file.write_text(json.dumps({"rows": [{"network": network, "check": "layers"}, {"network": network, "kernels_us": kernels}]}))
    return file


def test_a_line_through_measured_times_is_found_again(model: Any, tmp_path: Path) -> None:
    files = [
        scripted(model, tmp_path / f"{name}.json", lambda index, step: 0.3 + 2.5 * step.body_us + (0 if index else 2.0), name)
        for name in ("student_a", "student_b")
    ]
    found = model.summary(list(model.read(files)))
    assert (found["between_us"], found["slope"], found["convolutions"]) == (pytest.approx(0.3), pytest.approx(2.5), 11)
    assert found["rms_fitted_us"] == pytest.approx(0, abs=1e-9)
    assert found["rms_left_out_us"] == pytest.approx(0, abs=1e-9)
    assert found["rms_now_us"] > 0.5
    # features of the same cut are in both students.
    assert found["rms_alike_us"] == pytest.approx(0, abs=1e-9)
    assert found["first_us"] > 2


def test_kernels_of_another_plan_are_not_held_against_this_one(model: Any, tmp_path: Path) -> None:
    file = scripted(model, tmp_path / "check.json", lambda index, step: 1.0)
    file.write_text(file.read_text().replace("step_03", "step_33"))
    with pytest.raises(SystemExit, match="are not those of its plan today"):
        list(model.read([file]))


def test_what_was_measured_on_an_h200_can_be_read(model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["fused_model.py", str(ROOT / "results" / "h200" / "fused" / "check.json")])
    assert model.main() == 0
    said = capsys.readouterr().out
    assert "convolutions     11" in said
    assert re.search(r"rms_fitted_us +0\.\d+", said)


@pytest.fixture
def versus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import fused_vs_tensorrt

    yield fused_vs_tensorrt
    del sys.modules["fused_vs_tensorrt"]


def test_the_ratio_is_tensorrts_time_over_fuseds_and_only_of_good_rows(versus: Any, tmp_path: Path) -> None:
    from report.report_sets import write_set

    times = {
        "tensorrt:fp16": {"host_us": 60, "device_us": 45},
        "fused:fp16": {"host_us": 30, "device_us": 15},
        "fused:fp16+grid": {"host_us": 10, "device_us": 5, "verdict": "INVALID", "reason": "12 % of predictions changed"},
    }
    folder = write_set(tmp_path / "set", times)
    rows = {row["variant"]: row for row in versus.compared(versus.ResultSet(folder, {}, list(results.read_rows(folder / results.JSONL))))}
    assert rows["fused:fp16"]["device_us_ratio"]["ratio"] == pytest.approx(3.0, rel=1e-3)
    assert rows["fused:fp16"]["host_us_ratio"]["ratio"] == pytest.approx(2.0, rel=1e-3)
    assert rows["tensorrt:fp16"]["device_us_ratio"] is None
    assert (rows["fused:fp16+grid"]["verdict"], rows["fused:fp16+grid"]["device_us_ratio"]) == ("INVALID", None)
    said = versus.report({"model": "m", "gpu": "G", "tensorrt": "10.13", "tactic_sources": "JIT", "rows": list(rows.values())})
    assert "TensorRT 10.13 (JIT)" in said
    versus.demand_ratio(list(rows.values()), 2.9)
    with pytest.raises(GateError, match=r"was to be 3\.5 times as fast"):
        versus.demand_ratio(list(rows.values()), 3.5)


def test_nothing_is_timed_without_a_gpu_or_without_tensorrt(
    versus: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(versus.api, "bench", lambda *_, **__: pytest.fail("timed"))
    monkeypatch.setattr(sys, "argv", ["fused_vs_tensorrt.py", "--device", "cpu"])
    assert versus.main() == 4
    monkeypatch.setattr(versus.device, "parse", lambda text: "cuda:0")
    monkeypatch.setattr(versus.runtimes, "version", lambda name: None)
    with installed(KernelDriver({})) as driver:
        assert versus.main() == 4
        driver.capability.update({75: 7, 76: 5})
        assert versus.main() == 5
    said = capsys.readouterr().err
    assert "run on NVIDIA GPUs only" in said
    assert "tensorrt is not installed, so there is nothing to compare with" in said
    assert "pip install 'accel-engines[trt]'" in said
    assert "has compute capability 7.5" in said
