"""The fused runtime on a driver of host memory: what is launched and how, what is refused before, and whose memory is whose."""

from __future__ import annotations

import dataclasses
import gc
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")

from exporters.fused import handmade
from fake_cuda import Code, installed
from fake_kernels import COOPERATIVE, SHARED, KernelDriver

from accel import device, runtimes
from accel.device import kernels, nvrtc
from accel.engines import fused_plan
from accel.engines.fused_plan import FusedPlan, Scheduled
from accel.errors import AccelError, CorruptArtifact, IncompatibleArtifact, RuntimeUnavailable, UsageError
from accel.runtimes import fused_engine, fused_image, gpu_call
from accel.runtimes.fused import Fused
from accel.runtimes.session import Session
from accel.types import Binding, DeviceArray, EngineEntry, EngineSource, Kernel, TensorSpec, Variant

CODE = b"\x7fELF of a test"
IN = TensorSpec("image", (1, handmade.CHANNELS, handmade.HEIGHT, handmade.WIDTH), "float16", "NCHW")
OUT = TensorSpec("logits", (1, handmade.CLASSES), "float32", "NC")


def write(folder: Path, change: Callable[[dict[str, Any]], None] = lambda plan: None, **kernels: tuple[Kernel, ...]) -> Path:
    """An engine of `handmade`, its machine code a few bytes; `kernels` replace those of a schedule."""
    folder.mkdir(parents=True, exist_ok=True)
    schedules = {}
    for name in ("chain", "grid", *(["cluster"] if "cluster" in kernels else [])):
        program = handmade.generate(handmade.network(), "grid" if name == "cluster" else name)  # type: ignore[arg-type]
        launches = kernels.get(name, program.kernels)
        cubins = {"9.0": f"{name}-sm90.cubin"}
        sizes = (program.arena_bytes, program.state_bytes)
        schedules[name] = Scheduled(
            name,
            f"{name}.cu",
            "weights.bin",
            cubins,
            launches,
            *sizes,
            program.outputs,
            plan=dict(program.plan),  # type: ignore[arg-type]
        )
        (folder / f"{name}.cu").write_text(program.source)
        (folder / "weights.bin").write_bytes(program.weights)
        (folder / cubins["9.0"]).write_bytes(CODE)
    plan = FusedPlan("chain", "told so", 132, IN, OUT, schedules, {"cluster": "too small"})  # type: ignore[arg-type]
    data = json.loads(plan.to_text())
    change(data)
    (folder / "plan.json").write_text(json.dumps(data))
    return folder / "plan.json"


@dataclasses.dataclass
class World:
    driver: KernelDriver
    folder: Path

    def source(self, spelling: str = "fused:fp16", batch: int = 1, **how: Any) -> EngineSource:
        file = write(self.folder, **how)
        files = {f"fused-fp16/{path.name}": "" for path in sorted(self.folder.iterdir(), key=lambda path: path.name != "plan.json")}
        entry = EngineEntry("fused-fp16", "fused", "fp16", files, (IN,), (OUT,), {}, 0.0, precision_proof={"share": 1.0})
        public = [dataclasses.replace(spec, shape=("batch", *spec.shape[1:]), dtype="float32") for spec in (IN, OUT)]
        return EngineSource(Variant.parse(spelling), "cuda:0", (public[0],), (public[1],), batch, entry=entry, file=file)

    def opened(self, spelling: str = "fused:fp16", **how: Any) -> Fused:
        runtime = runtimes.create(self.source(spelling, **how))
        assert isinstance(runtime, Fused)
        runtime.open(device.open_stream("cuda:0"))
        return runtime

    def refusal(self, spelling: str, kind: type[AccelError] = RuntimeUnavailable, **how: Any) -> str:
        """Of opening the variant, which must have launched nothing and left nothing behind."""
        with pytest.raises(kind) as refused:
            self.opened(spelling, **how)
        assert (self.driver.launched, fused_engine.count()) == ([], 0)
        return str(refused.value)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "cache"))
    with installed(KernelDriver(dict(handmade.EMULATED))) as driver:
        yield World(driver, tmp_path / "net.accel" / "fused-fp16")
    assert fused_engine.count() == 0


def some_image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, *IN.shape[1:]), dtype=np.float32)


def infer(runtime: Fused, image: np.ndarray) -> np.ndarray:
    return device.Staging(runtime.home, 77).run(runtime, {"image": image})["logits"]


@pytest.mark.parametrize("spelling", ["fused:fp16", "fused:fp16-graph", "fused:fp16+grid", "fused:fp16+grid-graph"])
def test_the_answer_is_the_networks_through_staging(world: World, spelling: str) -> None:
    runtime = world.opened(spelling)
    for seed in range(3):
        np.testing.assert_allclose(infer(runtime, some_image(seed)), handmade.answer(some_image(seed)), rtol=1e-2, atol=1e-3)
    runtime.close()


def test_the_plans_choice_runs_unless_a_schedule_is_forced(world: World) -> None:
    for spelling, names in (("fused:fp16", ["mean", "fc"]), ("fused:fp16+chain", ["mean", "fc"]), ("fused:fp16+grid", ["whole"])):
        world.driver.launched.clear()
        runtime = world.opened(spelling)
        # Once to see that it runs, once into the graph.
        assert [launch.kernel for launch in world.driver.launched] == names * 2
        assert runtime.facts["settings"]["schedule"] == ("grid" if "grid" in spelling else "chain")
        runtime.close()


def test_a_launch_has_its_shape_and_exactly_the_attributes_that_it_needs(world: World) -> None:
    runtime = world.opened("fused:fp16+chain-graph")
    mean, fc = world.driver.launched
    assert (mean.grid, mean.block, mean.shared, mean.stream, mean.attributes) == (handmade.CHANNELS, 32, 128, 77, ())
    assert fc.attributes == ("PROGRAMMATIC_STREAM_SERIALIZATION",)
    runtime.close()
    world.driver.launched.clear()
    runtime = world.opened("fused:fp16+grid")
    assert [launch.attributes for launch in world.driver.launched] == [("COOPERATIVE",)] * 2
    runtime.close()


def test_arguments_are_image_weights_arena_logits_state_in_this_order(world: World) -> None:
    runtime = world.opened("fused:fp16+grid")
    assert runtime.engine is not None
    found = world.driver.launched[-1].arguments
    expected = [runtime.home.inputs["image"].ptr, runtime.engine.weights.ptr, runtime.buffers["arena"].ptr]
    assert list(found) == [*expected, runtime.output(runtime.home)["logits"].ptr, runtime.buffers["state"].ptr]
    runtime.close()


def test_a_large_cluster_is_asked_for_and_a_portable_one_is_not(world: World) -> None:
    for size, asked in ((8, False), (16, True)):
        world.driver.allowed.clear()
        runtime = world.opened("fused:fp16+cluster", cluster=(Kernel("whole", size, 32, 5000, cluster=size),))
        assert world.driver.launched[-1].attributes == ("CLUSTER_DIMENSION",)
        assert world.driver.launched[-1].cluster == size
        allowed = world.driver.allowed["whole"]
        assert allowed["MAX_DYNAMIC_SHARED_SIZE_BYTES"] == 5000
        assert ("NON_PORTABLE_CLUSTER_SIZE_ALLOWED" in allowed) is asked
        runtime.close()


@pytest.mark.parametrize(("spelling", "names"), [("fused:fp16+chain", {"mean", "fc"}), ("fused:fp16+grid", {"whole"})])
def test_every_kernel_asks_for_the_largest_carve_out_whatever_shared_memory_it_takes(world: World, spelling: str, names: set[str]) -> None:
    runtime = world.opened(spelling)
    assert {name: of["PREFERRED_SHARED_MEMORY_CARVEOUT"] for name, of in world.driver.allowed.items()} == dict.fromkeys(names, 100)
    runtime.close()


def test_the_carve_out_can_be_left_to_the_driver_again(world: World) -> None:
    runtime = world.opened("fused:fp16+chain")
    for launch in runtime.launches:
        kernels.prefer_shared(launch.function, launch.kernel, largest=False)
    assert {of["PREFERRED_SHARED_MEMORY_CARVEOUT"] for of in world.driver.allowed.values()} == {-1}
    runtime.close()


SET, COPY, LAUNCH = "cuGraphExecKernelNodeSetParams", "cuMemcpyDtoDAsync", "cuGraphLaunch"


def resident(seed: int, offset: int = 0) -> DeviceArray:
    """An image in GPU memory of its own, `offset` bytes behind its beginning."""
    image = some_image(seed).astype(np.float16)
    memory = device.to_device(np.frombuffer(bytes(offset) + image.tobytes(), np.uint8), "uint8", "cuda:0", 77)
    return DeviceArray(memory.ptr + offset, IN.shape, IN.dtype, "cuda:0", memory)  # type: ignore[arg-type]


def answered(runtime: Fused, binding: Binding) -> np.ndarray:
    runtime.enqueue(binding)
    return device.to_numpy(runtime.output(binding)["logits"], 77)


def calls_of(world: World, call: Callable[[], object]) -> list[str]:
    world.driver.calls.clear()
    call()
    return list(world.driver.calls)


@pytest.mark.parametrize("spelling", ["fused:fp16+chain", "fused:fp16+grid", "fused:fp16+chain-graph", "fused:fp16+grid-graph"])
def test_bindings_in_turn_answer_the_image_that_each_has_in_its_own_memory(world: World, spelling: str) -> None:
    runtime = world.opened(spelling)
    at_home = infer(runtime, some_image(9))
    bindings = {seed: runtime.prepare({"image": resident(seed)}) for seed in range(3)}
    for seed in (0, 1, 0, 1, 1, 2, 0):
        np.testing.assert_allclose(answered(runtime, bindings[seed]), handmade.answer(some_image(seed)), rtol=1e-2, atol=1e-3)
    # Nothing was copied over what home has.
    np.testing.assert_array_equal(answered(runtime, runtime.home), at_home)
    np.testing.assert_allclose(answered(runtime, bindings[2]), handmade.answer(some_image(2)), rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(infer(runtime, some_image(5)), handmade.answer(some_image(5)), rtol=1e-2, atol=1e-3)
    runtime.close()


def test_the_address_is_set_where_it_is_another_one_and_a_call_is_one_launch_otherwise(world: World) -> None:
    runtime = world.opened()
    one, two = (runtime.prepare({"image": resident(seed)}) for seed in range(2))
    for binding, calls in (
        (runtime.home, [LAUNCH]),
        (one, [SET, LAUNCH]),
        (one, [LAUNCH]),
        (two, [SET, LAUNCH]),
        (runtime.home, [SET, LAUNCH]),
        (runtime.home, [LAUNCH]),
    ):
        assert calls_of(world, lambda binding=binding: runtime.enqueue(binding)) == calls  # type: ignore[misc]
    # Another binding of the same memory is no other place.
    again = runtime.prepare(runtime.home.inputs)
    assert calls_of(world, lambda: runtime.enqueue(again)) == [LAUNCH]
    assert runtime.facts["settings"]["image"] == "read where it is"
    runtime.close()


def test_only_kernels_that_read_the_image_are_told_and_of_an_older_engine_all_of_them(world: World) -> None:
    def older(plan: dict[str, Any]) -> None:
        for kernel in plan["schedules"]["chain"]["kernels"]:
            del kernel["reads_image"]

    for change, count in ((lambda plan: None, 1), (older, 2)):
        runtime = world.opened("fused:fp16+chain", change=change)
        binding = runtime.prepare({"image": resident(3)})
        assert calls_of(world, lambda: runtime.enqueue(binding)) == [*[SET] * count, LAUNCH]  # noqa: B023
        np.testing.assert_allclose(answered(runtime, binding), handmade.answer(some_image(3)), rtol=1e-2, atol=1e-3)
        runtime.close()


@pytest.mark.parametrize("spelling", ["fused:fp16+chain", "fused:fp16+chain-graph"])
def test_an_image_at_an_odd_address_is_copied_to_its_place_and_read_there(world: World, spelling: str) -> None:
    runtime = world.opened(spelling)
    even, odd = (runtime.prepare({"image": resident(seed, offset=16 + seed)}) for seed in range(2))
    for seed, binding in ((0, even), (1, odd), (0, even), (1, odd), (1, odd)):
        np.testing.assert_allclose(answered(runtime, binding), handmade.answer(some_image(seed)), rtol=1e-2, atol=1e-3)
    if runtime.graph:
        assert calls_of(world, lambda: runtime.enqueue(odd)) == [COPY, LAUNCH]
        assert calls_of(world, lambda: runtime.enqueue(even)) == [SET, LAUNCH]
        assert calls_of(world, lambda: runtime.enqueue(odd)) == [SET, COPY, LAUNCH]
    else:
        assert calls_of(world, lambda: runtime.enqueue(odd)) == [COPY, *["cuLaunchKernelEx"] * 2]
    runtime.close()


def test_bytes_can_be_read_anywhere_and_halves_at_even_addresses() -> None:
    def image(ptr: int, dtype: str) -> DeviceArray:
        return DeviceArray(ptr, (1, 4, 4, 3), dtype, "cuda:0", None)

    assert [fused_image.is_aligned(image(ptr, "float16")) for ptr in (256, 258, 257)] == [True, True, False]
    assert fused_image.is_aligned(image(257, "uint8"))


def test_memory_whose_address_is_in_the_graph_lives_until_another_is_set(world: World) -> None:
    runtime = world.opened()
    image = resident(4)
    alive = weakref.ref(image.owner)
    binding = runtime.prepare({"image": image})
    runtime.enqueue(binding)
    del image, binding
    gc.collect()
    assert alive() is not None
    runtime.enqueue(runtime.home)
    gc.collect()
    assert alive() is None
    runtime.close()


def test_where_the_driver_does_not_let_it_be_set_the_image_is_copied_and_the_facts_say_so(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.driver.fail[SET] = Code.CUDA_ERROR_ILLEGAL_ADDRESS
    runtime = world.opened()
    del world.driver.fail[SET]
    assert "copied: setting the image's address in a CUDA graph failed" in runtime.facts["settings"]["image"]
    assert "the image is copied in every call" in caplog.text
    bindings = [runtime.prepare({"image": resident(seed)}) for seed in range(2)]
    for seed in (0, 1, 0):
        np.testing.assert_allclose(answered(runtime, bindings[seed]), handmade.answer(some_image(seed)), rtol=1e-2, atol=1e-3)
    assert calls_of(world, lambda: runtime.enqueue(bindings[1])) == [COPY, LAUNCH]
    assert calls_of(world, lambda: runtime.enqueue(runtime.home)) == [LAUNCH]
    runtime.close()


def test_a_graph_that_lacks_a_node_of_a_kernel_is_no_reason_not_to_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    found = kernels.nodes_of
    monkeypatch.setattr(kernels, "nodes_of", lambda nodes, launches: found((), launches))
    runtime = world.opened("fused:fp16+chain")
    assert runtime.facts["settings"]["image"] == "copied: the captured graph has 0 nodes of the kernel mean"
    runtime.close()


def test_an_address_that_could_not_be_set_is_an_error_and_is_set_by_the_next_call(world: World) -> None:
    runtime = world.opened()
    binding = runtime.prepare({"image": resident(6)})
    world.driver.fail[SET] = Code.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(AccelError, match="setting the image's address in a CUDA graph failed: CUDA_ERROR_ILLEGAL_ADDRESS"):
        runtime.enqueue(binding)
    del world.driver.fail[SET]
    # Not even home is taken to be what the graph reads.
    assert calls_of(world, lambda: runtime.enqueue(runtime.home)) == [SET, LAUNCH]
    np.testing.assert_allclose(answered(runtime, binding), handmade.answer(some_image(6)), rtol=1e-2, atol=1e-3)
    runtime.close()


def test_without_a_graph_the_launches_have_the_bindings_address(world: World) -> None:
    runtime = world.opened("fused:fp16+chain-graph")
    image = resident(7)
    binding = runtime.prepare({"image": image})
    world.driver.launched.clear()
    assert calls_of(world, lambda: runtime.enqueue(binding)) == ["cuLaunchKernelEx"] * 2
    assert [launch.arguments[0] for launch in world.driver.launched] == [image.ptr, runtime.home.inputs["image"].ptr]
    runtime.close()


def test_what_was_captured_is_kept_as_long_as_addresses_are_set_by_it(world: World) -> None:
    runtime = world.opened()
    assert len(world.driver.templates) == 1
    runtime.close()
    assert (world.driver.templates, world.driver.graphs) == ({}, {})


def test_without_the_graph_every_call_launches_the_kernels(world: World) -> None:
    runtime = world.opened("fused:fp16-graph")
    world.driver.calls.clear()
    runtime.enqueue(runtime.home)
    assert world.driver.calls == ["cuLaunchKernelEx"] * 2
    assert "graph_nodes" not in runtime.facts
    runtime.close()


def test_a_graph_that_would_not_launch_cooperatively_is_refused_before_it_exists(world: World) -> None:
    world.driver.keeps = False
    with pytest.raises(RuntimeUnavailable, match="1 of them cooperative; the graph has 1 and 0") as refused:
        world.opened("fused:fp16+grid")
    assert "fused:fp16+grid-graph" in str(refused.value)
    assert "cuGraphInstantiate" not in world.driver.calls


def test_a_grid_that_is_not_resident_as_a_whole_is_refused_and_the_chain_is_named(world: World) -> None:
    world.driver.capability[16] = handmade.CHANNELS - 1
    said = world.refusal("fused:fp16+grid")
    assert f"needs {handmade.CHANNELS} CTAs resident at once, and it has room for {handmade.CHANNELS - 1}" in said
    assert "run fused:fp16+chain" in said


def choose_grid(data: dict[str, Any]) -> None:
    data["chosen"] = "grid"


def test_a_grid_that_was_chosen_on_a_larger_gpu_gives_way_to_the_chain_and_says_so(world: World, caplog: pytest.LogCaptureFixture) -> None:
    runtime = world.opened("fused:fp16", change=choose_grid)
    assert (runtime.facts["settings"]["schedule"], "instead_of" in runtime.facts["settings"]) == ("grid", False)
    runtime.close()

    world.driver.capability[16] = handmade.CHANNELS - 1
    runtime = world.opened("fused:fp16", change=choose_grid)
    settings = runtime.facts["settings"]
    assert (settings["schedule"], settings["instead_of"]) == ("chain", "grid")
    assert "resident at once" in settings["because"]
    assert "runs its schedule chain, not grid" in caplog.text
    np.testing.assert_allclose(infer(runtime, some_image()), handmade.answer(some_image()), rtol=1e-2, atol=1e-3)
    runtime.close()


def test_a_chosen_grid_and_a_chain_that_both_cannot_run_are_refused(world: World) -> None:
    world.driver.capability.update({16: handmade.CHANNELS - 1, SHARED: 100})
    assert "needs 128 bytes of shared memory, and it has 100" in world.refusal("fused:fp16", change=choose_grid)


def test_a_gpu_without_cooperative_launches_is_refused(world: World) -> None:
    world.driver.capability[COOPERATIVE] = 0
    assert "needs cooperative launches" in world.refusal("fused:fp16+grid")


def test_too_much_shared_memory_is_refused(world: World) -> None:
    world.driver.capability[SHARED] = 100
    assert "needs 128 bytes of shared memory, and it has 100" in world.refusal("fused:fp16")


def test_a_cluster_for_which_there_is_no_room_is_refused(world: World) -> None:
    world.driver.clusters = 0
    said = world.refusal("fused:fp16+cluster", cluster=(Kernel("whole", 16, 32, cluster=16),))
    assert "needs 16 CTAs resident at once, and it has room for 0" in said


def test_a_gpu_from_before_clusters_is_refused_before_anything_is_compiled_for_it(world: World) -> None:
    world.driver.capability.update({75: 8, 76: 9})
    said = world.refusal("fused:fp16+cluster", cluster=(Kernel("whole", 16, 32, cluster=16),))
    assert "the schedule cluster begins with compute capability 9.0; cuda:0 has 8.9" in said
    assert "run fused:fp16+chain" in said


def test_a_schedule_that_was_left_out_is_refused_with_the_generators_reason(world: World) -> None:
    said = world.refusal("fused:fp16+cluster")
    assert "has no schedule cluster: too small" in said
    assert "run fused:fp16+chain" in said


def test_two_schedules_at_once_are_no_variant(world: World) -> None:
    with pytest.raises(UsageError, match="asks for chain and grid at once"):
        runtimes.create(world.source("fused:fp16+chain+grid"))


def test_a_batch_other_than_one_and_a_cpu_are_refused(world: World) -> None:
    assert "a batch of 2 was asked for" in world.refusal("fused:fp16", UsageError, batch=2)
    with pytest.raises(RuntimeUnavailable, match="runs on NVIDIA GPUs only"):
        runtimes.create(dataclasses.replace(world.source(), device="cpu"))


def test_an_older_gpu_is_refused_before_anything_is_loaded(world: World) -> None:
    world.driver.capability.update({75: 7, 76: 5})
    said = world.refusal("fused:fp16", IncompatibleArtifact)
    assert "needs compute capability 8.0 or newer; cuda:0 has 7.5" in said
    assert "cuModuleLoadData" not in world.driver.calls


def test_on_another_gpu_the_source_is_compiled_once_and_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[str, str]] = []

    def compile(source: str, name: str, capability: str) -> nvrtc.Compiled:
        compiled.append((name, capability))
        return nvrtc.Compiled(CODE, {}, "")

    monkeypatch.setattr(nvrtc, "compile", compile)
    monkeypatch.setattr(nvrtc, "version", lambda: "13.9")
    world.driver.capability.update({75: 8, 76: 9})
    origins = []
    for _ in range(2):
        runtime = world.opened("fused:fp16")
        origins.append(runtime.facts["settings"]["machine_code"])
        # What this GPU does not know is not asked of it.
        assert all(launch.attributes == () for launch in world.driver.launched)
        runtime.close()
    assert origins == ["compiled here", "cache"]
    assert compiled == [("chain.cu", "8.9")]
    (kept,) = (world.folder.parents[1] / "cache" / "fused").iterdir()
    assert kept.name.endswith("-sm8.9-nvrtc13.9.cubin")
    # Another source, capability or NVRTC is another file; a damaged one is compiled again.
    kept.write_bytes(b"no code")
    world.opened("fused:fp16").close()
    assert len(compiled) == 2


def test_two_contexts_share_code_and_weights_and_nothing_that_a_call_writes(world: World) -> None:
    source = world.source("fused:fp16+grid")
    sessions = [Session(source) for _ in range(2)]
    one, two = (session.runtime for session in sessions)
    assert isinstance(one, Fused)
    assert isinstance(two, Fused)
    assert one.engine is two.engine
    assert len(world.driver.loaded) == 1
    for name in ("arena", "state"):
        assert one.buffers[name].ptr != two.buffers[name].ptr
    assert one.home.inputs["image"].ptr != two.home.inputs["image"].ptr
    assert one.output(one.home)["logits"].ptr != two.output(two.home)["logits"].ptr
    images = [some_image(seed) for seed in range(2)]
    answers = [session.run({"image": image})["logits"] for session, image in zip(sessions, images, strict=True)]
    for found, image in zip(answers, images, strict=True):
        np.testing.assert_allclose(found, handmade.answer(image), rtol=1e-2, atol=1e-3)
    sessions[0].close()
    assert fused_engine.count() == 1
    sessions[1].close()


def test_a_wait_that_ran_out_is_an_error_with_its_layer_and_the_next_call_begins_anew(world: World) -> None:
    runtime = world.opened("fused:fp16+grid")
    world.driver.kernels["whole"] = handmade.late
    with pytest.raises(AccelError) as refused:
        infer(runtime, some_image())
    assert "a wait between CTAs ran out before the layer fc; the answer is void" in str(refused.value)
    assert "fused:fp16+chain" in str(refused.value)
    world.driver.kernels["whole"] = handmade.whole
    np.testing.assert_allclose(infer(runtime, some_image()), handmade.answer(some_image()), rtol=1e-2, atol=1e-3)
    runtime.close()


def test_the_error_word_is_read_with_the_answer_and_never_in_the_timed_call(world: World) -> None:
    runtime = world.opened("fused:fp16+grid")
    for call, expected in (
        (lambda: runtime.enqueue(runtime.home), ["cuGraphLaunch"]),
        (lambda: runtime.output(runtime.home), ["cuMemcpyDtoHAsync"]),
        (runtime.check, []),
    ):
        world.driver.calls.clear()
        call()
        assert world.driver.calls == expected
    runtime.close()
    runtime = world.opened("fused:fp16+chain")
    world.driver.calls.clear()
    runtime.output(runtime.home)
    assert world.driver.calls == []
    runtime.close()


def test_an_answer_that_stays_on_the_gpu_is_held_against_the_error_word_too(world: World) -> None:
    session = Session(world.source("fused:fp16+grid"))
    given = device.to_device(some_image(), "float16", "cuda:0", 77)
    found = gpu_call.run_arrays(session, {"image": given}, 1)["logits"]
    np.testing.assert_allclose(device.to_numpy(found, 77), handmade.answer(some_image()), rtol=1e-2, atol=1e-3)
    world.driver.kernels["whole"] = handmade.late
    with pytest.raises(AccelError, match="the answer is void"):
        gpu_call.run_arrays(session, {"image": given}, 1)
    session.close()


def test_a_wait_that_runs_out_at_once_is_told_by_open(world: World) -> None:
    world.driver.kernels["whole"] = handmade.late
    with pytest.raises(AccelError, match="ran out before the layer fc"):
        world.opened("fused:fp16+grid")


def test_arena_and_state_begin_as_zeros(world: World) -> None:
    runtime = world.opened("fused:fp16+grid")
    assert device.to_numpy(runtime.buffers["state"], 77).tolist() == [0] * 12
    runtime.close()


def test_the_end_of_loading_is_told_before_anything_is_launched(world: World) -> None:
    told: list[int] = []
    source = dataclasses.replace(world.source(), loaded=lambda: told.append(len(world.driver.launched)))
    runtime = Fused(source)
    runtime.open(device.open_stream("cuda:0"))
    assert told == [0]
    runtime.close()
    runtime.close()


def test_a_file_that_accel_json_does_not_name_is_not_opened(world: World) -> None:
    def change(plan: dict[str, Any]) -> None:
        plan["schedules"]["chain"]["cubins"]["9.0"] = "other.cubin"

    assert "names other.cubin, which accel.json does not" in world.refusal("fused:fp16", CorruptArtifact, change=change)


def test_what_is_no_machine_code_or_lacks_a_kernel_is_refused(world: World) -> None:
    source = world.source()
    (world.folder / "chain-sm90.cubin").write_bytes(b"#!/bin/sh")
    with pytest.raises(CorruptArtifact, match=r"chain-sm90\.cubin is no machine code"):
        Fused(source).open(device.open_stream("cuda:0"))
    del world.driver.kernels["fc"]
    with pytest.raises(IncompatibleArtifact, match="the machine code has no kernel fc"):
        world.opened("fused:fp16")


def test_a_driver_that_fails_is_named_with_the_kernel(world: World) -> None:
    world.driver.fail["cuLaunchKernelEx"] = Code.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(AccelError, match="launching mean failed: CUDA_ERROR_ILLEGAL_ADDRESS"):
        world.opened("fused:fp16")


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("schedules", "chain", "source"), "../../chain.cu", "'source' has the value '../../chain.cu'"),
        (("schedules", "chain", "cubins", "9.0"), "/etc/passwd", "'cubins'"),
        (("schedules", "grid", "kernels", 0, "grid"), 0, "'grid' has the value 0"),
        (("schedules", "grid", "kernels", 0, "block"), 2048, "'block' has the value 2048"),
        (("schedules", "grid", "kernels", 0, "cluster"), 4, "6 CTAs are not whole clusters of 4"),
        (("schedules", "grid", "kernels", 0, "name"), "a b", "'name' has the value 'a b'"),
        (("schedules", "grid", "state_bytes"), -1, "'state_bytes' has the value -1"),
        (("chosen",), "cluster", "chooses 'cluster'"),
        (("input", "dtype"), "float64", "'dtype' has the value 'float64'"),
        (("more",), 1, "has an unknown key 'more'"),
    ],
)
def test_a_doctored_plan_is_refused_by_the_key(tmp_path: Path, where: tuple[Any, ...], value: Any, said: str) -> None:
    def change(plan: dict[str, Any]) -> None:
        place: Any = plan
        for step in where[:-1]:
            place = place[step]
        place[where[-1]] = value

    with pytest.raises(CorruptArtifact) as refused:
        fused_plan.read(write(tmp_path, change))
    assert said in str(refused.value)


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = fused_plan.read(write(tmp_path))
    assert fused_plan.read(write(tmp_path)) == plan
    assert json.loads(plan.to_text()) == json.loads((tmp_path / "plan.json").read_text())
    assert set(plan.files) == {"chain.cu", "grid.cu", "weights.bin", "chain-sm90.cubin", "grid-sm90.cubin"}
    assert (plan.schedules["chain"].waits, plan.schedules["grid"].waits) == (False, True)


def test_two_threads_open_one_engine_and_each_gets_its_own_answers(world: World) -> None:
    source = world.source("fused:fp16+grid")
    found: dict[int, np.ndarray] = {}

    def work(seed: int) -> None:
        session = Session(source)
        found[seed] = session.run({"image": some_image(seed)})["logits"]
        session.close()

    # One after another: the fake driver has one stream.
    for seed in range(2):
        thread = threading.Thread(target=work, args=(seed,))
        thread.start()
        thread.join()
    for seed, logits in found.items():
        np.testing.assert_allclose(logits, handmade.answer(some_image(seed)), rtol=1e-2, atol=1e-3)
