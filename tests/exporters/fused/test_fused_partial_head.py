"""The head as partial sums of the last convolution's CTAs: the same activations, the same logits, however that convolution is cut."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporters.fused.emulation import Emulator, available
from exporters.fused.networks import Build, odd, plain, short, student
from exporters.fused.test_fused_emulated import check, image_of, ran
from exporters.fused.test_fused_generate import compiles

from accel.exporters.fused import tuning_grid
from accel.exporters.fused.generate import Flow, generate
from accel.exporters.fused.network import Network
from accel.exporters.fused.partial_head import SHARE_BYTES, drawn_in, partial_bytes
from accel.exporters.fused.plan import make
from accel.exporters.fused.program import TIMED_OUT, Program
from accel.exporters.fused.ring import GRID_SHARED

emulated = pytest.mark.skipif(not available(), reason="g++ is absent, which compiles the emulator")


def ends(outputs: int = 10, channels: int = 40, size: tuple[int, int] = (6, 5), **fields: Any) -> Network:
    """Two convolutions of `size` pixels in front of a head."""
    build = Build(3, *size, seed=outputs).conv("stem", channels, 3, 1, 1, activation="relu")
    return build.conv("last", channels, 3, 1, 1, **fields).pool("pool", "average").linear("classifier", outputs).network()


def silu() -> Network:
    return ends(3, residual="stem", activation="silu")


def wide() -> Network:
    """More shares than one warp reads."""
    return ends(16, 48, (17, 15), activation="relu")


def clamped() -> Network:
    """An activation behind the linear layer; one pixel a tile."""
    build = Build(3, 9, 9, seed=8).conv("stem", 24, 3, 2, 1).conv("last", 72, 5, activation="hardswish")
    return build.pool("pool", "average").linear("classifier", 16, activation="relu").network()


def alone() -> Network:
    """One convolution, which is the first and the last."""
    return Build(3, 9, 10).conv("last", 20, 3, 1, 1, activation="relu").pool("pool", "average").linear("classifier", 10).network()


def kind(program: Program) -> str:
    return str(program.plan["steps"][-1]["kind"])


CASES = [(build, sms) for build in (plain, silu, clamped, short, alone) for sms in (5, 132)] + [(wide, 132)]


@emulated
@pytest.mark.parametrize(("build", "sms"), CASES, ids=[f"{build.__name__}-{sms}" for build, sms in CASES])
def test_it_answers_what_the_head_does_and_keeps_the_same_activations(build: Any, sms: int, tmp_path: Path) -> None:
    network = build()
    image = image_of(network)
    answers, results = [], []
    for shared in (True, False):
        program = generate(network, "grid", sms=sms, flow=Flow(head_in_last=shared))
        assert kind(program) == ("partial_head" if shared else "head")
        folder = tmp_path / str(shared)
        folder.mkdir()
        emulator = Emulator(program, folder)
        for backwards in (False, True, False):
            logits = emulator.run(image, backwards=backwards)
            check(network, emulator.results(), logits, image)
            answers.append(logits)
            results.append(emulator.results())
        assert emulator.error_word == 0
    for logits in answers[1:3]:
        assert np.array_equal(logits, answers[0])
    np.testing.assert_allclose(answers[3], answers[0], rtol=0, atol=1e-6 * np.abs(answers[0]).max())
    for of in results[1:]:
        assert all(np.array_equal(of[name].view(np.uint16), values.view(np.uint16)) for name, values in results[0].items())


WAYS = [
    {"y": 4, "x": 4, "n": 8, "warps_m": 1, "warps_n": 1, "warps_k": 8},
    {"y": 8, "x": 4, "n": 16, "warps_m": 2, "warps_n": 2, "warps_k": 2},
    {"y": 2, "x": 8, "n": 32, "warps_m": 1, "warps_n": 2, "warps_k": 4},
    {"y": 8, "x": 8, "n": 8, "warps_m": 4, "warps_n": 1, "warps_k": 2, "chunks": 2},
    {"y": 16, "x": 8, "n": 16, "warps_m": 8, "warps_n": 1, "warps_k": 1, "chunks": 3},
    {"y": 4, "x": 8, "n": 64, "warps_m": 1, "warps_n": 8, "warps_k": 1},
]


@emulated
@pytest.mark.parametrize("way", WAYS, ids=[f"{way['y']}x{way['x']}x{way['n']}" for way in WAYS])
def test_however_the_last_convolution_is_cut(way: Any, tmp_path: Path) -> None:
    network = ends(10, 72, (9, 10), activation="relu", residual="stem")
    program = generate(network, "grid", tuning={"last": way})
    assert kind(program) == "partial_head"
    emulator = Emulator(program, tmp_path)
    image = image_of(network)
    check(*ran(network, emulator, image))
    assert np.array_equal(emulator.run(image, backwards=True), emulator.run(image))


@emulated
@pytest.mark.slow
@pytest.mark.parametrize("name", ["student_a", "student_b"])
def test_a_student_of_as_many_ctas_as_on_a_gpu_answers_alike_in_every_launch(name: str, tmp_path: Path) -> None:
    network = student(name)
    program = generate(network, "grid", flow=Flow(2, True, False))
    assert kind(program) == "partial_head"
    emulator = Emulator(program, tmp_path)
    image = image_of(network)
    first = emulator.run(image)
    check(network, emulator.results(), first, image)
    assert all(np.array_equal(emulator.run(image, backwards=backwards), first) for backwards in (True, False))


@emulated
def test_bytes_and_images_that_differ(tmp_path: Path) -> None:
    network = plain()
    scale, offset = np.array([0.017, 0.018, 0.019], np.float32), np.array([2.1, 2.0, 1.8], np.float32)
    program = generate(network, "grid", input_dtype="uint8", pixels=(scale, offset))
    emulator = Emulator(program, tmp_path)
    for seed in range(4):
        pixels = np.random.default_rng(seed).integers(0, 256, program.input_shape, np.uint8)
        logits = emulator.run(pixels)
        check(network, emulator.results(), logits, (pixels * scale - offset).astype(np.float16).transpose(0, 3, 1, 2))


def exchanges(program: Program, state: Any) -> Any:
    """Both as words, one a row: the shares are the last."""
    size = program.arena_bytes + partial_bytes(drawn_in(make(plain(), sms=5)))
    return state.view(np.uint32)[-2 * size // 4 :].reshape(2, -1)


@emulated
def test_shares_go_through_two_exchanges_in_turn_each_of_which_the_other_launch_clears(tmp_path: Path) -> None:
    network = plain()
    program = generate(network, "grid", sms=5)
    shares = partial_bytes(drawn_in(make(network, sms=5))) // 4
    tiles = program.plan["steps"][-2]["ctas"]
    assert shares == tiles * 2 * SHARE_BYTES // 4  # 4×4×16: two fragments of 16 pixels × 8 channels
    emulator = Emulator(program, tmp_path)
    for launch in range(4):
        emulator.run(image_of(network, launch))
        own, other = exchanges(program, emulator.state)[[launch % 2, (launch + 1) % 2]]
        assert own[-shares:].all()
        assert not other.any()


def broken(program: Program, old: str, new: str) -> Program:
    assert old in program.source
    return dataclasses.replace(program, source=program.source.replace(old, new))


@emulated
def test_shares_that_are_not_cleared_give_the_answer_of_another_image(tmp_path: Path) -> None:
    """Backwards the reading CTA is the first that runs, so that it looks before the others have sent anything."""
    network = plain()
    program = broken(generate(network, "grid"), "i < BYTES / 16;", "i < BYTES / 16 - 16;")
    emulator = Emulator(program, tmp_path)
    images = [image_of(network, seed) for seed in range(3)]
    answers = [emulator.run(image, backwards=True) for image in images]
    with pytest.raises(AssertionError, match="classifier"):
        check(network, emulator.results(), answers[2], images[2])


@emulated
def test_a_share_that_never_comes_ends_with_the_error_word(tmp_path: Path) -> None:
    network = plain()
    program = broken(generate(network, "grid"), "hand_on4(run.exchange + L::PARTIALS", "if (tile > 0) hand_on4(run.exchange + L::PARTIALS")
    emulator = Emulator(program, tmp_path)
    image = image_of(network)
    assert np.isnan(emulator.run(image)).all()
    assert emulator.error_word == TIMED_OUT | 5 << 8
    # A failed context stays failed.
    assert np.isnan(emulator.run(image)).all()


@emulated
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_arrives_too(value: float, tmp_path: Path) -> None:
    build = Build(3, 6, 5).conv("stem", 24, 3, 1, 1).conv("last", 40, 3, 1, 1).pool("pool", "average").linear("classifier", 10)
    network = build.network()
    emulator = Emulator(generate(network, "grid"), tmp_path)
    image = image_of(network)
    right = emulator.run(image)
    wrong = image.copy()
    wrong[0, 1, 2, 3] = value
    assert np.isnan(emulator.run(wrong)).all()
    assert emulator.error_word == 0
    assert np.array_equal(emulator.run(image), right)


# Which networks have it.


def hidden() -> Network:
    build = Build(3, 6, 6).conv("stem", 16, 3, 1, 1).pool("pool", "average").linear("hidden", 12)
    return build.linear("classifier", 4).network()


def largest() -> Network:
    return Build(3, 6, 6).conv("stem", 16, 3, 1, 1).pool("pool", "max").linear("classifier", 4).network()


def apart() -> Network:
    """A convolution of one pixel, and no average."""
    return Build(3, 6, 6).conv("stem", 16, 6).linear("classifier", 4).network()


def depthwise() -> Network:
    build = Build(3, 6, 6).conv("stem", 16, 3, 1, 1).conv("depth", 16, 3, 1, 1, groups=16)
    return build.pool("pool", "average").linear("classifier", 4).network()


def earlier() -> Network:
    """What is averaged is not the last convolution's."""
    build = Build(3, 8, 8).conv("stem", 16, 3, 1, 1).conv("aside", 16, 3, 2, 1).pool("pool", "average", source="stem")
    return build.linear("classifier", 4).network()


def many() -> Network:
    return ends(10, 80, (72, 72))


OTHERS = [lambda: ends(17), hidden, largest, apart, depthwise, earlier, many, odd]


@pytest.mark.parametrize("build", OTHERS, ids=["of 17 outputs", *(build.__name__ for build in OTHERS[1:])])
def test_other_networks_keep_their_head(build: Any) -> None:
    network = build()
    plan = make(network, sms=132)
    assert drawn_in(plan) is plan
    assert generate(network, "grid").source == generate(network, "grid", flow=Flow(head_in_last=False)).source
    assert not any(change.field == "head_in_last" for of in tuning_grid.flows(plan) for change in of)


@pytest.mark.parametrize("outputs", [1, 3, 10, 16])
def test_up_to_16_outputs_are_drawn_in(outputs: int) -> None:
    plan = make(ends(outputs), sms=132)
    drawn = drawn_in(plan)
    assert drawn.steps[-1].kind == "partial_head"
    assert drawn_in(drawn) is drawn
    assert [(change.field, change.value) for of in tuning_grid.flows(plan) for change in of][-2:] == [
        ("head_in_last", False),
        ("head_in_last", True),
    ]


def test_the_plan_tells_it_and_the_weights_are_the_same() -> None:
    program, other = (generate(student("student_b"), "grid", flow=Flow(head_in_last=shared)) for shared in (True, False))
    table = [line for line in program.source.splitlines()[:14] if line.startswith("// classifier")]
    assert len(table) == 1
    assert "in the step before" in table[0]
    assert "PartialHead<Of_classifier, Layer_features_14>" in program.source
    assert program.weights == other.weights
    assert program.state_bytes == other.state_bytes + 2 * 32 * SHARE_BYTES
    assert program.plan["predicted_us"] < other.plan["predicted_us"]


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90"])
def test_more_shares_than_a_warp_reads_and_more_fragments_than_warps_compile(arch: str) -> None:
    compiles(generate(wide(), "grid", tuning={"last": {"y": 16, "x": 8, "n": 16, "warps_m": 4, "warps_k": 2}}), arch)
    compiles(generate(wide(), "grid", timed=True), arch)


@pytest.mark.parametrize("name", ["student_a", "student_b"])
def test_a_student_has_room_on_its_gpu(name: str) -> None:
    program = generate(student(name), "grid")
    assert kind(program) == "partial_head"
    assert program.kernels[0].shared <= GRID_SHARED
    compiles(program, "sm_90")
