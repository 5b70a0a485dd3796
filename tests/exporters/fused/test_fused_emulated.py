"""Generated programs run on a CPU emulator: each layer computes what the float64 interpreter does from the same inputs."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporters.fused.emulation import Emulator, available
from exporters.fused.networks import Build, convolutional, last_is_a_convolution, odd, plain, short, shortcut, straight, student
from exporters.fused.reference import layer_of

from accel.exporters.fused import cluster_source
from accel.exporters.fused import stamps as grid_stamps
from accel.exporters.fused.cluster import CTAS, plan_cluster
from accel.exporters.fused.cluster_source import generate_cluster, stamps
from accel.exporters.fused.generate import Flow, generate, ordered
from accel.exporters.fused.network import INPUT, Network
from accel.exporters.fused.partial_head import reader
from accel.exporters.fused.plan import make
from accel.exporters.fused.program import TIMED_OUT

pytestmark = pytest.mark.skipif(not available(), reason="g++ is absent, which compiles the emulator")

NETWORKS = (plain, odd, convolutional, last_is_a_convolution, shortcut)
SMS = 5
"""Fewer than most layers' tiles, so that CTAs of the grid have several, and some of them none."""


def image_of(network: Network, seed: int = 7) -> Any:
    shape = network.input
    return np.random.default_rng(seed).standard_normal((1, shape.channels, shape.height, shape.width)).astype(np.float16)


def check(network: Network, results: Any, logits: Any, image: Any) -> None:
    """Each layer against float64 from what the layers before it left in the arena; padding channels are zeros."""
    found = {INPUT: image[0].astype(np.float64)}
    for layer in network.layers:
        expected = layer_of(layer, found)
        if layer is network.layers[-1]:
            given = logits.reshape(expected.shape)
        elif layer.name in results:
            given = results[layer.name][: expected.shape[0]].astype(np.float64)
            assert not results[layer.name][expected.shape[0] :].any(), f"{layer.name}: padding"
        else:
            given = expected  # a pooled vector that only the next layer's kernel sees
        furthest = np.abs(given - expected).max()
        assert furthest <= 2e-3 * np.abs(expected).max(), f"{layer.name}: {furthest} of {np.abs(expected).max()}"
        found[layer.name] = given


def without_residuals(network: Network) -> Network:
    layers = [dataclasses.replace(layer, residual=None) if getattr(layer, "residual", None) else layer for layer in network.layers]
    return dataclasses.replace(network, layers=tuple(layers))


CASES = [
    *[(build, schedule, "data") for build in NETWORKS for schedule in ("chain", "grid")],
    *[(build, "grid", "counters") for build in (plain, odd)],
    *[(build, "cluster", "data") for build in (convolutional, last_is_a_convolution, straight, short)],
]


@pytest.mark.parametrize(("build", "schedule", "waiting"), CASES, ids=["-".join((build.__name__, *way)) for build, *way in CASES])
def test_every_layer_computes_what_the_reference_does(build: Any, schedule: Any, waiting: Any, tmp_path: Path) -> None:
    network = build()
    emulator = Emulator(generate(network, schedule, sms=SMS, waiting=waiting), tmp_path)
    image = image_of(network)
    logits = emulator.run(image)
    check(network, emulator.results(), logits, image)
    assert np.array_equal(emulator.run(image, backwards=True), logits)


@pytest.mark.parametrize("build", [odd, convolutional, shortcut], ids=lambda build: build.__name__)
def test_a_chain_that_reads_tables_answers_bit_for_bit_as_one_that_computes_them(build: Any, tmp_path: Path) -> None:
    """Layers of more tiles than SMs have no aims among their tables: those are computed either way."""
    network, image, found = build(), image_of(build()), []
    every = [step.layer_names[-1] for step in make(network, sms=132).steps if step.cut]
    for number, (sms, tables) in enumerate([(132, ()), (132, every), (SMS, every), (132, every[::2])]):
        (tmp_path / str(number)).mkdir()
        program = generate(network, "chain", sms=sms, tables=tables, tuning=tuned_as(network))
        assert program.source.count(" OFFSETS = -1;") == len(every) - len(tables)
        emulator = Emulator(program, tmp_path / str(number))
        found.append((emulator.run(image), emulator.results()))
    check(network, found[0][1], found[0][0], image)
    for logits, results in found[1:]:
        assert np.array_equal(logits, found[0][0])
        assert all(np.array_equal(results[name], of) for name, of in found[0][1].items())


def tuned_as(network: Network) -> dict[str, dict[str, int]]:
    """The tiles of 132 SMs, for a plan of fewer."""
    return {step.layer_names[-1]: dataclasses.asdict(step.cut.tile) for step in make(network, sms=132).steps if step.cut}


def test_a_chain_computes_late_what_no_word_can_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = odd()
    monkeypatch.setattr("accel.exporters.fused.tiles.AIMED_PIECES", 1)
    program = generate(network, "chain", sms=SMS)
    assert "AIMABLE = true" not in program.source
    check(*ran(network, Emulator(program, tmp_path), image_of(network)))


@pytest.mark.parametrize("schedule", ["grid", "cluster"])
def test_bytes_are_normalised_in_the_first_layer_as_numpy_does(schedule: Any, tmp_path: Path) -> None:
    network = without_residuals(plain()) if schedule == "cluster" else plain()
    scale, offset = np.array([0.017, 0.018, 0.019], np.float32), np.array([2.1, 2.0, 1.8], np.float32)
    program = generate(network, schedule, sms=SMS, input_dtype="uint8", pixels=(scale, offset))
    assert program.input_shape == (1, 12, 12, 3)
    pixels = np.random.default_rng(3).integers(0, 256, program.input_shape, np.uint8)
    emulator = Emulator(program, tmp_path)
    logits = emulator.run(pixels)
    check(network, emulator.results(), logits, (pixels * scale - offset).astype(np.float16).transpose(0, 3, 1, 2))


WAYS = [
    {"y": 4, "x": 4, "n": 16, "warps_m": 1, "warps_n": 1, "warps_k": 8},
    {"y": 8, "x": 4, "n": 16, "warps_m": 2, "warps_n": 2, "warps_k": 2},
    {"y": 2, "x": 8, "n": 32, "warps_m": 1, "warps_n": 2, "warps_k": 4},
    {"y": 8, "x": 8, "n": 8, "warps_m": 4, "warps_n": 1, "warps_k": 2, "chunks": 2},
    {"y": 16, "x": 8, "n": 16, "warps_m": 8, "warps_n": 1, "warps_k": 1, "chunks": 3},
]


def test_every_way_to_cut_a_layer_computes_the_same(tmp_path: Path) -> None:
    """Five convolutions of one shape, each cut in its own way."""
    build = Build(3, 9, 10).conv("stem", 48, 3, 1, 1, activation="relu")
    for index in range(len(WAYS)):
        build.conv(f"way{index}", 48, 3, 1, 1, activation="relu", residual="stem")
    network = build.pool("pool", "average").linear("classifier", 10).network()
    program = generate(network, "chain", tuning={f"way{index}": way for index, way in enumerate(WAYS)})
    tiles = {step["name"]: step["tile"] for step in program.plan["steps"]}
    assert [{name: tiles[f"way{index}"][name] for name in way} for index, way in enumerate(WAYS)] == WAYS
    emulator = Emulator(program, tmp_path)
    image = image_of(network)
    check(*ran(network, emulator, image))


def ran(network: Network, emulator: Emulator, image: Any) -> Any:
    logits = emulator.run(image)
    return network, emulator.results(), logits, image


@pytest.mark.parametrize(("name", "schedule"), [("student_a", "grid"), ("student_a", "cluster"), ("student_b", "cluster")])
def test_a_shipped_model_runs_end_to_end(name: str, schedule: Any, tmp_path: Path) -> None:
    network = student(name)
    emulator = Emulator(generate(network, schedule, sms=12), tmp_path)
    check(*ran(network, emulator, image_of(network)))


def test_a_cluster_that_is_measured_keeps_every_moment_of_every_cta(tmp_path: Path) -> None:
    network = last_is_a_convolution()  # some CTAs have nothing to do in it
    plan = plan_cluster(network)
    assert min(of.split.ranks for of in plan.layers) < CTAS
    program = generate_cluster(network, timed=True)
    emulator = Emulator(program, tmp_path)
    image = image_of(network)
    check(*ran(network, emulator, image))
    moments = emulator.state.view(np.uint32).reshape(CTAS, len(stamps(plan)))
    assert (moments > 0).all()
    assert (np.diff(moments.astype(np.int64), axis=1) >= 0).all()


@pytest.mark.parametrize("build", [odd, plain], ids=["a head", "a partial head"])
@pytest.mark.parametrize("flow", [Flow(fetch_late=False, look_first=True, pause=0, blocks=False), Flow()], ids=["first", "late"])
def test_a_grid_that_is_measured_answers_right_and_keeps_every_moment_of_the_steps_that_a_cta_has(
    flow: Flow, build: Any, tmp_path: Path
) -> None:
    network, never = build(), 2**32 - 1
    sms = 3 if build is odd else 5
    plan = ordered(make(network, sms=sms), flow)
    assert min(step.tiles for step in plan.steps) < sms
    program = generate(network, "grid", sms=sms, flow=flow, timed=True)
    emulator = Emulator(program, tmp_path)
    ctas = program.kernels[0].grid
    kept = ctas * grid_stamps.STAMPERS * grid_stamps.words(plan)
    emulator.state.view(np.uint32)[-kept:] = never
    image = image_of(network)
    for _ in range(3):  # the exchanges take turns
        check(*ran(network, emulator, image))
    moments = grid_stamps.taken(emulator.state, plan, ctas)
    assert (moments[:, :, [grid_stamps.KERNEL.index(name) for name in grid_stamps.KERNEL]] != never).all()
    for number, step in enumerate(plan.steps, 1):
        of_kind = grid_stamps.OF_KIND[step.kind]
        # The reader's first warp alone waits for shares.
        first = reader(plan, ctas) if step.kind == "partial_head" else 0
        threads = slice(0, 1) if step.kind == "partial_head" else slice(None)
        here = moments[first : first + step.tiles, threads][..., [grid_stamps.place(name, number) for name in of_kind]]
        assert (here != never).all()
        assert (np.diff(here.astype(np.int64), axis=2) >= 0).all()
        inner = [grid_stamps.place(name, number) for name in grid_stamps.STEP if name not in ("BEGUN", "DONE")]
        others = np.delete(moments, np.arange(first, min(first + step.tiles, ctas)), 0)
        assert (others[:, :, inner] == never).all()
    assert (moments[:, :, grid_stamps.place("END")] >= moments[:, :, grid_stamps.place("BEGIN")]).all()


def of_four(last_stride: int) -> Network:
    build = Build(3, 12, 12).conv("stem", 16, 3, 1, 1).conv("second", 32, 3, 1, 1).conv("third", 32, 3, 1, 1)
    return build.conv("fourth", 32, 3, last_stride, 1).pool("pool", "average").linear("classifier", 4).network()


class TestWhatTheEmulatorFinds:
    """It can fail: programs that are broken on purpose."""

    @pytest.fixture
    def network(self) -> Network:
        return (
            Build(3, 6, 6).conv("stem", 16, 3, 1, 1).conv("second", 16, 3, 1, 1).pool("pool", "average").linear("classifier", 4).network()
        )

    @pytest.mark.parametrize(
        ("schedule", "waiting", "old", "new", "message"),
        [
            ("chain", "data", "wait_for_previous();\n    Layer", "Layer", "step_01_second: touches the arena before it has waited"),
            ("chain", "data", "if constexpr (!POLLS) copies_arrived();", "", "nobody wrote"),
            ("chain", "data", "sync();\n        then.early();", "then.early();", "shared memory"),
            ("grid", "data", "all = minimum(all, least(values[i]));", ";", "second: nan"),
            ("grid", "data", "if constexpr (!APART) sync();", "", "a race in shared memory"),
            ("grid", "counters", "y + SPAN_Y, P::OUT_HEIGHT", "y + SPAN_Y - 2, P::OUT_HEIGHT", "without having waited|second: nan"),
        ],
    )
    def test_a_broken_kernel_is_found(
        self, network: Network, schedule: Any, waiting: Any, old: str, new: str, message: str, tmp_path: Path
    ) -> None:
        program = generate(network, schedule, sms=4, waiting=waiting, flow=Flow(head_in_last=False))
        assert old in program.source
        broken = dataclasses.replace(program, source=program.source.replace(old, new))
        emulator = Emulator(broken, tmp_path)
        image = image_of(network)
        with pytest.raises(AssertionError, match=message):
            check(*ran(network, emulator, image))

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("if (L::PUSHED && active()) arrived(shared_memory() + L::PATCH_BARRIER);", "", "without having waited for what comes there"),
            ("arrived(shared_memory() + L::BLOCK_BARRIER);\n        const", "const", "without having waited for what comes there"),
            (
                "    cluster_wait();  // all CTAs have begun, and can be sent to\n",
                "",
                "before it has waited for all to begin|arrives at a cluster barrier",
            ),
            ("sync();\n            Next::take", "Next::take", "nobody wrote|a race in shared memory"),
            ("larger(columns, 0) * L::CHANNELS * 2", "larger(columns, 0) * L::CHANNELS * 2 + 16", "deadlock"),
            ("larger(columns, 0) * L::CHANNELS * 2", "larger(columns, 0) * L::CHANNELS * 2 - 16", "more bytes come than were expected"),
            ("PATCH_Y || to_x < 0 ||", "PATCH_Y - 1 || to_x < 0 ||", "deadlock"),
            ("    sync();\n    stamp(run, 1);", "", "nobody wrote|a race"),
            ("    cluster_arrive();\n\n    // Step 2", "\n    // Step 2", "at which it has not arrived"),
            (
                "        sync();\n        arrived(shared + L::BLOCK_BARRIER);",
                "        arrived(shared + L::BLOCK_BARRIER);",
                "nobody wrote|a race",
            ),
            ("Layer_third::clear_border();", "", "nobody wrote|without having waited"),
        ],
    )
    def test_a_broken_cluster_is_found(self, old: str, new: str, message: str, tmp_path: Path) -> None:
        network = of_four(2)
        program = generate(network, "cluster")
        assert old in program.source
        emulator = Emulator(dataclasses.replace(program, source=program.source.replace(old, new)), tmp_path)
        image = image_of(network)
        with pytest.raises(AssertionError, match=message):
            check(*ran(network, emulator, image))

    def test_weights_sent_to_a_cta_that_may_not_be_ready_are_found(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """In step 1 it is not known that the others have done step 0, in which the picture may lie where the weights are to come."""
        network = of_four(2)
        plan = plan_cluster(network)
        late = dataclasses.replace(plan.places["weights 2"], first=1)
        places = {**plan.places, "weights 2": late, "raw": dataclasses.replace(plan.places["raw"], place=late.place)}
        monkeypatch.setattr(cluster_source, "plan_cluster", lambda _: dataclasses.replace(plan, places=places))
        program, image = generate(network, "cluster"), image_of(network)
        old = "before_blocks();\n        Layer_third::fetch_alone(run);"
        assert old in program.source
        check(*ran(network, Emulator(program, tmp_path), image))
        broken = program.source.replace(old, old.replace("fetch_alone", "fetch"))
        (tmp_path / "broken").mkdir()
        with pytest.raises(AssertionError, match="a race in shared memory"):
            Emulator(dataclasses.replace(program, source=broken), tmp_path / "broken").run(image)

    def test_what_is_pushed_over_something_that_is_still_read_is_found(self, tmp_path: Path) -> None:
        """The patch of one layer put where the one before it lies, as no plan does."""
        network = of_four(1)
        program = generate(network, "cluster")
        patches = re.findall(r"static constexpr int PATCH = (\d+);", program.source)
        moved = program.source.replace(f"PATCH = {patches[2]};", f"PATCH = {patches[1]};")
        emulator = Emulator(dataclasses.replace(program, source=moved), tmp_path)
        with pytest.raises(AssertionError, match=r"a race|where something comes|without having waited"):
            emulator.run(image_of(network))

    @pytest.mark.parametrize("waiting", ["data", "counters"])
    def test_a_wait_that_is_never_over_ends_with_the_error_word(self, network: Network, waiting: Any, tmp_path: Path) -> None:
        emulator = Emulator(generate(network, "grid", sms=4, waiting=waiting), tmp_path)
        image = image_of(network)
        complete = emulator.run(image)
        assert np.isfinite(complete).all()
        assert emulator.error_word == 0
        assert np.isnan(emulator.run(image, ctas=3)).all()
        assert emulator.error_word & 0xFF == TIMED_OUT
        assert emulator.error_word >> 8 in (2, 3), "the step that was waited for"
        # What it left behind is out of step now: a failed context stays failed.
        assert np.isnan(emulator.run(image)).all()
