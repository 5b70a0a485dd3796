"""Plans are what they were, keep their budgets, refuse by name, and every generated source is CUDA C++ that the compiler takes."""

import dataclasses
import importlib.util
import io
import itertools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporters.fused.networks import Build, convolutional, last_is_a_convolution, names, odd, plain, shortcut, student

from accel.errors import UnsupportedOperator, UsageError
from accel.exporters.fused import stamps
from accel.exporters.fused.generate import Flow, generate
from accel.exporters.fused.network import INPUT, Convolution, Network
from accel.exporters.fused.pack import fragments
from accel.exporters.fused.plan import make
from accel.exporters.fused.program import ARENA_ALIGNMENT
from accel.exporters.fused.ring import GRID_SHARED, hold_weights
from accel.exporters.fused.tiles import REGISTERS, SHARED, Tile, cut

NETWORKS = (plain, odd, convolutional, last_is_a_convolution)


def simple(**fields: Any) -> Network:
    """A convolution of 32 channels with `fields` between a stem and a head."""
    build = Build(3, 8, 8).conv("stem", 32, 3, 1, 1).conv("middle", 32, 3, 1, 1, **fields)
    return build.pool("pool", "average").linear("classifier", 10).network()


# Plans.

GOLDEN = {
    "student_a": (
        ("features_0", "4×4×32, warps 1·4·2", 32),
        ("features_2", "4×8×8, warps 2·1·4", 96),
        ("features_4", "2×8×8, warps 1·1·8", 96),
        ("features_6", "2×8×8, warps 1·1·8", 96),
        ("features_8", "2×8×8, warps 1·1·8", 64),
        ("classifier", "head", 1),
    ),
    "student_b": (
        ("features_0", "4×4×32, warps 1·4·2", 32),
        ("features_2", "4×8×8, warps 2·1·4", 128),
        ("features_4", "4×8×8, warps 2·1·4", 128),
        ("features_6", "2×8×8, warps 1·1·8", 96),
        ("features_8", "2×8×8, warps 1·1·8", 96),
        ("features_10", "2×8×8, warps 1·1·8", 96),
        ("features_12", "2×8×8, warps 1·1·8", 64),
        ("features_14", "4×4×8, warps 1·1·8", 32),
        ("classifier", "head", 1),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_students_plan_is_what_it_was(name: str) -> None:
    plan = make(student(name), sms=132)
    assert tuple((step.name, str(step.cut.tile) if step.cut else step.kind, step.tiles) for step in plan.steps) == GOLDEN[name]


@pytest.mark.parametrize("build", NETWORKS, ids=names(NETWORKS))
def test_budgets_hold_and_places_do_not_overlap(build: Any) -> None:
    plan = make(build(), sms=132)
    assert all(step.shared <= SHARED and (step.cut is None or step.cut.registers <= REGISTERS) for step in plan.steps)
    places = sorted((offset, offset + int(np.prod(shape)) * 2) for offset, shape in plan.outputs.values())
    assert all(offset % ARENA_ALIGNMENT == 0 for offset, _ in places)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))
    assert places[-1][1] <= plan.arena_bytes
    parts = sorted(
        (offset, offset + step.parts[part]) for step in plan.steps for part in step.parts for offset in [plan.weights[step.name, part]]
    )
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(parts))
    assert parts[-1][1] <= plan.weight_bytes


def test_both_schedules_share_one_file_of_weights() -> None:
    chain, grid = generate(plain(), "chain"), generate(plain(), "grid")
    assert chain.weights == grid.weights
    assert chain.outputs == grid.outputs
    assert [kernel.dependent for kernel in chain.kernels] == [False, True, True, True, True]
    assert not any(kernel.cooperative for kernel in chain.kernels)
    assert [(kernel.name, kernel.cooperative, kernel.block) for kernel in grid.kernels] == [("grid", True, 256)]
    assert grid.kernels[0].layers == ("stem", "wide", "again", "down", "pool", "classifier")
    assert grid.kernels[0].grid <= 132


def test_a_kernel_says_whether_it_reads_the_image() -> None:
    assert [kernel.reads_image for kernel in generate(plain(), "chain").kernels] == [True, False, False, False, False]
    twice = Build(3, 8, 8).conv("one", 16, 3, 1, 1).conv("two", 16, 3, 1, 1, source=INPUT, residual="one")
    network = twice.pool("pool", "average").linear("classifier", 10).network()
    assert [kernel.reads_image for kernel in generate(network, "chain").kernels] == [True, True, False]
    assert [kernel.reads_image for kernel in generate(network, "grid").kernels] == [True]


def test_the_grid_has_no_more_ctas_than_the_gpu_has_sms() -> None:
    assert generate(plain(), "grid", sms=3).kernels[0].grid == 3


def test_the_source_begins_with_the_plan() -> None:
    head = generate(plain(), "chain").source.splitlines()[:9]
    assert all(line.startswith("//") for line in head)
    assert re.search(r"again +again +40×6×6 → 40×6×6 +\d+×\d+×\d+, warps \d·\d·\d  +\d+  ", "\n".join(head))


def test_a_tuning_fixes_what_it_names_and_no_more() -> None:
    plan = make(plain(), sms=132, tuning={"again": {"n": 16, "warps_k": 4}})
    step = next(step for step in plan.steps if step.name == "again")
    assert step.cut is not None
    assert (step.cut.tile.n, step.cut.tile.warps_k) == (16, 4)


def test_b_fragments_lie_as_mma_reads_them() -> None:
    """Read back through the PTX table of mma.m16n8k16: row 2·(lane % 4) + 8·register + half of B, column lane / 4."""
    layer = next(layer for layer in plain().layers if layer.name == "wide")
    assert isinstance(layer, Convolution)
    found = cut(layer, Tile(4, 4, 16, 1, 2, 4))
    assert found is not None
    k = 4 * found.chunk_steps * 16
    b = np.arange(k * found.channel_tiles * 16).reshape(k, -1).astype(np.float64)
    packed = fragments(b, found)  # type: ignore[arg-type]
    assert packed.shape[1:] == (found.loads, 32, 2, 4)
    for tile, along_n, along_k, step, lane in [(0, 0, 0, 0, 0), (1, 1, 3, 2, 13), (2, 0, 1, 4, 31)]:
        block = packed[(tile * 2 + along_n) * 4 + along_k]
        values = block[step // 2, lane, step % 2]
        row, column = (along_k * found.chunk_steps + step) * 16 + lane % 4 * 2, tile * 16 + along_n * 8 + lane // 4
        assert list(values) == [b[row, column], b[row + 1, column], b[row + 8, column], b[row + 9, column]]


# Refusals.


def changed(network: Network, name: str, **fields: Any) -> Network:
    return dataclasses.replace(
        network, layers=tuple(dataclasses.replace(layer, **fields) if layer.name == name else layer for layer in network.layers)
    )


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (lambda: simple(groups=4), r"'middle'.*4 groups are neither one nor one a channel"),
        (lambda: Build(3, 8, 8).conv("depth", 3, 8, groups=3).network(), r"'depth'.*reads the image in groups"),
        (lambda: Build(3, 8, 8).pool("first", "max", 2).conv("last", 4, 4).network(), r"'first'.*only a convolution can read the image"),
        (lambda: Build(16, 8, 8).conv("adds", 16, 3, 1, 1, residual=INPUT).pool("p", "average").network(), r"'adds'.*adds the image"),
        (lambda: Build(3, 8, 8).conv("only", 4, 3).network(), r"'only'.*one pixel is expected"),
        (
            lambda: Build(3, 8, 8).conv("stem", 7000, 3).conv("vast", 16, 3).pool("p", "average").network(),
            r"'vast'.*96 KB of shared memory",
        ),
        (lambda: Build(3, 1, 1).conv("stem", 9000, 1).linear("wide", 4).network(), r"'wide'.*9000 features"),
    ],
)
def test_what_no_template_computes_is_refused_with_its_name(network: Any, named: str) -> None:
    with pytest.raises(UnsupportedOperator, match=named) as caught:
        generate(network(), "chain")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("schedule", "arguments", "named"),
    [
        ("queue", {}, "'queue'.*no such schedule"),
        ("grid", {"waiting": "luck"}, "cannot wait for 'luck'"),
        ("chain", {"input_dtype": "float32"}, "cannot take float32"),
        ("chain", {"input_dtype": "uint8"}, "scale and an offset"),
        ("chain", {"tuning": {"nobody": {"n": 8}}}, "nobody"),
        ("chain", {"tuning": {"middle": {"depth": 8}}}, "depth"),
        ("chain", {"tuning": {"middle": {"n": 24}}}, "no tile of 'middle'"),
    ],
)
def test_an_argument_that_is_not_one_is_refused(schedule: Any, arguments: Any, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        generate(simple(), schedule, **arguments)


def test_a_weight_that_fp16_cannot_hold_is_refused() -> None:
    network = simple()
    middle = next(layer for layer in network.layers if layer.name == "middle")
    assert isinstance(middle, Convolution)
    with pytest.raises(UsageError, match=r"'middle' has a weight of 70000"):
        generate(changed(network, "middle", weight=middle.weight * 0 + 70000), "chain")


# The weights' ring of the grid.


def test_weights_that_wait_together_do_not_overlap() -> None:
    steps = make(student("student_b"), sms=132).steps
    places, distance, shared = hold_weights(steps)
    assert distance == 3
    assert max(step.shared for step in steps) + 8 * len(steps) <= min(places.values())
    assert max(places.values()) < shared <= GRID_SHARED
    sizes = {
        step.name: step.cut.loads * 4096 + step.parts.get("AIMS", 0) // step.cut.pixel_tiles + step.parts["OFFSETS"] + step.cut.tile.n * 4
        for step in steps
        if step.cut
    }
    spans = [(places[name], places[name] + size) for name, size in sizes.items()]
    for first, (start, end) in enumerate(spans):
        for begin, stop in spans[first + 1 : first + distance]:
            assert end <= begin or stop <= start


# Compiling.


def resources(source: str, arch: str) -> dict[str, tuple[int, int]]:
    """Kernel → registers, and bytes of stack and spills, after NVRTC made a cubin for `arch`."""
    core = pytest.importorskip("cuda.core", reason="cuda.core is absent, which compiles CUDA C++")
    log = io.StringIO()
    options = core.ProgramOptions(arch=arch, std="c++17", ptxas_options=["-v"])
    core.Program(source, "c++", options).compile("cubin", logs=log)
    # That multicast should be compiled for sm_90a is advice about later GPUs; sm_90 has it.
    lines = [line for line in log.getvalue().splitlines() if "Advisory: '.multicast::cluster'" not in line]
    assert not any("warning" in line for line in lines), lines
    pattern = r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    return {name: (int(used), int(a) + int(b) + int(c)) for name, a, b, c, used in re.findall(pattern, log.getvalue(), re.DOTALL)}


def compiles(program: Any, arch: str) -> None:
    found = resources(program.source, arch)
    assert set(found) == {kernel.name for kernel in program.kernels}
    limit = REGISTERS if program.schedule == "chain" else 255
    assert all(registers <= limit and spilled == 0 for registers, spilled in found.values()), found


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90"])
@pytest.mark.parametrize(("build", "schedule"), [(odd, "chain"), (plain, "grid")], ids=["chain", "grid"])
def test_every_template_and_schedule_compiles_without_a_spill(build: Any, schedule: Any, arch: str) -> None:
    compiles(generate(build(), schedule), arch)


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90"])
@pytest.mark.parametrize("build", [odd, shortcut, lambda: student("student_b")], ids=["odd", "shortcut", "student_b"])
def test_a_chain_that_reads_tables_compiles(build: Any, arch: str) -> None:
    network = build()
    every = [step.layer_names[-1] for step in make(network, sms=132).steps if step.cut]
    compiles(generate(network, "chain", tables=every), arch)
    compiles(generate(network, "chain"), arch)


def machine_code(source: str) -> dict[str, list[str]]:
    """Kernel → its instructions for sm_90, in order."""
    core = pytest.importorskip("cuda.core", reason="cuda.core is absent, which compiles CUDA C++")
    triton = importlib.util.find_spec("triton")
    beside = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm" if triton and triton.origin else Path()
    reader = str(beside) if beside.is_file() else shutil.which("nvdisasm")
    if not reader:
        pytest.skip("nvdisasm is absent, which reads machine code; it comes with Triton and with the CUDA toolkit")
    cubin = core.Program(source, "c++", core.ProgramOptions(arch="sm_90", std="c++17")).compile("cubin").code
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([reader, "-c", file.name], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"\n//-+ \.text\.(\w+)", text)[1:]
    return {name: re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", part) for name, part in zip(parts[::2], parts[1::2], strict=True)}


@pytest.mark.parametrize("build", [shortcut, lambda: student("student_b")], ids=["shortcut", "student_b"])
@pytest.mark.parametrize("reads", [False, True], ids=["computed", "read"])
def test_what_needs_nothing_of_the_layer_before_is_fetched_ahead_of_the_chains_wait(reads: bool, build: Any) -> None:
    """Else nothing of it overlaps the kernel in front: the assembler had moved weights behind the wait."""
    network = build()
    every = [step.layer_names[-1] for step in make(network, sms=132).steps if step.cut]
    assert all(step.cut.tile.chunks == 1 for step in make(network, sms=132).steps if step.cut)
    program = generate(network, "chain", tables=every if reads else [])
    found = machine_code(program.source)
    assert set(found) == {kernel.name for kernel in program.kernels}
    for kernel in program.kernels:
        if kernel.reads_image:
            continue
        ahead = True
        counts = {True: 0, False: 0}
        for instruction in found[kernel.name]:
            ahead = "ACQBULK" not in instruction and (ahead or "EXIT" in instruction)
            counts[ahead] += bool(re.search(r"LDG\.\S*CONSTANT", instruction))
        assert counts[True] >= 2, kernel.name
        assert counts[False] == 0, kernel.name


def test_tables_of_what_has_none_are_refused() -> None:
    for name in ("classifier", "nobody"):
        with pytest.raises(UsageError, match=f"'{name}'.*have none"):
            generate(simple(), "chain", tables=[name])


def test_a_plan_says_whose_kernels_read_tables() -> None:
    programs = [generate(plain(), "chain"), generate(plain(), "chain", tables=["wide"]), generate(plain(), "grid")]
    told = [[step["tables"] for step in program.plan["steps"]] for program in programs]
    assert told == [[False, False, False, False, None], [False, True, False, False, None], [True, True, True, True, None]]
    # One file for both ways: what is not read lies there all the same.
    assert len({program.weights for program in programs}) == 1


def test_bytes_compile() -> None:
    one = np.ones(3, np.float32)
    compiles(generate(last_is_a_convolution(), "chain", input_dtype="uint8", pixels=(one, one)), "sm_90")


def test_a_grid_that_is_measured_compiles() -> None:
    compiles(generate(student("student_a"), "grid", timed=True), "sm_90")


def test_a_grid_that_waits_for_counters_compiles() -> None:
    compiles(generate(plain(), "grid", waiting="counters"), "sm_90")


def test_a_grid_with_a_head_of_its_own_compiles() -> None:
    compiles(generate(plain(), "grid", flow=Flow(head_in_last=False)), "sm_90")


@pytest.mark.parametrize("schedule", ["chain", "grid"])
def test_a_students_source_compiles_without_a_spill(schedule: Any) -> None:
    compiles(generate(student("student_b"), schedule), "sm_90")


@pytest.mark.slow  # 35 s: the largest sources, each for three architectures
@pytest.mark.parametrize("schedule", ["chain", "grid"])
def test_shipped_models_compile_for_every_architecture(schedule: Any) -> None:
    pytest.importorskip("torch")
    from exporters.fused.shipped import MODELS, read

    for name in MODELS:
        for arch in ("sm_80", "sm_89", "sm_90"):
            compiles(generate(read(name), schedule), arch)


def test_a_block_and_its_shortcut_are_one_kernel_of_the_chain() -> None:
    network = shortcut()
    program, plan = generate(network, "chain"), make(network, sms=132)
    steps = {step.layer_names[-1]: step for step in plan.steps}
    beside = [kernel for kernel in program.kernels if len(kernel.layers) == 2 and "classifier" not in kernel.layers]
    assert [kernel.layers for kernel in beside] == [("first", "short"), ("aside", "third")]
    for kernel in beside:
        first, second = (steps[name] for name in kernel.layers)
        assert (kernel.grid, kernel.shared) == (first.tiles + second.tiles, max(first.shared, second.shared))
        assert f"run_beside<Layer_{first.name}, {first.tiles}, Layer_{second.name}>" in program.source
    assert [name for kernel in program.kernels for name in kernel.layers] == [name for step in plan.steps for name in step.layer_names]


def test_a_convolution_that_adds_what_the_one_before_it_makes_is_a_kernel_of_its_own() -> None:
    build = Build(3, 8, 8).conv("stem", 16, 3, 1, 1).conv("first", 16, 3, 1, 1)
    network = build.conv("second", 16, 3, 1, 1, source="stem", residual="first").pool("pool", "average").linear("fc", 4).network()
    assert [kernel.layers for kernel in generate(network, "chain").kernels][:3] == [("stem",), ("first",), ("second",)]


# Stamps.


@pytest.mark.parametrize(("schedule", "waiting"), [("chain", "data"), ("grid", "data"), ("grid", "counters")])
def test_an_exported_source_has_no_stamp(schedule: Any, waiting: Any) -> None:
    program = generate(student("student_a"), schedule, waiting=waiting)
    assert "stamp" not in program.source.lower()
    assert "cycles()" not in program.source.partition("#endif  // FUSED_EMULATED")[2]


def test_a_measured_grid_differs_by_its_stamps_alone() -> None:
    plain, timed = generate(student("student_a"), "grid"), generate(student("student_a"), "grid", timed=True)
    words = timed.kernels[0].grid * stamps.STAMPERS * stamps.words(make(student("student_a"), sms=132))
    assert timed.state_bytes == plain.state_bytes + 4 * words
    assert f"STAMPS_AT = {plain.state_bytes // 4}," in timed.source
    assert (timed.kernels, timed.weights, timed.outputs) == (plain.kernels, plain.weights, plain.outputs)
    # Every line of the plain source stands in the other too, in the same order; but for the moment behind `settle`.
    rest = iter(timed.source.replace(" stamp(state, SETTLED);", "").splitlines())
    assert all(line in rest for line in plain.source.splitlines())


def test_only_the_grid_that_waits_for_data_is_measured_so() -> None:
    for schedule, waiting in (("chain", "data"), ("grid", "counters")):
        with pytest.raises(UsageError, match="keeps no stamps"):
            generate(simple(), schedule, waiting=waiting, timed=True)  # type: ignore[arg-type]
