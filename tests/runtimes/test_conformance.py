"""Every runtime of the table keeps the protocol: on the CPU here, on a GPU behind the gate."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tiny_net import SHAPE, expected, some_images

from accel import device, runtimes
from accel.errors import UsageError
from accel.types import DeviceArray, EngineSource, Runtime

MakeSource = Callable[..., EngineSource]
LIMIT = {"fp32": 1e-5, "tf32": 5e-3, "fp16": 2e-2, "fp16-autocast": 2e-2, "bf16": 5e-2}
"""Largest |difference| from the FP32 logits, which are around 1 in size."""

SLOW = ("aoti",)
"""Runtimes whose files take longer than ten seconds to make."""
ON_CPU = ("eager:fp32", "eager:fp32+fold", "eager:bf16+channels_last", "compile:fp32", "torchscript:fp32", "onnxruntime:fp32", "aoti:fp32")
PARITY_ON_CPU = ("eager:fp16", "torchscript:fp16", "onnxruntime:fp16")
ON_GPU = (
    *("eager:fp32", "eager:tf32", "eager:fp16", "eager:fp16-autocast", "eager:bf16", "eager:fp16+channels_last+fold"),
    *("compile:fp32", "compile:tf32", "compile:fp16", "compile:fp16+reduce-overhead", "compile:fp32+max-autotune"),
    *("torchscript:fp32", "torchscript:tf32", "torchscript:fp16"),
    *("onnxruntime:fp32", "onnxruntime:tf32", "onnxruntime:fp16"),
    *("eager:fp32+graph", "eager:fp16+fold+graph", "eager:fp16+channels_last+graph", "eager:fp16-autocast+graph"),
    *("compile:fp32+freezing", "compile:fp16+freezing+reduce-overhead", "compile:fp16+freezing+max-autotune"),
    *("onnxruntime:fp32+graph", "onnxruntime:fp16+graph", "onnxruntime:fp16+nhwc", "onnxruntime:fp16+graph+nhwc"),
    *("aoti:fp32", "aoti:fp16", "aoti:fp32+graph", "aoti:fp16+graph"),
)


def case(spelling: str, where: str, mark: tuple[Any, ...] = ()) -> Any:
    slow = (pytest.mark.slow,) if spelling.partition(":")[0] in SLOW else ()
    return pytest.param((spelling, where), id=f"{spelling}-{where.partition(':')[0]}", marks=(*mark, *slow))


PLACES: tuple[tuple[str, tuple[Any, ...]], ...] = (("cpu", ()), ("cuda:0", (pytest.mark.gpu,)))
CASES = [case(v, "cpu") for v in (*ON_CPU, *PARITY_ON_CPU)] + [case(v, "cuda:0", (pytest.mark.gpu,)) for v in ON_GPU]


class Opened:
    """A runtime, its stream and its staging."""

    def __init__(self, source: EngineSource) -> None:
        self.source = source
        self.stream = device.open_stream(source.device)
        told: list[str] = []
        self.runtime: Runtime = runtimes.create(dataclasses.replace(source, loaded=lambda: told.append("loaded")))
        told.append("made")
        self.runtime.open(self.stream)
        told.append("open")
        self.told = told
        self.staging = device.Staging(self.runtime.home, self.stream)

    def infer(self, images: np.ndarray) -> np.ndarray:
        return self.staging.run(self.runtime, {"images": images})["logits"]

    def resident(self, images: np.ndarray) -> DeviceArray:
        return device.to_device(images, self.runtime.inputs[0].dtype, self.source.device, self.stream)

    def close(self) -> None:
        self.runtime.close()
        device.close_stream(self.stream)


def make_case(make_source: MakeSource, spelling: str, where: str) -> EngineSource:
    if where != "cpu":
        available, reason = device.gpu_available()
        if not available:
            pytest.skip(reason)
    return make_source(spelling, device=where, parity_only=spelling in PARITY_ON_CPU and where == "cpu")


@pytest.fixture(scope="module", params=CASES)
def opened(request: pytest.FixtureRequest, make_source: MakeSource) -> Iterator[Opened]:
    pytest.importorskip("torch")
    spelling, where = request.param
    found = Opened(make_case(make_source, spelling, where))
    yield found
    found.close()


def limit_of(opened: Opened) -> float:
    return LIMIT[opened.source.variant.precision]


def test_the_outputs_are_those_of_the_network(opened: Opened) -> None:
    images = some_images()
    np.testing.assert_allclose(opened.infer(images), expected(images), atol=limit_of(opened), rtol=0)


def test_a_second_call_answers_its_own_inputs_and_leaves_the_first_answer_alone(opened: Opened) -> None:
    first, second = some_images(seed=1), some_images(seed=2)
    answer = opened.infer(first)
    kept = answer.copy()
    np.testing.assert_allclose(opened.infer(second), expected(second), atol=limit_of(opened), rtol=0)
    np.testing.assert_array_equal(answer, kept)
    np.testing.assert_allclose(opened.infer(first), kept, atol=limit_of(opened) / 10, rtol=0)


def test_bindings_can_be_rotated(opened: Opened) -> None:
    batches = [some_images(seed=seed) for seed in range(3)]
    bindings = [opened.runtime.prepare({"images": opened.resident(images)}) for images in batches]
    for images, binding in [*zip(batches, bindings, strict=True)] * 2:
        opened.runtime.enqueue(binding)
        device.synchronize(opened.stream)
        logits = device.to_numpy(opened.runtime.output(binding)["logits"], opened.stream)
        np.testing.assert_allclose(logits.astype(np.float32), expected(images), atol=limit_of(opened), rtol=0)


def test_what_others_allocate_later_changes_no_answer(opened: Opened) -> None:
    images = some_images(seed=4)
    opened.infer(images)
    if opened.source.device != "cpu":
        torch = pytest.importorskip("torch")
        # What was given back to torch and to the driver is taken and filled: a graph that still reads it answers wrongly now.
        taken = [torch.full((1 << size,), float("nan"), device=opened.source.device) for size in range(6, 21) for _ in range(4)]
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        arrays = [device.to_device(np.full(1 << size, np.nan), "float32", opened.source.device, None) for size in range(6, 21)]
        assert len(taken) == 4 * len(arrays)
    np.testing.assert_allclose(opened.infer(images), expected(images), atol=limit_of(opened), rtol=0)


def test_specs_name_native_dtypes_and_fixed_shapes(opened: Opened) -> None:
    precision = opened.source.variant.precision
    native = {"fp16": "float16", "bf16": "bfloat16"}.get(precision, "float32")
    (inputs,), (outputs,) = opened.runtime.inputs, opened.runtime.outputs
    assert (inputs.name, inputs.shape, inputs.dtype) == ("images", (1, *SHAPE), native)
    assert (outputs.name, outputs.shape) == ("logits", (1, 5))
    assert outputs.dtype == ("float16" if precision == "fp16-autocast" else native)
    home = opened.runtime.home.inputs["images"]
    assert (home.shape, home.dtype, home.device) == (inputs.shape, native, opened.source.device)


def test_the_end_of_loading_is_told_once_and_inside_open(opened: Opened) -> None:
    assert opened.told == ["made", "loaded", "open"]


def test_facts_say_what_really_runs(opened: Opened) -> None:
    facts = opened.runtime.facts
    assert facts["precision"] == opened.source.variant.precision
    assert facts["runtime_version"] == runtimes.version(opened.source.variant.runtime) or "+" in facts["runtime_version"]
    assert "fallback" not in facts
    assert facts.get("recompiles", 0) == 0
    assert not facts.get("cpu_nodes")


def test_wrong_inputs_are_refused_by_name_and_the_runtime_still_works(opened: Opened) -> None:
    good = opened.resident(some_images())
    other = "float64" if good.dtype != "float64" else "float32"
    wrong: list[tuple[dict[str, DeviceArray], str]] = [
        ({"pictures": good}, "pictures"),
        ({}, "received none"),
        ({"images": opened.resident(some_images(batch=2))}, r"expected shape \(1, 3, 8, 8\), received \(2, 3, 8, 8\)"),
        ({"images": DeviceArray(good.ptr, good.shape, other, good.device, good.owner)}, "received float64"),
        ({"images": DeviceArray(good.ptr, good.shape, good.dtype, "cuda:7", good.owner)}, "received cuda:7"),
    ]
    for inputs, message in wrong:
        with pytest.raises(UsageError, match=message):
            opened.runtime.prepare(inputs)
    opened.runtime.prepare({"images": good})


def test_a_non_contiguous_array_is_refused_before_it_gets_near_a_runtime() -> None:
    with pytest.raises(UsageError, match="not C-contiguous"):
        DeviceArray.of_numpy(some_images().transpose(0, 2, 3, 1))


def test_staging_takes_strided_arrays(opened: Opened) -> None:
    images = some_images()
    strided = np.asfortranarray(images)
    np.testing.assert_array_equal(opened.infer(strided), opened.infer(images))


def test_enqueue_never_waits_for_the_gpu(opened: Opened) -> None:
    if opened.stream is None:
        pytest.skip("a CPU call is blocking by nature")
    # A watchdog of seconds: a slow host must not look like a blocking call, and a blocking one never ends by itself.
    gate = device.Gate(opened.stream, watchdog_s=3.0)
    for _ in range(5):
        gate.hold()
        opened.runtime.enqueue(opened.runtime.home)
        gate.open()
        device.synchronize(opened.stream)
        assert not gate.blocked


@pytest.mark.parametrize("case", CASES)
def test_closing_twice_is_closing_once_and_a_closed_runtime_says_so(make_source: MakeSource, case: tuple[str, str]) -> None:
    spelling, where = case
    if spelling.startswith("compile"):
        pytest.skip("the same close as eager's, after minutes of compiling")
    found = Opened(make_case(make_source, spelling, where))
    found.infer(some_images())
    found.close()
    found.runtime.close()
    with pytest.raises(UsageError, match="not open"):
        _ = found.runtime.home


BY_THREADS = [case(v, where, mark) for v in ("eager:fp32", "torchscript:fp32", "onnxruntime:fp32", "aoti:fp32") for where, mark in PLACES]


@pytest.mark.parametrize("case", [*BY_THREADS, case("onnxruntime:fp32+graph", "cuda:0", (pytest.mark.gpu,))])
def test_two_threads_with_their_own_runtimes_do_not_mix_results(make_source: MakeSource, case: tuple[str, str]) -> None:
    spelling, where = case
    source = make_case(make_source, spelling, where)
    failures: list[Any] = []
    barrier = threading.Barrier(2, timeout=60)

    def work(seed: int) -> None:
        try:
            images = some_images(seed=seed)
            wanted = expected(images)
            found = Opened(source)
            barrier.wait()
            for _ in range(20):
                np.testing.assert_allclose(found.infer(images), wanted, atol=1e-5, rtol=0)
            found.close()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.gpu
@pytest.mark.parametrize(
    "spelling", ["eager:fp16+graph", "onnxruntime:fp16+graph", pytest.param("aoti:fp16+graph", marks=pytest.mark.slow)]
)
def test_a_graph_reads_the_inputs_of_each_binding_and_home_costs_no_copy(make_source: MakeSource, spelling: str) -> None:
    opened = Opened(make_case(make_source, spelling, "cuda:0"))
    try:
        assert opened.runtime.home.native == ()
        images = [some_images(seed=seed) for seed in (8, 9)]
        bindings = [opened.runtime.prepare({"images": opened.resident(array)}) for array in images]
        assert all(len(binding.native) == 1 for binding in bindings)
        for array, binding in [*zip(images, bindings, strict=True)] * 3:
            opened.runtime.enqueue(binding)
            device.synchronize(opened.stream)
            logits = device.to_numpy(opened.runtime.output(binding)["logits"], opened.stream)
            np.testing.assert_allclose(logits.astype(np.float32), expected(array), atol=2e-2, rtol=0)
        # The last binding's inputs are in home now, and a call of home itself reads them there.
        opened.runtime.enqueue(opened.runtime.home)
        device.synchronize(opened.stream)
        logits = device.to_numpy(opened.runtime.output(opened.runtime.home)["logits"], opened.stream)
        np.testing.assert_allclose(logits.astype(np.float32), expected(images[-1]), atol=2e-2, rtol=0)
        if not spelling.startswith("onnxruntime"):
            assert opened.runtime.facts["graph_nodes"] > 0
    finally:
        opened.close()


def test_making_a_runtime_imports_nothing_heavy() -> None:
    script = """
import sys
from pathlib import Path
from accel import runtimes
from accel.types import EngineSource, TensorSpec, Variant
spec = (TensorSpec("x", ("batch", 3)),)
for name in runtimes.RUNTIMES:
    where = "cuda:0" if runtimes.info(name).gpu_only else "cpu"
    runtime = runtimes.create(EngineSource(Variant(name, runtimes.info(name).precisions[0]), where, spec, spec, file=Path("absent")))
    runtime.close()
heavy = [name for name in ("torch", "onnx", "onnxruntime", "cuda", "tensorrt", "tensorrt_rtx") if name in sys.modules]
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True)
