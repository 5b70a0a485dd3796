"""Candidates that kill their CUDA context: the search and the export go on without them, and say which they were."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cuda.core", reason="cuda-core is not installed")

from exporters.fused.networks import plain
from exporters.fused.test_fused_tuning import CODE, KERNELS, CostDriver, answers, compiled, request
from fake_cuda import Code, installed
from fake_kernels import Launched
from fake_worker import Thread, nearby

from accel import device
from accel.device import nvrtc
from accel.engines import fused_plan
from accel.errors import DeviceUnavailable, RuntimeUnavailable
from accel.exporters import BuildOptions, ExportRequest
from accel.exporters.fused import apart, chains, exporting, generate, tiles, tuning
from accel.exporters.fused.apart import Apart, CannotMeasure, Died
from accel.exporters.fused.chains import Part, Room
from accel.exporters.fused.generate import Flow
from accel.exporters.fused.network import INPUT, Convolution
from accel.exporters.fused.plan import make
from accel.types import Kernel

ROOM = Room((1, 3, 12, 12), "float16", 4096, 10)
ILLEGAL = "CUDA_ERROR_ILLEGAL_ADDRESS"
ALLOWED = ("cuGetErrorString", "cuDeviceGet", "cuDeviceGetCount", "cuDeviceGetAttribute", "cuInit")
"""What a driver still answers when the context is gone."""


class Gone(dict[str, Code]):
    """Every call that needs the context fails."""

    def __contains__(self, name: object) -> bool:
        return name not in ALLOWED

    def __missing__(self, name: str) -> Code:
        return Code.CUDA_ERROR_ILLEGAL_ADDRESS


class MortalDriver(CostDriver):
    """Attributes: kills: whether a launch that runs ends the context. replayed: whether a graph has it launched."""

    def __init__(self, kernels: dict[str, Any], cost: Callable[[Launched], float]) -> None:
        super().__init__(kernels, cost)
        self.kills: Callable[[Launched], bool] = lambda launched: False
        self.replayed = False

    def revive(self) -> None:
        self.fail, self.capturing = {}, None

    def _run(self, launched: Launched) -> None:
        if self.kills(launched):
            self.fail = Gone()

    def _cuLaunchKernelEx(self, config: Any, function: str, parameters: int, extra: int) -> tuple[()]:  # noqa: N802
        super()._cuLaunchKernelEx(config, function, parameters, extra)
        if self.capturing is None:
            self._run(self.launched[-1])
        return ()

    def _cuGraphLaunch(self, executable: int, stream: int) -> tuple[()]:  # noqa: N802
        super()._cuGraphLaunch(executable, stream)
        self.replayed = True
        for work in self.graphs[executable]:
            self._run(work.launched)  # type: ignore[attr-defined]
        self.replayed = False
        return ()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[MortalDriver]:
    monkeypatch.setattr(nvrtc, "compile", compiled)
    monkeypatch.setattr(nvrtc, "version", lambda: "13.9")
    monkeypatch.setattr(chains, "WARM_S", 0.0)
    with installed(MortalDriver(dict(KERNELS), lambda launched: 1 + 0.01 * launched.grid)) as driver:
        yield driver


@pytest.fixture
def started(gpu: MortalDriver) -> Iterator[list[Thread]]:
    with nearby(gpu.revive) as found:
        yield found


def part(name: str, **of: Any) -> Part:
    return Part((Kernel(name, **{"grid": 10, "block": 256, **of}),), CODE, 0, b"weights")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def untuned(given: ExportRequest) -> ExportRequest:
    return dataclasses.replace(given, options=BuildOptions())


# One process after another.


@pytest.fixture
def one(gpu: MortalDriver, started: list[Thread]) -> Iterator[Apart]:
    gpu.kernels |= {name: answers(1.0) for name in ("first", "second", "third")} | {"deadly": answers(1.0)}
    gpu.kills = lambda launched: launched.kernel == "deadly"
    found = Apart(ROOM, "cuda:0")
    try:
        yield found
    finally:
        found.close()


def test_what_kills_its_process_is_said_and_the_others_are_there_still(one: Apart, started: list[Thread]) -> None:
    made = list[str]()

    def again(name: str) -> Callable[[], Part]:
        return lambda: made.append(name) or part(name)  # type: ignore[func-returns-value]

    one.add("a", part("first"), again("first"))
    with pytest.raises(Died, match=f"waiting for the stream failed: {ILLEGAL}"):
        one.add("b", part("deadly"))
    assert ("a" in one, "b" in one) == (True, False)
    assert [(set(killed.keys), ILLEGAL in killed.error) for killed in one.killed] == [({"b"}, True)]
    one.add("c", part("second", grid=20))
    assert len(started) == 2
    assert made == []
    # Of the process that ended only what is compared is made once more.
    turns = one.compare([["a"], ["c"], ["a"]])
    assert turns[0] == [pytest.approx(1.1), pytest.approx(1.2), pytest.approx(1.1)]
    assert (made, len(started)) == (["first"], 2)
    one.compare([["a"], ["b"], ["c"]])
    assert len(started) == 2


def test_what_kills_in_a_replay_takes_for_ever_and_is_not_run_again(one: Apart, gpu: MortalDriver, started: list[Thread]) -> None:
    gpu.kills = lambda launched: launched.kernel == "second" and gpu.replayed
    for name in ("first", "second", "third"):
        one.add(name, part(name))
    turns = one.compare([["first"], ["third"], ["second"], ["first"]])
    assert [us < float("inf") for us in turns[0]] == [True, True, False, True]
    assert (len(started), [set(killed.keys) for killed in one.killed]) == (2, [{"second"}])
    # A chain is told by what the first has not.
    gpu.kills = lambda launched: launched.kernel == "third" and gpu.replayed
    assert [us < float("inf") for us in one.compare([["first"], ["first", "third"]])[0]] == [True, False]
    assert [set(killed.keys) for killed in one.killed] == [{"second"}, {"third"}]
    gpu.kills = lambda launched: gpu.replayed
    with pytest.raises(Died, match=ILLEGAL):
        one.compare([["first"], ["first"]])
    with pytest.raises(Died, match=ILLEGAL):
        one.compare([["first"], ["first"]])
    assert "first" not in one


def test_what_cannot_be_launched_kills_nothing(one: Apart, gpu: MortalDriver, started: list[Thread]) -> None:
    gpu.room = 0
    with pytest.raises(RuntimeUnavailable, match="it has room for 0") as refused:
        one.add("a", part("first", cooperative=True))
    assert refused.value.remedy == "leave --tune out"
    one.add("b", part("second"))
    assert (len(started), one.killed) == (1, [])


# In an export.


def test_a_grid_that_kills_its_process_costs_nothing_but_itself(
    gpu: MortalDriver, started: list[Thread], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As `ahead` 0 of ResNet-18's did on an H200, out of its shared memory: all that followed failed, and the export with it."""
    none_ahead, one_ahead = (generate.grid_of(make(plain(), sms=132), Flow(ahead))[1].shared for ahead in (0, 1))
    deadly = (none_ahead + one_ahead) // 2
    gpu.kills = lambda launched: launched.kernel == "grid" and launched.shared < deadly
    entry = exporting.export_network(plain(), request(tmp_path / "tuned"))
    plan = fused_plan.read(tmp_path / "tuned" / "plan.json")
    record = plan.schedules["grid"].plan["tuned"]
    assert record["killed"]
    for killed in record["killed"]:
        again = generate.generate(plain(), "grid", sms=132, tuning=killed["tiles"], flow=Flow(**killed["flow"]))
        assert again.kernels[0].shared < deadly
        assert killed["error"] == f"waiting for the stream failed: {ILLEGAL} (said the driver)"
    # Each was run once, and all others were timed: the fastest is what runs.
    assert len({json.dumps(killed, sort_keys=True) for killed in record["killed"]}) == len(record["killed"])
    assert {"stem", "wide", "again", "down"} == {one["layer"] for one in record["tried"]}
    assert record["after_us"] < record["before_us"]
    assert plan.chosen == "grid"
    assert "measured on" in entry.toolchain["chosen"]
    said = warnings(caplog)
    assert len(said) == len(record["killed"])
    assert all(text.startswith("a grid ended the process that timed it, and is left out: the model's but for ") for text in said)
    assert "ahead 0: waiting for the stream failed" in said[0]
    assert plan.schedules["chain"].plan["tuned"]["killed"] == []


@pytest.mark.parametrize("replayed", [False, True])
def test_a_kernel_of_the_chain_that_kills_its_process_costs_nothing_but_itself(
    replayed: bool, gpu: MortalDriver, started: list[Thread], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layer = next(layer for layer in plain().layers if layer.name == "wide")
    assert isinstance(layer, Convolution)
    base, *others = tiles.best(layer, 132, tuning.CANDIDATES)
    deadly = max(other.shared for other in others)
    assert base.shared < deadly
    gpu.kills = lambda launched: (launched.kernel, launched.shared, gpu.replayed) == ("step_01_wide", deadly, replayed)
    exporting.export_network(plain(), request(tmp_path / "tuned"))
    record = fused_plan.read(tmp_path / "tuned" / "plan.json").schedules["chain"].plan["tuned"]
    assert record["killed"]
    for killed in record["killed"]:
        ((name, of),) = killed["kernels"].items()
        assert name == "wide"
        program = generate.generate(plain(), "chain", sms=132, tuning={name: of["tile"]})
        assert [kernel.shared for kernel in program.kernels if kernel.name == "step_01_wide"] == [deadly]
        timed = [one for one in record["tried"] if one["layer"] == name and one["tile"] == of["tile"] and one["tables"] == of["tables"]]
        assert [one["us"] for one in timed] == ([None] if replayed else [])
    assert {"stem", "again", "down"} <= {one["layer"] for one in record["tried"]}
    said = warnings(caplog)
    assert len(said) == len(record["killed"])
    assert all(text.startswith("kernels ended the process that timed them, and are left out: wide as ") for text in said)


def test_a_schedule_that_kills_its_process_is_not_chosen(
    gpu: MortalDriver, started: list[Thread], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, (deadly, chosen) in enumerate({"grid": "chain", "step_02_again": "grid"}.items()):
        caplog.clear()
        for replayed in (False, True):
            gpu.kills = lambda launched, deadly=deadly, replayed=replayed: launched.kernel == deadly and gpu.replayed is replayed  # type: ignore[misc]
            folder = tmp_path / f"{number}{replayed}"
            given = request(folder)
            exporting.export_network(plain(), untuned(given))
            plan = fused_plan.read(folder / "plan.json")
            assert plan.chosen == chosen
            assert [name for name, of in plan.schedules.items() if "device_us" in of.plan.get("tuned", {})] == [chosen]
        died = "grid" if chosen == "chain" else "chain"
        assert [text.partition(":")[0] for text in warnings(caplog)] == [
            f"the schedule {died} ended the process that timed it, and is not chosen"
        ] * 2


def test_the_models_own_grid_that_kills_its_process_leaves_the_chain(
    gpu: MortalDriver, started: list[Thread], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.kills = lambda launched: launched.kernel == "grid"
    exporting.export_network(plain(), request(tmp_path / "tuned"))
    plan = fused_plan.read(tmp_path / "tuned" / "plan.json")
    assert plan.chosen == "chain"
    assert [text.partition(": waiting")[0] for text in warnings(caplog)] == [
        "a grid ended the process that timed it, and is left out: the model's own",
        "the grid's tiles are not tuned",
        "the schedule grid ended the process that timed it, and is not chosen",
    ]


@pytest.mark.parametrize("replayed", [False, True])
def test_the_models_own_chain_that_kills_its_process_leaves_the_grid(
    replayed: bool, gpu: MortalDriver, started: list[Thread], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = next(kernel for kernel in generate.generate(plain(), "chain").kernels if kernel.name == "step_02_again")
    gpu.kills = lambda launched: (launched.kernel, launched.shared, gpu.replayed) == (own.name, own.shared, replayed)
    exporting.export_network(plain(), request(tmp_path / "tuned"))
    plan = fused_plan.read(tmp_path / "tuned" / "plan.json")
    assert plan.chosen == "grid"
    assert plan.schedules["grid"].plan["tuned"]["tried"]
    said = warnings(caplog)
    assert said[0].startswith("kernels ended the process that timed them, and are left out: ")
    assert "again as" in said[0]
    assert [text.partition(": ")[0] for text in said[1:]] == [
        "the chain's tiles are not tuned",
        "the schedule chain ended the process that timed it, and is not chosen",
    ]


def test_where_no_process_can_be_had_nothing_is_timed_and_that_is_said_once(
    gpu: MortalDriver, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "COMMAND", (sys.executable, "-c", "raise SystemExit(7)"))
    exporting.export_network(plain(), untuned(request(tmp_path / "plain")))
    assert fused_plan.read(tmp_path / "plain" / "plan.json").chosen == "chain"
    (said,) = warnings(caplog)
    assert "the schedules are not timed: no candidate can be timed: its process ended with status 7" in said
    with pytest.raises(CannotMeasure, match="status 7") as refused:
        exporting.export_network(plain(), request(tmp_path / "tuned"))
    assert refused.value.remedy == "leave --tune out"
    monkeypatch.setattr(apart, "COMMAND", (str(tmp_path / "absent"),))
    with pytest.raises(CannotMeasure, match="cannot be started"):
        Apart(ROOM, "cuda:0")


def test_the_record_of_what_killed_its_process_is_enough_for_fused_check_to_run_it(
    gpu: MortalDriver, started: list[Thread], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another's names of layers, too."""
    monkeypatch.setattr(sys, "path", [str(Path(__file__).resolve().parents[3] / "benchmarks"), *sys.path])
    import fused_context

    gpu.kills = lambda launched: launched.kernel == "grid" and launched.grid < 16
    exporting.export_network(plain(), request(tmp_path / "tuned"))
    plan = tmp_path / "tuned" / "plan.json"
    record = fused_plan.read(plan).schedules["grid"].plan["tuned"]["killed"]
    assert record
    renamed = dataclasses.replace(plain(), layers=tuple(map(other_name, plain().layers)))
    for number, killed in enumerate(record):
        assert fused_context.way_of({}, plan, number)(plain(), 132).to_dict() == {name: killed[name] for name in ("tiles", "flow")}
        others = fused_context.way_of({"pause": 7}, plan, number)(renamed, 132)
        assert others.tuning == {f"other.{name}": tile for name, tile in killed["tiles"].items()}
        assert dataclasses.asdict(others.flow) == {**killed["flow"], "pause": 7}
        # As fused_check.py has it built: timed in a process of its own, and not chosen.
        built = fused_context.Built("plain", plain(), tmp_path / str(number), "cuda:0", fused_context.way_of({}, plan, number))
        again = generate.generate(plain(), "grid", tuning=killed["tiles"], flow=Flow(**killed["flow"]))
        assert built.plan.schedules["grid"].kernels == again.kernels
        assert built.plan.chosen == "chain"
    assert fused_context.way_of({"ahead": 0})(plain(), 132).flow == Flow(ahead=0)


def other_name(layer: Any) -> Any:
    names = {
        field: f"other.{value}" for field in ("name", "source", "residual") if (value := getattr(layer, field, None)) not in (None, INPUT)
    }
    return dataclasses.replace(layer, **names)


# Processes.

MORTAL = """
import sys
sys.path[:0] = {path!r}
from fake_cuda import installed
from exporters.fused.test_fused_apart import MortalDriver, answers, apart
driver = MortalDriver(dict.fromkeys(("first", "deadly"), answers(1.0)), lambda launched: 1.0)
driver.kills = lambda launched: launched.kernel == "deadly"
first, said = driver.kernels["first"], []
driver.kernels["first"] = lambda arguments: (said or said.append(print("what is printed", flush=True)), first(arguments))
with installed(driver):
    apart.main()
"""


def commanded(monkeypatch: pytest.MonkeyPatch, text: str) -> list[subprocess.Popen[bytes]]:
    """Processes of that text that were started, their stderr kept."""
    found: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", text]
        found.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, start_new_session=True))
        return found[-1]

    monkeypatch.setattr(apart, "started", start)
    return found


def stderr_of(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr is not None
    return process.stderr.read().decode()


def test_a_real_process_dies_without_a_word_beyond_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(__file__).resolve().parents[3]
    processes = commanded(monkeypatch, MORTAL.format(path=[str(here), str(here / "tests")]))
    one = Apart(ROOM, "cuda:0")
    one.add("a", part("first"))
    with pytest.raises(Died, match=ILLEGAL):
        one.add("b", part("deadly"))
    assert len(one.compare([["a"], ["a"]])) == chains.TURNS
    one.close()
    assert [process.poll() for process in processes] in ([apart.DEAD, 0], [-9, 0])
    assert set("".join(map(stderr_of, processes)).splitlines()) == {"what is printed"}


def test_a_process_that_says_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "import sys, time; sys.stdin.readline(); print('{\"done\": null}', flush=True); time.sleep(600)"
    monkeypatch.setattr(apart, "SILENT_S", 1.0)
    processes = commanded(monkeypatch, answer)
    one = Apart(ROOM, "cuda:0")
    with pytest.raises(Died, match="nothing was heard from its process for 1 s"):
        one.add("a", part("first"))
    assert [process.poll() for process in processes] == [-9]
    one.close()


def test_what_ends_by_a_signal_is_a_candidate_that_died(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "import os, sys; sys.stdin.readline(); print('{\"done\": null}', flush=True); sys.stdin.readline(); os.abort()"
    commanded(monkeypatch, answer)
    one = Apart(ROOM, "cuda:0")
    with pytest.raises(Died, match="its process ended with status -6"):
        one.add("a", part("first"))
    one.close()


def test_the_process_itself_says_what_is_absent() -> None:
    if device.gpu_available()[0]:
        pytest.skip("there is a GPU here")
    one = Apart(ROOM, "cuda:0")
    with pytest.raises(DeviceUnavailable):
        one.add("a", part("first"))
    one.close()


def test_what_is_sent_arrives_whole(gpu: MortalDriver, started: list[Thread]) -> None:
    seen: list[tuple[Kernel, ...]] = []
    gpu.kernels["first"] = answers(1.0)
    kernel = Kernel("first", 10, 256, 512, dependent=True, layers=("wide", "pool"), reads_image=False)

    def add(self: Any, key: int, given: Part) -> None:
        seen.append(given.kernels)
        assert (given.cubin, given.offset, given.weights, given.state_bytes) == (b"code\n{}", 128, bytes(range(256)) * 4096, 777)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chains.Chains, "add", add)
        one = Apart(ROOM, "cuda:0")
        one.add("a", Part((kernel,), b"code\n{}", 128, bytes(range(256)) * 4096, 777))
        one.close()
    assert seen == [(kernel,)]
