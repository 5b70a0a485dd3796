"""The schedule cluster: plans are what they were, nothing lies where something else lives, refusals are by name, sources compile."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporters.fused.networks import Build, convolutional, last_is_a_convolution, names, odd, plain, short, straight, student
from exporters.fused.test_fused_generate import resources

from accel.engines import fused_plan
from accel.errors import AccelError, UnsupportedOperator, UsageError
from accel.exporters import BuildOptions, ExportRequest
from accel.exporters.fused import cluster, cluster_places, compiling, exporting
from accel.exporters.fused.cluster import CTAS, REGISTERS, SHARED, plan_cluster, pushed
from accel.exporters.fused.generate import generate
from accel.exporters.fused.network import Network
from accel.types import TensorSpec

NETWORKS = (convolutional, last_is_a_convolution, straight, short)
STUDENTS = ("student_a", "student_b")

GOLDEN = {
    "student_a": (
        ("features.2", "8×8×24, warps 2·1·4", (2, 2, 4), 0, 27648),
        ("features.4", "8×4×24, warps 2·1·4", (1, 2, 8), 0, 15360),
        ("features.6", "8×4×24, warps 1·1·8", (1, 2, 8), 0, 24576),
        ("features.8", "4×4×16, warps 1·1·8", (1, 1, 16), 3, 0),
    ),
}
"""Layer, tile, parts along y, x and n, the step in which its weights are fetched, the most bytes that a CTA pushes."""


@pytest.mark.parametrize("name", GOLDEN)
def test_a_students_plan_is_what_it_was(name: str) -> None:
    plan = plan_cluster(student(name))
    last = len(plan.layers)
    found = tuple(
        (
            of.layer.name,
            str(of.cut.tile),
            (of.split.parts_y, of.split.parts_x, of.split.parts_n),
            plan.places[f"weights {number}"].first,
            pushed(of, plan.layers[number]) if number < last else 0,
        )
        for number, of in enumerate(plan.layers, 1)
    )
    assert found == GOLDEN[name]


def build_of(name: Any) -> Network:
    return student(name) if isinstance(name, str) else name()


@pytest.mark.parametrize("name", [*STUDENTS, *NETWORKS], ids=[*STUDENTS, *names(NETWORKS)])
def test_nothing_lies_where_something_else_lives(name: Any) -> None:
    plan = plan_cluster(build_of(name))
    items = list(plan.places.values())
    assert all(item.place % 16 == 0 and item.place >= 0 and item.place + item.size <= SHARED for item in items)
    assert plan.shared == max(item.place + item.size for item in items)
    for one, other in itertools.combinations(items, 2):
        together = one.first <= other.last and other.first <= one.last
        apart = one.place + one.size <= other.place or other.place + other.size <= one.place
        # Sums lie where the weights of their layer were, which are in registers then: in front of its biases and table.
        shares = {one.name.split()[0], other.name.split()[0]} == {"sums", "weights"} and one.name.split()[-1] == other.name.split()[-1]
        assert not together or apart or shares, (one, other)
        if together and shares and not apart:
            number = int(one.name.split()[-1])
            assert plan.layers[number - 1].sums_bytes <= plan.layers[number - 1].cut.weight_bytes
    for number, of in enumerate(plan.layers, 1):
        assert of.cut.registers <= REGISTERS
        assert of.split.ranks <= CTAS
        patch, weights = plan.places[f"patch {number}"], plan.places[f"weights {number}"]
        # Pushed in the step before, by peers that know no more than that this CTA has done the step before that.
        assert patch.first <= (0 if number <= 2 else number - 1)
        assert weights.first < number
        assert {patch.last, weights.last} == {number}


def test_every_pixel_that_a_patch_needs_is_pushed_once_to_each_cta() -> None:
    """`pushed` against a count of every pixel of every tile."""
    plan = plan_cluster(student("student_a"))
    for before, after in itertools.pairwise(plan.layers):
        most, (tile, split) = 0, (before.cut.tile, after.split)
        for part_y, part_x in itertools.product(range(before.split.parts_y), range(before.split.parts_x)):
            count = 0
            for y, x in itertools.product(range(tile.y), range(tile.x)):
                at = part_y * tile.y + y, part_x * tile.x + x
                for to in itertools.product(range(split.parts_y), range(split.parts_x)):
                    first = [
                        part * size * stride - pad
                        for part, size, stride, pad in zip(
                            to, (after.cut.tile.y, after.cut.tile.x), after.layer.stride, after.layer.padding, strict=True
                        )
                    ]
                    count += all(0 <= here - start < span for here, start, span in zip(at, first, after.patch, strict=True))
            most = max(most, count * tile.n * 2 * split.parts_n)
        assert pushed(before, after) == most


def test_the_program_is_one_kernel_of_one_cluster_without_a_state() -> None:
    program = generate(student("student_a"), "cluster")
    (kernel,) = program.kernels
    assert (kernel.name, kernel.grid, kernel.cluster, kernel.block, kernel.cooperative) == ("cluster", 16, 16, 256, False)
    assert kernel.layers == tuple(layer.name for layer in student("student_a").layers)
    assert kernel.shared <= SHARED
    # No wait of it can run out, so that there is no error word to read with each answer.
    assert program.state_bytes == 0
    # The stem is computed by every CTA for itself and stored nowhere.
    assert list(program.outputs) == ["features.2", "features.4", "features.6", "features.8"]
    assert [step["layers"] for step in program.plan["steps"]][-1] == ["features.8", "pool", "classifier"]
    assert program.plan["predicted_us"] == pytest.approx(sum(step["predicted_us"] for step in program.plan["steps"]), abs=0.06)


def test_the_source_begins_with_the_plan() -> None:
    head = generate(student("student_a"), "cluster").source.split("constexpr")[0].splitlines()
    assert all(line.startswith("//") for line in head if line)
    assert "schedule cluster, 16 CTAs" in head[0]


# Refusals.


def bare() -> Build:
    return Build(3, 8, 8).conv("stem", 16, 3, 1, 1)


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (plain, r"'again'.*adds no residuals"),
        (odd, r"'halved'.*begins with two or more convolutions"),
        (lambda: bare().pool("pool", "average").linear("fc", 4).network(), r"'pool'.*two or more convolutions"),
        (lambda: bare().conv("depth", 16, 3, groups=16).network(), r"'depth'.*no grouped convolutions"),
        (lambda: bare().conv("two", 16, 3).conv("side", 8, 3, source="stem").network(), r"'side'.*chains alone, and it reads 'stem'"),
        (
            lambda: bare().conv("two", 16, 3).pool("half", "max", 2).conv("x", 8, 3).network(),
            r"'half' \(pool\).*ends with a global average",
        ),
        (lambda: bare().conv("two", 16, 3).network(), r"'two'.*ends with a global average"),
        (
            lambda: bare().conv("two", 16, 3).pool("p", "average").linear("hidden", 8).linear("fc", 4).network(),
            r"'p' \(pool\).*ends with a global average, a linear layer, or both",
        ),
        (
            lambda: Build(3, 8, 8).conv("stem", 640, 3).conv("vast", 1024, 3).pool("p", "average").network(),
            r"'vast'.*fits into their registers",
        ),
    ],
)
def test_what_it_does_not_compute_is_refused_with_its_name(network: Any, named: str) -> None:
    with pytest.raises(UnsupportedOperator, match=named) as caught:
        generate(network(), "cluster")
    assert caught.value.exit_code == 2


def test_weights_that_have_no_room_are_refused_with_the_bytes() -> None:
    build = Build(3, 8, 8).conv("stem", 256, 3, 2, 1).conv("wide", 448, 3, 1, 1).conv("narrow", 256, 3, 1, 1)
    with pytest.raises(UnsupportedOperator, match=r"its weights take \d{7,} bytes, and the shared memory of 16 CTAs has 3719168"):
        generate(build.pool("p", "average").linear("fc", 10).network(), "cluster")


def test_it_begins_with_compute_capability_9_0() -> None:
    program = generate(short(), "cluster")
    for capability in ("8.0", "8.9"):
        with pytest.raises(AccelError, match=rf"schedule cluster begins with compute capability 9\.0; {capability} was asked for"):
            compiling.compile(program, capability)
    programs = {"chain": generate(short(), "chain"), "cluster": program}
    kept, left_out = exporting.for_targets(programs, {"grid": "told so"}, ("8.0", "8.9"))  # type: ignore[arg-type]
    assert list(kept) == ["chain"]
    assert left_out == {"grid": "told so", "cluster": "it begins with compute capability 9.0, and 8.0, 8.9 is compiled for"}
    assert list(exporting.for_targets(programs, {}, ("8.0", "9.0"))[0]) == ["chain", "cluster"]  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"no schedule for 8\.0 is left"):
        exporting.for_targets({"cluster": program}, {}, ("8.0",))


def test_an_engine_has_it_for_the_gpus_that_take_it_and_says_why_for_the_others(tmp_path: Path) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    network, image, logits = short(), ("batch", 1, 20, 20), ("batch", 5)
    specs = (TensorSpec("image", image, "float32", "NCHW"),), (TensorSpec("logits", logits, "float32", "NC"),)
    for named, has in ((("8.9", "9.0"), True), (("8.0",), False)):
        folder = tmp_path / named[0]
        folder.mkdir()
        request = ExportRequest(None, *specs, "fp16", folder, device="cpu", options=BuildOptions(compute_capabilities=named))
        entry = exporting.export_network(network, request)
        plan = fused_plan.read(folder / fused_plan.PLAN_FILE)
        assert ("cluster" in entry.toolchain["schedules"]) is has
        assert ("cluster" in plan.schedules) is has
        assert all((folder / name).is_file() for name in plan.files)
        if not has:
            assert plan.left_out["cluster"] == "it begins with compute capability 9.0, and 8.0 is compiled for"
            continue
        item = plan.schedules["cluster"]
        assert dict(item.cubins) == {"9.0": "cluster-sm90.cubin"}
        assert (item.weights, item.waits) == ("weights-cluster.bin", False)
        assert item.resources["9.0"]["cluster"].spills == 0
        shown = [row for row in fused_plan.rows(folder / fused_plan.PLAN_FILE) if row["schedule"] == "cluster"]
        assert [row["layers"] for row in shown] == ["stem", "last + pool + classifier"]
        assert all(row["predicted_us"] > 0 and row["registers"] > 0 for row in shown)


def test_bytes_need_their_normalisation() -> None:
    with pytest.raises(UsageError, match="scale and an offset"):
        generate(short(), "cluster", input_dtype="uint8")


# Weights.


def test_a_block_has_the_weights_biases_and_offsets_of_one_cta() -> None:
    network = student("student_a")
    program, plan = generate(network, "cluster"), plan_cluster(network)
    of = plan.layers[1]
    places = [int(line.split(" = ")[1][:-1]) for line in program.source.splitlines() if " WEIGHTS = " in line]
    block = np.frombuffer(program.weights, np.uint8)[places[1] :][: of.split.parts_n * of.block_bytes].reshape(of.split.parts_n, -1)
    for part in range(of.split.parts_n):
        rest = block[part][of.cut.weight_bytes :]
        assert np.array_equal(rest[: of.cut.tile.n * 4].view(np.float32), of.layer.bias[part * of.cut.tile.n :][: of.cut.tile.n])
        table = rest[of.cut.tile.n * 4 :].view(np.int32).reshape(of.split.warps_k, -1)[:, : of.cut.chunk_steps].reshape(-1)
        # Stride 2 of a patch 9 wide: the even columns first.
        assert list(table[:6]) == [piece * 32 for piece in range(6)]
        assert table[6] == 5 * of.cut.pixel_pitch
        assert table[12] == of.cut.pixel_pitch
        assert table[18] == of.cut.row_pitch


# Compiling.


@pytest.mark.parametrize("name", [*STUDENTS, *NETWORKS], ids=[*STUDENTS, *names(NETWORKS)])
def test_a_source_compiles_for_hopper_without_a_spill(name: Any) -> None:
    program = generate(build_of(name), "cluster")
    ((kernel, (registers, spilled)),) = resources(program.source, "sm_90").items()
    assert kernel == "cluster"
    assert spilled == 0
    assert registers <= 255


def test_bytes_compile() -> None:
    one = np.ones(1, np.float32)
    program = generate(short(), "cluster", input_dtype="uint8", pixels=(one, one))
    assert program.input_shape == (1, 20, 20, 1)
    assert resources(program.source, "sm_90")["cluster"][1] == 0


def test_an_order_of_places_that_does_not_fit_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """With less shared memory the weights are fetched later, or there is no plan; never do two things lie in one place."""
    network = student("student_a")
    ample = plan_cluster(network)
    for module in (cluster, cluster_places):
        monkeypatch.setattr(module, "SHARED", 200 * 1024)
    tight = plan_cluster(network)
    assert tight.shared <= 200 * 1024
    assert sum(tight.micros) >= sum(ample.micros)
    for module in (cluster, cluster_places):
        monkeypatch.setattr(module, "SHARED", 60 * 1024)
    with pytest.raises(UnsupportedOperator, match=r"no room|registers"):
        plan_cluster(network)


def test_a_plan_does_not_change_from_run_to_run() -> None:
    assert generate(short(), "cluster").source == generate(short(), "cluster").source
