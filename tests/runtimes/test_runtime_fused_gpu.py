"""The fused runtime on a GPU, with the handmade network: right answers, two threads, a grid that cannot be, recompilation.

`benchmarks/fused_check.py` does the same at length with generated networks.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.core", reason="cuda-core is not installed")

from exporters.fused import handmade

from accel import device, runtimes
from accel.device import driver, kernels
from accel.errors import AccelError, RuntimeUnavailable
from accel.exporters import ExportRequest
from accel.exporters.fused import exporting
from accel.runtimes.fused import Fused
from accel.runtimes.session import Session
from accel.types import EngineSource, TensorSpec, Variant

pytestmark = pytest.mark.gpu
LAUNCHES = 2000
MakeSource = Callable[..., EngineSource]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> MakeSource:
    """make("fused:fp16+grid") → a source of an engine that was compiled for this GPU, or for the capabilities that are named."""
    available, reason = device.gpu_available()
    if not available:
        pytest.skip(reason)
    inputs = (TensorSpec("image", ("batch", handmade.CHANNELS, handmade.HEIGHT, handmade.WIDTH), "float32", "NCHW"),)
    outputs = (TensorSpec("logits", ("batch", handmade.CLASSES), "float32", "NC"),)

    def source(spelling: str, change: Callable[[dict[str, Any]], None] = lambda plan: None) -> EngineSource:
        folder = tmp_path_factory.mktemp("bundle") / "fused-fp16"
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exporting, "GENERATOR", "exporters.fused.handmade:generate")
            request = ExportRequest(None, inputs, outputs, "fp16", folder, device="cuda:0")
            entry = exporting.export_network(handmade.network(), request)
        file = folder / "plan.json"
        plan = json.loads(file.read_text())
        change(plan)
        file.write_text(json.dumps(plan))
        return EngineSource(Variant.parse(spelling), "cuda:0", inputs, outputs, 1, entry=entry, file=file)

    return source


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, handmade.CHANNELS, handmade.HEIGHT, handmade.WIDTH), dtype=np.float32)


@pytest.mark.parametrize("spelling", ["fused:fp16+chain", "fused:fp16+chain-graph", "fused:fp16+grid", "fused:fp16+grid-graph"])
def test_the_answer_is_the_networks(make: MakeSource, spelling: str) -> None:
    session = Session(make(spelling))
    for seed in range(20):
        found = session.run({"image": image(seed)})["logits"]
        np.testing.assert_allclose(found, handmade.answer(image(seed)), rtol=1e-2, atol=1e-3)
    session.close()


@pytest.mark.parametrize("spelling", ["fused:fp16+chain", "fused:fp16+grid"])
def test_a_call_does_not_wait_for_the_gpu(make: MakeSource, spelling: str) -> None:
    session = Session(make(spelling))
    gate = device.Gate(session.stream)
    with gate:
        session.runtime.enqueue(session.runtime.home)
    device.synchronize(session.stream)
    assert not gate.blocked
    session.close()


SPELLINGS = ["fused:fp16+chain", "fused:fp16+chain-graph", "fused:fp16+grid", "fused:fp16+grid-graph"]


@pytest.mark.parametrize("spelling", ["fused:fp16+chain", "fused:fp16+grid"])
def test_every_kernel_has_the_largest_carve_out(make: MakeSource, spelling: str) -> None:
    session = Session(make(spelling))
    runtime, cuda = session.runtime, driver.bindings()
    assert isinstance(runtime, Fused)
    asked = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
    found = [driver.check(cuda.cuFuncGetAttribute(asked, launch.function), "reading a carve-out") for launch in runtime.launches]
    assert found == [int(cuda.CUshared_carveout.CU_SHAREDMEM_CARVEOUT_MAX_SHARED)] * len(runtime.launches)
    session.close()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_images_are_read_where_each_binding_has_them(make: MakeSource, spelling: str) -> None:
    session = Session(make(spelling))
    runtime, stream = session.runtime, session.stream
    assert isinstance(runtime, Fused)
    assert runtime.facts["settings"]["image"] == "read where it is"
    single = [session.run({"image": image(seed)})["logits"] for seed in range(8)]
    arrays = [device.to_device(image(seed), "float16", "cuda:0", stream) for seed in range(8)]
    bindings = [runtime.prepare({"image": array}) for array in arrays]
    draw = np.random.default_rng(5)
    for seed in draw.integers(-1, 8, 500):
        binding = runtime.home if seed < 0 else bindings[seed]
        runtime.enqueue(binding)
        # Home has what the last of the single calls put there.
        np.testing.assert_array_equal(device.to_numpy(runtime.output(binding)["logits"], stream), single[seed])
    if runtime.graph is not None:
        kernels.demand_cooperative(runtime.graph.kept, runtime.engine.scheduled.kernels)  # type: ignore[union-attr]
    session.close()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_launch_under_way_keeps_its_address_and_setting_another_waits_for_nothing(make: MakeSource, spelling: str) -> None:
    session = Session(make(spelling))
    runtime, stream = session.runtime, session.stream
    assert stream is not None
    single = [session.run({"image": image(seed)})["logits"] for seed in range(8)]
    bindings = [runtime.prepare({"image": device.to_device(image(seed), "float16", "cuda:0", stream)}) for seed in range(8)]
    answers = [device.empty((1, handmade.CLASSES), "float32", "cuda:0") for _ in bindings]
    gate = device.Gate(stream, watchdog_s=3.0)
    gate.hold()
    for binding, answer in zip(bindings, answers, strict=True):
        runtime.enqueue(binding)
        device.copy(answer, runtime.output(binding)["logits"].ptr, stream)
    gate.open()
    device.synchronize(stream)
    assert not gate.blocked
    for answer, expected in zip(answers, single, strict=True):
        np.testing.assert_array_equal(device.to_numpy(answer, stream), expected)
    session.close()


@pytest.mark.parametrize("spelling", ["fused:fp16+chain", "fused:fp16+grid"])
def test_two_contexts_on_two_threads_answer_their_own_images_bit_for_bit(make: MakeSource, spelling: str) -> None:
    source = make(spelling)
    begin, wrong = threading.Barrier(2), dict[int, Any]()

    def work(seed: int) -> None:
        try:
            session = Session(source)
            first = session.run({"image": image(seed)})["logits"]
            np.testing.assert_allclose(first, handmade.answer(image(seed)), rtol=1e-2, atol=1e-3)
            begin.wait()
            wrong[seed] = sum(not np.array_equal(session.run({"image": image(seed)})["logits"], first) for _ in range(LAUNCHES))
            session.close()
        except Exception as error:
            wrong[seed] = error
            begin.abort()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == {0: 0, 1: 0}


def test_a_grid_that_does_not_fit_is_refused_by_the_drivers_own_count(make: MakeSource) -> None:
    def change(plan: dict[str, Any]) -> None:
        plan["schedules"]["grid"]["kernels"][0]["grid"] = 10**6

    with pytest.raises(RuntimeUnavailable, match="needs 1000000 CTAs resident at once"):
        Session(make("fused:fp16+grid", change))


def test_a_capture_without_the_cooperative_attribute_is_refused(make: MakeSource) -> None:
    session = Session(make("fused:fp16+grid"))
    runtime = session.runtime
    assert isinstance(runtime, Fused)
    assert runtime.engine is not None
    assert session.stream is not None
    wanted = runtime.engine.scheduled.kernels
    plain = [dataclasses.replace(kernel, cooperative=False) for kernel in wanted]
    launches = [kernels.Launch(runtime.engine.module, kernel, [0] * 5, session.stream, "") for kernel in plain]

    def launch() -> None:
        for call in launches:
            call()

    with pytest.raises(AccelError, match="1 of them cooperative; the graph has 1 and 0"):
        device.capture("cuda:0", session.stream, launch, lambda nodes: kernels.demand_cooperative(nodes, wanted))
    session.close()


def test_without_machine_code_for_this_gpu_the_source_is_compiled_and_kept(
    make: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path))

    def change(plan: dict[str, Any]) -> None:
        plan["schedules"]["chain"]["cubins"] = {}

    source = make("fused:fp16+chain", change)
    origins = []
    for _ in range(2):
        runtime = runtimes.create(source)
        stream = device.open_stream("cuda:0")
        runtime.open(stream)
        origins.append(runtime.facts["settings"]["machine_code"])
        runtime.close()
        device.close_stream(stream)
    assert origins == ["compiled here", "cache"]
