"""TensorRT's runtime on a fake library and a driver of host memory: what is called, in which order, and every refusal."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import Code, FakeDriver, installed
from fake_trt_runtime import FakeContext, FakeTensorRT, write_plan

from accel import device, runtimes, trt
from accel.errors import (
    AccelError,
    CorruptArtifact,
    DeviceUnavailable,
    IncompatibleArtifact,
    MissingExtra,
    RuntimeUnavailable,
    UsageError,
)
from accel.runtimes import gpu_call, tensorrt_engines
from accel.runtimes.session import Session
from accel.runtimes.tensorrt import TensorRT
from accel.trt import library
from accel.types import DeviceArray, EngineEntry, EngineSource, TensorSpec, Variant

IN, OUT = TensorSpec("x", ("batch", 4), layout="NC"), TensorSpec("y", ("batch", 4))
ONE = {"inputs": {"x": ("float16", (1, 4))}, "outputs": {"y": ("float16", (1, 4), 2.0)}}


@dataclasses.dataclass
class World:
    """The fakes, and sources of plans in a bundle of this test's own."""

    driver: FakeDriver
    trt: FakeTensorRT
    bundle: Path

    def source(self, spelling: str = "tensorrt:fp16", plan: dict[str, Any] = ONE, batch: int = 1, **target: Any) -> EngineSource:
        variant = Variant.parse(spelling)
        name = f"{variant.runtime}-{variant.precision}"
        file = write_plan(self.bundle / name / "model.plan", **plan)
        specs = [
            tuple(TensorSpec(key, tuple(size if size > 0 else "batch" for size in value[1]), value[0]) for key, value in plan[kind].items())
            for kind in ("inputs", "outputs")
        ]
        entry = EngineEntry(
            name, variant.runtime, variant.precision, {f"{name}/model.plan": ""}, *specs, {"tactic_sources": "JIT"}, 0.0, target
        )
        return EngineSource(variant, "cuda:0", (IN,), (OUT,), batch, entry=entry, file=file)

    def opened(self, source: EngineSource) -> TensorRT:
        runtime = runtimes.create(source)
        assert isinstance(runtime, TensorRT)
        runtime.open(device.open_stream(source.device))
        return runtime

    def calls_of(self, work: Callable[[], Any]) -> list[str]:
        self.driver.calls.clear()
        work()
        return list(self.driver.calls)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    library._load.cache_clear()
    with installed() as driver:
        fake = FakeTensorRT(driver)
        monkeypatch.setitem(sys.modules, "tensorrt", fake)
        yield World(driver, fake, tmp_path / "net.accel")
    library._load.cache_clear()
    assert tensorrt_engines.count() == 0


def resident(values: Any, dtype: str = "float16") -> DeviceArray:
    return device.to_device(np.array(values), dtype, "cuda:0", None)


def test_the_plan_is_in_memory_and_nothing_is_captured_when_loading_ends(world: World) -> None:
    told: list[tuple[int, list[str]]] = []
    source = world.source()
    told_by = dataclasses.replace(source, loaded=lambda: told.append((tensorrt_engines.count(), list(world.driver.calls))))
    runtime = world.opened(told_by)
    ((engines, calls),) = told
    assert engines == 1
    assert "cuGraphInstantiate" not in calls
    assert "cuGraphInstantiate" in world.driver.calls
    runtime.close()


def answer(runtime: TensorRT, name: str = "y") -> list[Any]:
    return device.to_numpy(runtime.output(runtime.home)[name], None).tolist()


def test_names_dtypes_and_shapes_come_from_the_engine(world: World) -> None:
    plan = {
        "inputs": {"a": ("float16", (1, 4)), "b": ("int32", (1, 4))},
        "outputs": {"sum": ("float32", (1, 4), 1.0), "triple": ("float16", (1, 4), 3.0)},
    }
    runtime = world.opened(world.source(plan=plan))
    assert [(s.name, s.dtype, s.shape) for s in runtime.inputs] == [("a", "float16", (1, 4)), ("b", "int32", (1, 4))]
    assert [(s.name, s.dtype, s.shape) for s in runtime.outputs] == [("sum", "float32", (1, 4)), ("triple", "float16", (1, 4))]
    runtime.enqueue(runtime.prepare({"a": resident([[1, 2, 3, 4]]), "b": resident([[10, 20, 30, 40]], "int32")}))
    assert (answer(runtime, "sum"), answer(runtime, "triple")) == ([[11, 22, 33, 44]], [[33, 66, 99, 132]])
    runtime.close()


def test_layouts_are_the_bundles(world: World) -> None:
    runtime = world.opened(world.source())
    assert (runtime.inputs[0].layout, runtime.outputs[0].layout) == ("NC", "")
    runtime.close()


def test_one_call_runs_before_the_capture_and_is_waited_for(world: World) -> None:
    source = world.source()
    stream = device.open_stream("cuda:0")
    runtime = TensorRT(source)
    calls = world.calls_of(lambda: runtime.open(stream))
    first = calls.index("execute_async_v3")
    assert calls[first:] == [
        *("execute_async_v3", "cuStreamSynchronize"),
        *("cuStreamBeginCapture", "execute_async_v3", "cuStreamEndCapture"),
        *("cuGraphGetNodes", "cuGraphInstantiate", "cuGraphDestroy", "cuGraphUpload"),
    ]
    runtime.close()


def test_a_call_with_the_graph_is_a_copy_for_each_input_that_is_not_at_home_and_a_launch(world: World) -> None:
    runtime = world.opened(world.source())
    bindings = [runtime.prepare({"x": resident([[value] * 4])}) for value in (1, 5, 7)]
    for binding, wanted in [*zip(bindings, (2, 10, 14), strict=True)] * 2:
        assert world.calls_of(lambda binding=binding: runtime.enqueue(binding)) == ["cuMemcpyDtoDAsync", "cuGraphLaunch"]
        assert answer(runtime) == [[wanted] * 4]
    assert world.calls_of(lambda: runtime.enqueue(runtime.home)) == ["cuGraphLaunch"]
    assert world.calls_of(lambda: runtime.enqueue(runtime.prepare(runtime.home.inputs))) == ["cuGraphLaunch"]
    runtime.close()


def test_a_call_without_the_graph_sets_every_address_and_enqueues(world: World) -> None:
    runtime = world.opened(world.source("tensorrt:fp16-graph"))
    for value in (1, 5):
        binding = runtime.prepare({"x": resident([[value] * 4])})
        assert world.calls_of(lambda binding=binding: runtime.enqueue(binding)) == ["set_tensor_address", "execute_async_v3"]
        assert answer(runtime) == [[2 * value] * 4]
    # The home binding sets its own address again: the context remembers the last one.
    runtime.enqueue(runtime.home)
    assert answer(runtime) == [[2] * 4]
    assert "graph_nodes" not in runtime.facts
    runtime.close()
    assert not [call for call in world.driver.calls if "Graph" in call or "Capture" in call]


def test_a_dynamic_batch_takes_the_sources(world: World) -> None:
    plan = {"inputs": {"x": ("float16", (-1, 4))}, "outputs": {"y": ("float16", (-1, 4), 2.0)}, "profile": [2, 8]}
    runtime = world.opened(world.source(plan=plan, batch=3))
    assert (runtime.inputs[0].shape, runtime.outputs[0].shape) == ((3, 4), (3, 4))
    runtime.close()
    with pytest.raises(UsageError, match=r"'x' was built for \(2, 4\) to \(8, 4\); a batch of 9 makes it \(9, 4\)") as caught:
        world.opened(world.source(plan=plan, batch=9))
    assert "--batch N" in str(caught.value)


def test_another_batch_of_one_plan_is_another_capture_on_the_same_engine(world: World) -> None:
    plan = {"inputs": {"x": ("float16", (-1, 4))}, "outputs": {"y": ("float16", (-1, 4), 2.0)}, "profile": [1, 8]}
    small, large = (world.opened(world.source(plan=plan, batch=batch)) for batch in (1, 3))
    assert (world.trt.made, world.driver.calls.count("cuGraphInstantiate")) == (1, 2)
    small.enqueue(small.prepare({"x": resident([[1] * 4])}))
    large.enqueue(large.prepare({"x": resident([[2] * 4, [3] * 4, [4] * 4])}))
    assert (answer(small), answer(large)) == ([[2] * 4], [[4] * 4, [6] * 4, [8] * 4])
    for runtime in (small, large):
        runtime.close()


def test_the_precision_is_claimed_only_with_a_proof_and_for_the_tensors_that_were_proven(world: World) -> None:
    plain = world.source()
    assert plain.entry is not None
    proven = dataclasses.replace(plain, entry=dataclasses.replace(plain.entry, precision_proof={"share": 1.0}))
    assert proven.entry is not None
    other = dataclasses.replace(proven, entry=dataclasses.replace(proven.entry, outputs=(TensorSpec("y", (1, 4), "float32"),)))
    for source, wanted in ((plain, None), (proven, "fp16"), (other, None)):
        runtime = world.opened(source)
        assert runtime.facts.get("precision") == wanted
        runtime.close()


@pytest.mark.parametrize(("share", "said"), [(0.371, "37.1 % of the multiply-accumulates are"), (None, "nothing that multiplies is")])
def test_a_plan_that_was_kept_mixed_claims_no_precision_and_is_measured_as_a_fallback(world: World, share: float | None, said: str) -> None:
    plain = world.source()
    assert plain.entry is not None
    entry = dataclasses.replace(plain.entry, precision_proof={"share": share, "proven": False})
    runtime = world.opened(dataclasses.replace(plain, entry=entry))
    assert "precision" not in runtime.facts
    assert runtime.facts["fallback"] == f"{said} proven to be in fp16: the plan was exported with --allow-mixed"
    runtime.close()


def test_facts_say_what_ran(world: World) -> None:
    runtime = world.opened(world.source())
    assert runtime.facts == {
        "runtime_version": "8.6.0",
        "provider": "cuda:0",
        "options": [],
        "graph_nodes": 1,
        "tactic_sources": "JIT",
    }
    runtime.close()


@pytest.mark.parametrize(("flags", "on"), [("FP16", False), ("FP16,TF32", True), ("none", False)])
def test_tf32_is_on_where_the_builder_was_left_to_use_it(world: World, flags: str, on: bool) -> None:
    source = world.source()
    assert source.entry is not None
    built = dataclasses.replace(source.entry, toolchain={"flags": flags})
    runtime = world.opened(dataclasses.replace(source, entry=built))
    assert (runtime.facts["tf32_matmul"], runtime.facts["tf32_conv"]) == (on, on)
    runtime.close()


def test_runtimes_of_one_plan_share_its_engine_and_the_last_frees_it(world: World) -> None:
    source = world.source()
    first, second = world.opened(source), world.opened(dataclasses.replace(source, variant=Variant.parse("trt:fp16-graph")))
    assert (world.trt.made, tensorrt_engines.count()) == (1, 1)
    assert world.driver.calls.count("create_execution_context") == 2
    one, two = first.prepare({"x": resident([[1] * 4])}), second.prepare({"x": resident([[3] * 4])})
    first.enqueue(one)
    second.enqueue(two)
    assert (answer(first), answer(second)) == ([[2] * 4], [[6] * 4])
    first.close()
    second.enqueue(two)
    assert answer(second) == [[6] * 4]
    second.close()
    assert tensorrt_engines.count() == 0
    world.opened(source).close()
    assert world.trt.made == 2


def test_what_is_closed_says_so_and_leaves_nothing(world: World) -> None:
    runtime = world.opened(world.source())
    binding = runtime.prepare({"x": resident([[1] * 4])})
    with pytest.raises(UsageError, match="open already"):
        runtime.open(77)
    runtime.close()
    runtime.close()
    assert not world.driver.graphs
    for work in (lambda: runtime.home, lambda: runtime.enqueue(binding), lambda: runtime.prepare(binding.inputs)):
        with pytest.raises(UsageError, match="not open"):
            work()


@pytest.mark.parametrize(
    ("doctored", "said"),
    [
        ({"version": (10, 13, 0, 35)}, r"was built by TensorRT 10\.13\.0\.35; this environment has TensorRT 8\.6\.0"),
        ({"version": (8, 6, 1, 0)}, r"was built by TensorRT 8\.6\.1\.0"),
        ({"magic": b"vtrt", "version": (1, 7, 1, 116)}, r"was built by TensorRT-RTX 1\.7\.1\.116"),
    ],
)
def test_a_header_of_another_version_is_refused_before_tensorrt_sees_the_plan(world: World, doctored: dict[str, Any], said: str) -> None:
    with pytest.raises(IncompatibleArtifact, match=said) as caught:
        world.opened(world.source(plan={**ONE, **doctored}))
    assert f"accel export {world.bundle} --to trt --fp16" in str(caught.value)
    assert "deserialize_cuda_engine" not in world.driver.calls


def test_a_version_compatible_plan_is_taken_by_a_newer_library_and_may_bring_its_runtime(world: World) -> None:
    old = {**ONE, "version": (8, 6, 0, 0)}
    world.trt.__version__ = "10.13.0.35"
    library._load.cache_clear()
    world.opened(world.source(plan=old, version_compatible=True)).close()
    assert world.trt.host_code == [True]
    world.trt.__version__ = "7.2.0"
    library._load.cache_clear()
    with pytest.raises(IncompatibleArtifact, match=r"built by TensorRT 8\.6\.0\.0"):
        world.opened(world.source(plan=old, version_compatible=True))


def test_a_plain_plan_may_bring_no_code(world: World) -> None:
    world.opened(world.source()).close()
    assert world.trt.host_code == [False]


def test_an_unknown_header_is_left_to_tensorrt(world: World) -> None:
    source = world.source(plan={**ONE, "magic": b"????"})
    world.opened(source).close()
    world.trt.fail.add("deserialize_cuda_engine")
    with pytest.raises(CorruptArtifact, match="the fake says no"):
        world.opened(source)


def test_a_truncated_plan_is_corrupt(world: World) -> None:
    source = world.source()
    assert source.file is not None
    source.file.write_bytes(b"ftrt")
    with pytest.raises(CorruptArtifact, match="4 bytes"):
        world.opened(source)


@pytest.mark.parametrize(
    ("method", "kind", "said"),
    [
        ("deserialize_cuda_engine", IncompatibleArtifact, r"TensorRT 8\.6\.0 cannot use .*model\.plan on cuda:0"),
        ("create_execution_context", DeviceUnavailable, "cannot make an execution context on cuda:0"),
        ("set_input_shape", AccelError, r"refused the shape \(1, 4\) for the input 'x'"),
        ("infer_shapes", AccelError, "cannot tell the outputs' shapes without x"),
        ("set_tensor_address", AccelError, "refused the address of 'x'"),
        ("execute_async_v3", AccelError, "did not enqueue its work"),
    ],
)
def test_what_tensorrt_refuses_is_an_error_with_its_log(world: World, method: str, kind: type[AccelError], said: str) -> None:
    world.trt.fail.add(method)
    with pytest.raises(kind, match=rf"{said}.*\[{method}\] the fake says no"):
        world.opened(world.source())


def test_shapes_that_cannot_be_inferred_are_an_error_with_tensorrts_own_words(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def infer_shapes(context: FakeContext) -> list[str]:
        raise RuntimeError("insufficient size for output array")

    monkeypatch.setattr(FakeContext, "infer_shapes", infer_shapes)
    with pytest.raises(AccelError, match=r"cannot tell the outputs' shapes: insufficient size .*its log says nothing"):
        world.opened(world.source())


@pytest.mark.parametrize("method", ["set_tensor_address", "execute_async_v3"])
def test_a_refused_call_is_an_error_with_its_log(world: World, method: str) -> None:
    runtime = world.opened(world.source("tensorrt:fp16-graph"))
    world.trt.fail.add(method)
    with pytest.raises(AccelError, match=rf"\[{method}\] the fake says no"):
        runtime.enqueue(runtime.home)
    runtime.close()


@pytest.mark.parametrize("call", ["cuMemcpyDtoDAsync", "cuGraphLaunch"])
def test_a_failed_replay_names_the_cuda_error(world: World, call: str) -> None:
    runtime = world.opened(world.source())
    binding = runtime.prepare({"x": resident([[1] * 4])})
    world.driver.fail[call] = Code.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(AccelError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        runtime.enqueue(binding)
    world.driver.fail.clear()
    runtime.close()


def test_what_cannot_be_captured_names_the_variant_without_a_graph(world: World) -> None:
    world.driver.fail["cuStreamEndCapture"] = Code.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(RuntimeUnavailable, match="cannot be captured in a CUDA graph") as caught:
        world.opened(world.source())
    assert "tensorrt:fp16-graph" in str(caught.value)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({**ONE, "host": ["x"]}, "'x' is a shape in the host's memory"),
        ({**ONE, "packed": ["y"]}, "'y' has the format"),
        ({**ONE, "outputs": {"y": ("float16", (1, -1), 2.0)}}, r"'y' has the shape \(1, -1\), which depends on the input's values"),
        ({**ONE, "inputs": {"x": ("fp8", (1, 4))}}, "a tensor of type FP8"),
    ],
)
def test_tensors_that_no_caller_could_fill_or_read_are_refused(world: World, plan: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        world.opened(dataclasses.replace(world.source(plan=ONE), file=write_plan(world.bundle / "other" / "model.plan", **plan)))


def test_wrong_inputs_are_refused_when_they_are_prepared(world: World) -> None:
    runtime = world.opened(world.source())
    for inputs, said in (
        ({"z": resident([[1] * 4])}, "received z"),
        ({"x": resident([[1] * 5])}, r"expected shape \(1, 4\), received \(1, 5\)"),
        ({"x": resident([[1] * 4], "float32")}, "expected dtype float16, received float32"),
    ):
        with pytest.raises(UsageError, match=said):
            runtime.prepare(inputs)
    runtime.close()


@pytest.mark.parametrize("spelling", ["tensorrt:fp16", "tensorrt-rtx:fp32"])
@pytest.mark.parametrize("parity_only", [False, True])
def test_a_cpu_never_runs_a_plan(spelling: str, parity_only: bool) -> None:
    source = EngineSource(Variant.parse(spelling), "cpu", (IN,), (OUT,), parity_only=parity_only)
    with pytest.raises(RuntimeUnavailable, match="runs on NVIDIA GPUs only") as caught:
        runtimes.create(source)
    assert caught.value.exit_code == 4


def test_without_tensorrt_the_extra_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in trt.FLAVORS["tensorrt"].modules:
        monkeypatch.setitem(sys.modules, name, None)  # how Python spells a module that is known to be absent
    with pytest.raises(MissingExtra, match=r"accel-engines\[trt\]"):
        world.opened(world.source())


def test_the_table_says_what_the_library_room_says() -> None:
    for name, flavor in trt.FLAVORS.items():
        row = runtimes.info(name)
        assert (row.distributions, row.extra, row.format) == (flavor.distributions, flavor.extra, name)


class GPUArray:
    """PyCUDA's array as far as anybody else sees it: `gpudata`, `dtype`, `shape`, and the interface without a stream."""

    def __init__(self, array: np.ndarray, strides: tuple[int, ...] | None = None, stream: int | None = None) -> None:
        self.stream = stream
        self.gpudata, self.dtype, self.shape, self._array = array.ctypes.data, array.dtype, array.shape, array
        self.strides = strides or array.strides

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "strides": self.strides,
            "data": (int(self.gpudata), False),
            "typestr": self.dtype.str,
            "stream": self.stream,
            "version": 3,
        }


class Capsule:
    """A producer of DLPack capsules that says that its memory is a GPU's, as the fake driver does of the host's."""

    def __init__(self, array: np.ndarray, kind: tuple[int, int] = (2, 0)) -> None:
        self.array, self.kind, self.dtype, self.shape, self.streams = array, kind, array.dtype, array.shape, []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind

    def __dlpack__(self, *, stream: Any = None, **asked: Any) -> Any:
        self.streams.append(stream)
        return self.array.__dlpack__()


@pytest.mark.parametrize("kind", [GPUArray, Capsule])
def test_arrays_of_other_libraries_are_taken_where_they_are(world: World, kind: Callable[[np.ndarray], Any]) -> None:
    if kind is Capsule:
        pytest.importorskip("cuda.core")
    session = Session(world.source())
    array = np.arange(8, dtype=np.float16).reshape(2, 4)
    given = kind(array)
    calls = world.calls_of(lambda: gpu_call.run_arrays(session, {"x": given}, 2))
    assert not [call for call in calls if "HtoD" in call or "DtoH" in call]
    result = gpu_call.run_arrays(session, {"x": given}, 2)["y"]
    assert device.to_numpy(result, None).tolist() == (2 * array).tolist()
    session.close()


def test_work_that_goes_on_in_another_library_is_waited_for(world: World) -> None:
    session = Session(world.source())
    array = np.ones((1, 4), np.float16)
    ours = ["cuMemcpyDtoDAsync", "cuGraphLaunch", "cuMemcpyDtoDAsync", "cuStreamSynchronize"]
    for stream, first in ((None, []), (5, ["cuStreamSynchronize"])):
        given = GPUArray(array, stream=stream)
        calls = world.calls_of(lambda given=given: gpu_call.run_arrays(session, {"x": given}, 1))
        assert [call for call in calls if call in ours] == [*first, *ours]
    pytest.importorskip("cuda.core")
    capsule = Capsule(array)
    gpu_call.run_arrays(session, {"x": capsule}, 1)
    assert capsule.streams == [session.stream]  # the producer makes our stream wait for its own, as DLPack says
    session.close()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (GPUArray(np.zeros((1, 4), np.float32)), "input 'x': expected float16, received float32"),
        (GPUArray(np.zeros((2, 4), np.float16).T, (2, 8)), r"input 'x': expected a C-contiguous array.*strides \(2, 8\)"),
        (GPUArray(np.zeros((1, 4), np.complex64)), "complex64"),
        (Capsule(np.zeros((1, 4), np.float16), (2, 1)), "is on cuda:1, the engine on cuda:0"),
    ],
)
def test_arrays_that_would_need_a_copy_are_refused(world: World, given: Any, said: str) -> None:
    session = Session(world.source())
    with pytest.raises(UsageError, match=said):
        gpu_call.run_arrays(session, {"x": given}, 1)
    session.close()
