"""The orders in which a grid that waits for data can work: all give the same bits, and what would be read too early is found."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporters.fused import reference
from exporters.fused.emulation import Emulator, available
from exporters.fused.networks import Build, odd, plain, shortcut, student

from accel.device import nvrtc
from accel.exporters.fused import generate, pack, ring
from accel.exporters.fused.generate import Flow
from accel.exporters.fused.network import INPUT, Convolution, Network
from accel.exporters.fused.pack import aims, k_offsets
from accel.exporters.fused.plan import Step, make
from accel.exporters.fused.program import TIMED_OUT, Program
from accel.exporters.fused.ring import hold_weights
from accel.exporters.fused.tiles import Tile, copies_of, patch_of

emulated = pytest.mark.skipif(not available(), reason="g++ is absent, which compiles the emulator")

PLAIN = Flow(fetch_late=False, look_first=True, pause=0, blocks=False)
"""Each thread copies its own weights when its input is there."""
BLOCKS = dataclasses.replace(PLAIN, blocks=True)
LOOKING = dataclasses.replace(PLAIN, fetch_looking=True)
FLOWS = [
    Flow(fetch_late=fetch == "late", fetch_looking=fetch == "looking", look_first=look_first, pause=0, blocks=blocks)
    for blocks, fetch, look_first in itertools.product((False, True), ("early", "late", "looking"), (True, False))
]


def image_of(network: Network) -> Any:
    shape = network.input
    return np.random.default_rng(11).standard_normal((1, shape.channels, shape.height, shape.width)).astype(np.float16)


def begins_as_resnet() -> Network:
    """A stem and a block of 64 channels, then one that halves the image, with its 1×1 shortcut, as ResNet-18's first layers; 16×16."""
    build = Build(3, 16, 16, seed=6).conv("conv1", 64, 3, 1, 1, activation="relu")
    build.conv("first", 64, 3, 1, 1, activation="relu").conv("second", 64, 3, 1, 1, residual="conv1", activation="relu")
    build.conv("down", 128, 3, 2, 1, activation="relu").conv("short", 128, 1, 2, source="second")
    build.conv("third", 128, 3, 1, 1, source="down", residual="short", activation="relu")
    return build.pool("pool", "average").linear("classifier", 10).network()


def grid(network: Network, flow: Flow, sms: int = 132) -> Program:
    """With a head of its own, so that its bits are the chain's."""
    return generate.generate(network, "grid", sms=sms, flow=dataclasses.replace(flow, head_in_last=False))


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """So little shared memory that weights come where those of a step before have just been read."""
    steps = make(of_six(), sms=132).steps
    _, distance, shared = hold_weights(steps)
    assert distance == ring.FURTHEST_AHEAD
    for size in range(shared, 0, -128):
        monkeypatch.setattr(ring, "GRID_SHARED", size)
        if hold_weights(steps)[1] < distance:
            monkeypatch.setattr(ring, "GRID_SHARED", size + 128)
            return


def of_six() -> Network:
    build = Build(3, 8, 8, seed=8).conv("stem", 32, 3, 1, 1, activation="relu")
    for index in range(5):
        build.conv(f"conv{index}", 32, 3, 1, 1, activation="relu")
    return build.pool("pool", "average").linear("classifier", 10).network()


def overlaid(network: Network) -> bool:
    """Whether weights of a step come where those of the step lie that computes meanwhile."""
    plan = make(network, sms=132)
    places, distance, _ = hold_weights(plan.steps)
    spans = [(places[step.name], places[step.name] + ring.held_bytes(step)) for step in plan.steps if step.cut]
    return any(a[0] < b[1] and b[0] < a[1] for a, b in zip(spans, spans[distance:], strict=False))


def test_two_large_blocks_of_weights_have_room_behind_a_smaller_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a row the third would begin where the first was, and end in the second."""
    build = Build(3, 8, 8).conv("stem", 64, 3, 1, 1).conv("small", 16, 3, 1, 1, source="stem")
    for name in ("large", "larger", "largest"):
        build.conv(name, 16, 3, 1, 1, source="stem", residual=build.layers[-1].name)
    steps = make(build.pool("pool", "average").linear("classifier", 10).network(), sms=132).steps
    sizes = {"small": 1024, "large": 3072, "larger": 3072, "largest": 3072}
    monkeypatch.setattr(ring, "held_bytes", lambda step: sizes.get(step.name, 0))
    monkeypatch.setattr(ring, "GRID_SHARED", ring.work(steps)[1] + 128 + 6144)
    places, distance, shared = hold_weights(steps)
    assert distance == 2
    assert shared <= ring.GRID_SHARED
    in_order = [range(places[name], places[name] + size) for name, size in sizes.items()]
    assert all(a.stop <= b.start or b.stop <= a.start for a, b in itertools.pairwise(in_order))
    assert min(places.values()) >= ring.work(steps)[1] + 8 * (len(steps) + 1)


# Bits.


@emulated
@pytest.mark.parametrize(("build", "sms"), [(plain, 132), (odd, 5), (shortcut, 132)], ids=["plain", "odd-few", "shortcut"])
def test_every_order_gives_the_same_bits(build: Any, sms: int, tmp_path: Path) -> None:
    """Twice each, because launches take turns between two exchanges, and the second with threads in the opposite order.

    A head that is drawn into the last convolution adds in an order of its own, which is always the same too.
    """
    network = build()
    image = image_of(network)
    of_chain = Emulator(generate.generate(network, "chain", sms=sms), tmp_path).run(image)
    of_partial_head = None
    for number, flow in enumerate(FLOWS[::2]):
        (folder := tmp_path / str(number)).mkdir()
        program = generate.generate(network, "grid", sms=sms, flow=dataclasses.replace(flow, head_in_last=number % 2 == 0))
        emulator = Emulator(program, folder)
        logits = emulator.run(image)
        assert np.array_equal(emulator.run(image, backwards=True), logits), flow
        if program.plan["steps"][-1]["kind"] == "partial_head":
            np.testing.assert_allclose(logits, of_chain, rtol=0, atol=1e-6 * np.abs(of_chain).max())
            of_partial_head = logits if of_partial_head is None else of_partial_head
            assert np.array_equal(logits, of_partial_head), flow
        else:
            assert np.array_equal(logits, of_chain), flow


@emulated
@pytest.mark.slow
@pytest.mark.parametrize("build", [begins_as_resnet, lambda: student("student_b")], ids=["resnet", "student_b"])
def test_blocks_give_the_same_bits_as_copies_for_larger_networks(build: Any, tmp_path: Path) -> None:
    network = build()
    image = image_of(network)
    logits = []
    for flow in (PLAIN, dataclasses.replace(LOOKING, blocks=True)):
        (folder := tmp_path / str(len(logits))).mkdir()
        logits.append(Emulator(grid(network, flow), folder).run(image, backwards=flow.blocks))
    assert np.isfinite(logits[0]).all()
    assert np.array_equal(*logits)


@emulated
@pytest.mark.parametrize("flow", FLOWS, ids=str)
def test_weights_may_come_where_others_have_just_been_read(flow: Flow, tight: None, tmp_path: Path) -> None:
    network = of_six()
    assert overlaid(network)
    image = image_of(network)
    (tmp_path / "chain").mkdir()
    expected = Emulator(generate.generate(network, "chain"), tmp_path / "chain").run(image)
    emulator = Emulator(grid(network, flow), tmp_path)
    assert np.array_equal(emulator.run(image), expected)
    assert np.array_equal(emulator.run(image, backwards=True), expected)


def of_nine_copies(kernel: int) -> Network:
    """Threads of the last convolution have nine copies of its patch each, exactly: they look at eight together, then at one."""
    build, channels, size = (Build(3, 4, 4, seed=10), 512, 4) if kernel == 3 else (Build(3, 16, 16, seed=10), 144, 16)
    build.conv("stem", channels, 1).conv("last", 16, kernel, 1, kernel // 2, activation="relu")
    assert build.layers[-1].output.height == size
    return build.pool("pool", "average").linear("classifier", 10).network()


NINE = {3: Tile(4, 4, 8, 1, 1, 8), 1: Tile(8, 16, 8, 8, 1, 1)}
"""Kernel → tile of `of_nine_copies`: the first is one of ResNet-18's last convolutions."""


@emulated
@pytest.mark.parametrize("kernel", NINE)
@pytest.mark.parametrize(("ahead", "sms"), [(0, 132), (3, 132), (3, 1)], ids=["computed", "packed", "more-tiles-than-sms"])
def test_a_thread_copies_no_more_than_there_is(kernel: int, ahead: int, sms: int, tmp_path: Path) -> None:
    """Found by `--tune` on an H200 (ResNet-18, `ahead` 0): CUDA_ERROR_ILLEGAL_ADDRESS, zeros written behind the patch."""
    network = of_nine_copies(kernel)
    tile = NINE[kernel]
    program = generate.generate(network, "grid", sms=sms, tuning={"last": dataclasses.asdict(tile)}, flow=Flow(ahead))
    step = next(step for step in make(network, sms=sms, tuning={"last": dataclasses.asdict(tile)}).steps if step.name == "last")
    assert copies_of(step.layers[0], tile) == 9 * 256
    assert ("AIMS" in step.parts) is (step.tiles <= sms)
    image = image_of(network)
    emulator = Emulator(program, tmp_path)
    expected = reference.run(network, image[0])["classifier"].reshape(1, -1)
    for backwards in (False, True):
        np.testing.assert_allclose(emulator.run(image, backwards=backwards), expected, rtol=0, atol=5e-3 * np.abs(expected).max())


# What is found.


@emulated
@pytest.mark.parametrize(
    ("flow", "old", "new", "message"),
    [
        (
            BLOCKS,
            "        if constexpr (AHEAD && BULK && L::SLOT >= 0) arrived(shared_memory() + L::BARRIER);",
            "",
            "without having waited for what comes there|nobody wrote",
        ),
        (BLOCKS, "expect(barrier, BLOCK)", "expect(barrier, BLOCK + 16)", "deadlock"),
        (BLOCKS, "        sync();\n        then.early();", "        then.early();\n        sync();", "a race in shared memory"),
        (
            BLOCKS,
            "            }\n            sync();\n        }\n    }\n\n    INLINE void settle",
            "            }\n        }\n    }\n\n    INLINE void settle",
            "a race|nobody wrote|not made",
        ),
        (PLAIN, "if constexpr (!APART) sync();", "", "a race in shared memory"),
        (PLAIN, "copies_left<DISTANCE - 1 - BEHIND>()", "copies_left<DISTANCE>()", "nobody wrote|a race|conv"),
        (LOOKING, "copies_left<DISTANCE - 1 - BEHIND>()", "copies_left<DISTANCE - 1>()", "nobody wrote|a race|conv"),
    ],
)
def test_a_broken_order_is_found(flow: Flow, old: str, new: str, message: str, tight: None, tmp_path: Path) -> None:
    network = of_six()
    program = grid(network, flow)
    assert program.source.count(old) == 1
    image = image_of(network)
    (tmp_path / "chain").mkdir()
    expected = Emulator(generate.generate(network, "chain"), tmp_path / "chain").run(image)
    emulator = Emulator(dataclasses.replace(program, source=program.source.replace(old, new)), tmp_path)
    with pytest.raises(AssertionError, match=message):
        assert np.array_equal(emulator.run(image, backwards=True), expected), "conv"


@emulated
def test_sums_that_lie_where_the_next_patch_comes_are_found(tmp_path: Path) -> None:
    """Where each step lays out its own shared memory, the barrier at its end is needed."""
    build = Build(3, 8, 8, seed=9).conv("stem", 32, 3, 1, 1).conv("wide", 32, 3, 1, 1).conv("point", 32, 1)
    network = build.pool("pool", "average").linear("classifier", 10).network()
    tuning = {"wide": {"y": 4, "x": 4, "n": 32, "warps_k": 8}, "point": {"y": 8, "x": 8, "n": 8, "warps_k": 2}}
    program = generate.generate(network, "grid", tuning=tuning)
    image = image_of(network)
    Emulator(program, tmp_path).run(image)
    own = program.source.replace("SUMS = L::SUMS, PATCH = L::PATCH", "SUMS = TABLE_PIECES * 16, PATCH = SUMS + L::WARPS_K * PAIRS * 8")
    assert own != program.source
    (tmp_path / "broken").mkdir()
    with pytest.raises(AssertionError, match="a race in shared memory"):
        Emulator(dataclasses.replace(program, source=own), tmp_path / "broken").run(image)


@emulated
@pytest.mark.parametrize("flow", [BLOCKS, dataclasses.replace(LOOKING, blocks=True)], ids=["early", "looking"])
def test_a_context_that_has_failed_ends_with_nothing_under_way(flow: Flow, tmp_path: Path) -> None:
    network = of_six()
    emulator = Emulator(grid(network, flow, 8), tmp_path)
    image = image_of(network)
    assert np.isfinite(emulator.run(image)).all()
    assert np.isnan(emulator.run(image, ctas=7)).all()
    assert emulator.error_word & 0xFF == TIMED_OUT
    assert np.isnan(emulator.run(image)).all()


# What is packed.


def convolutions(network: Network) -> list[Step]:
    return [step for step in make(network, sms=132).steps if step.cut]


@pytest.mark.parametrize("build", [odd, plain, begins_as_resnet])
def test_aims_name_each_piece_of_the_patch_and_each_output_once(build: Any) -> None:
    """Read back by what convolution.cuh does with the words, against a walk over the tile."""
    for step in (step for step in convolutions(build()) if step.layers[0].source != INPUT):
        layer, cut = step.layers[0], step.cut
        assert isinstance(layer, Convolution)
        assert cut is not None
        tile, given, made = cut.tile, layer.input, layer.output
        pieces, (rows, columns) = -(-given.channels // 16) * 2, patch_of(layer, tile)
        words = aims(layer, cut).transpose(0, 2, 4, 1, 3).reshape(cut.pixel_tiles, -1, 256)  # pixel tile × word × thread
        assert words.shape[1] * 256 * 4 * cut.pixel_tiles == step.parts["AIMS"]
        copies = -(-rows * columns * pieces // 256)
        for number, of_tile in enumerate(words):
            first_y, first_x = number // -(-made.width // tile.x) * tile.y, number % -(-made.width // tile.x) * tile.x
            found = {}
            for word in of_tile[:copies].reshape(-1)[: rows * columns * pieces].astype(np.int64):
                to = (word >> 14 & 0x1FF00) + (word & 15) * 16
                found[int(to)] = -1 if word >> 31 else int(word & 0x3FFFF0)
            assert (of_tile[:copies].reshape(-1)[rows * columns * pieces :] >> 31).all()
            expected = {}
            for y, x, piece in itertools.product(range(rows), range(columns), range(pieces)):
                column = x % layer.stride[1] * -(-columns // layer.stride[1]) + x // layer.stride[1]
                from_y, from_x = first_y * layer.stride[0] - layer.padding[0] + y, first_x * layer.stride[1] - layer.padding[1] + x
                inside = 0 <= from_y < given.height and 0 <= from_x < given.width
                at = y * cut.row_pitch + column * cut.pixel_pitch + piece * 16
                expected[at] = ((from_y * given.width + from_x) * pieces + piece) * 16 if inside else -1
            assert found == expected
            places = of_tile[copies:].reshape(-1)[: tile.y * tile.x * tile.n // 2].astype(np.int64)
            real = [
                ((first_y + y) * made.width + first_x + x) * -(-made.channels // 16) * 16 + channel
                for y, x, channel in itertools.product(range(tile.y), range(tile.x), range(0, tile.n, 2))
                if first_y + y < made.height and first_x + x < made.width
            ]
            assert sorted(places[places != 0xFFFFFFFF]) == sorted(real)


def test_a_layer_of_more_tiles_than_sms_has_no_aims_nor_one_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    network = plain()
    assert all(("AIMS" in step.parts) is (step.layers[0].source != INPUT) for step in convolutions(network))
    few = [step for step in make(network, sms=5).steps if step.cut]
    assert [("AIMS" in step.parts) for step in few] == [step.layers[0].source != INPUT and step.tiles <= 5 for step in few]
    monkeypatch.setattr("accel.exporters.fused.tiles.AIMED_PIECES", 100)
    assert not any("AIMS" in step.parts for step in convolutions(network))


def test_offsets_of_k_steps_are_those_of_their_taps() -> None:
    for step in convolutions(odd()):
        layer, cut = step.layers[0], step.cut
        assert isinstance(layer, Convolution)
        assert cut is not None
        found = k_offsets(layer, cut)
        assert found.nbytes == step.parts["OFFSETS"]
        for k in range(cut.steps):
            row, at = divmod(k, cut.chunk_steps)
            if layer.source == INPUT:
                assert found[row, at] == k * 32
                continue
            tap, piece = divmod(k, -(-layer.input.channels // 16))
            y, x = divmod(tap, layer.kernel[1])
            column = x % layer.stride[1] * -(-patch_of(layer, cut.tile)[1] // layer.stride[1]) + x // layer.stride[1]
            assert found[row, at] == y * cut.row_pitch + column * cut.pixel_pitch + piece * 32


def test_a_word_that_is_packed_is_read_from_the_part_that_the_plan_has() -> None:
    plan = make(student("student_a"), sms=132)
    for step in plan.steps:
        packed = pack.packed(step)
        assert {name: len(data) for name, data in packed.items()} == dict(step.parts)


@pytest.mark.parametrize("capability", ["8.0", "8.9", "9.0"])
def test_blocks_compile_without_a_spill_and_where_there_are_none_are_left_out(capability: str) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    program = grid(student("student_b"), dataclasses.replace(LOOKING, blocks=True))
    compiled = nvrtc.compile(program.source, "grid.cu", capability)
    assert compiled.kernels["grid"].spills == 0
    assert compiled.kernels["grid"].registers <= 255
    assert program.kernels[0].shared <= ring.GRID_SHARED
