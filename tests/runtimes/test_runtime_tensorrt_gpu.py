"""The TensorRT that is installed, on a GPU: right answers with and without the graph, from two threads, and every real refusal.

Needs neither torch nor onnx: `python3.10 -m pytest tests/runtimes/test_runtime_tensorrt_gpu.py` runs where only TensorRT 8.6 does.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plans
import pytest

from accel import device, runtimes, trt
from accel.errors import AccelError, CorruptArtifact, IncompatibleArtifact, UsageError
from accel.runtimes import gpu_call, tensorrt_engines
from accel.runtimes.given import on_gpu as given_on_gpu
from accel.runtimes.session import Session
from accel.types import EngineSource, Runtime

pytestmark = pytest.mark.gpu
SPELLINGS = ("tensorrt:fp16", "tensorrt:fp16-graph", "tensorrt:fp32", "tensorrt:fp32-graph")


@pytest.fixture(scope="module")
def library() -> trt.Library:
    return plans.installed()


@pytest.fixture(scope="module", params=SPELLINGS)
def source(request: pytest.FixtureRequest, library: trt.Library, tmp_path_factory: pytest.TempPathFactory) -> EngineSource:
    return plans.source(library, tmp_path_factory.mktemp("net.accel"), request.param)


class Opened:
    """A runtime with its stream."""

    def __init__(self, source: EngineSource) -> None:
        self.stream = device.open_stream("cuda:0")
        self.runtime: Runtime = runtimes.create(source)
        self.runtime.open(self.stream)

    def binding(self, **arrays: np.ndarray) -> Any:
        dtypes = {spec.name: spec.dtype for spec in self.runtime.inputs}
        return self.runtime.prepare({n: device.to_device(a, dtypes[n], "cuda:0", self.stream) for n, a in arrays.items()})

    def outputs(self, binding: Any) -> dict[str, np.ndarray]:
        self.runtime.enqueue(binding)
        device.synchronize(self.stream)
        return {name: device.to_numpy(array, self.stream) for name, array in self.runtime.output(binding).items()}

    def close(self) -> None:
        self.runtime.close()
        device.close_stream(self.stream)


@pytest.fixture
def opened(source: EngineSource) -> Iterator[Opened]:
    found = Opened(source)
    yield found
    found.close()
    assert tensorrt_engines.count() == 0


def whole(seed: int, batch: int = 1) -> np.ndarray:
    """Small whole numbers, whose sums are exact in FP16."""
    return np.random.default_rng(seed).integers(-20, 20, (batch, *plans.SHAPE)).astype(np.float32)


def test_two_inputs_two_outputs_rotated_and_right(opened: Opened) -> None:
    pairs = [(whole(seed), whole(seed + 50)) for seed in range(4)]
    bindings = [opened.binding(a=a, b=b) for a, b in pairs]
    for (a, b), binding in [*zip(pairs, bindings, strict=True)] * 3:
        found = opened.outputs(binding)
        np.testing.assert_array_equal(found["sum"], a + b)
        np.testing.assert_array_equal(found["twice"], 2 * (a + b))


def test_facts_tell_the_version_the_graph_and_the_proven_precision(opened: Opened, source: EngineSource, library: trt.Library) -> None:
    facts = opened.runtime.facts
    assert facts["runtime_version"] == ".".join(map(str, library.version))
    assert facts["precision"] == source.variant.precision
    assert ("graph_nodes" in facts) == ("-graph" not in source.variant.options)
    assert facts.get("graph_nodes", 1) >= 1


def test_the_home_binding_is_answered_without_a_copy(opened: Opened) -> None:
    staging = device.Staging(opened.runtime.home, opened.stream)
    a, b = whole(1), whole(2)
    np.testing.assert_array_equal(staging.run(opened.runtime, {"a": a, "b": b})["twice"], 2 * (a + b))


def test_enqueue_never_waits_for_the_gpu(opened: Opened) -> None:
    gate = device.Gate(opened.stream, watchdog_s=3.0)
    binding = opened.binding(a=whole(1), b=whole(2))
    for _ in range(5):
        gate.hold()
        opened.runtime.enqueue(binding)
        gate.open()
        device.synchronize(opened.stream)
        assert not gate.blocked


def test_two_threads_share_the_engine_and_never_mix_results(source: EngineSource) -> None:
    failures: list[BaseException] = []
    barrier = threading.Barrier(2, timeout=120)

    def work(seed: int) -> None:
        try:
            found = Opened(source)
            a, b = whole(seed), whole(seed + 9)
            binding = found.binding(a=a, b=b)
            barrier.wait()
            assert tensorrt_engines.count() == 1
            for _ in range(200):
                np.testing.assert_array_equal(found.outputs(binding)["twice"], 2 * (a + b))
            barrier.wait()
            found.close()
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert tensorrt_engines.count() == 0


def test_a_dynamic_batch_inside_the_profile_is_run_and_one_outside_names_it(library: trt.Library, tmp_path: Path) -> None:
    for spelling in ("tensorrt:fp16", "tensorrt:fp16-graph"):
        found = Opened(plans.source(library, tmp_path / spelling, spelling, batch=5, dynamic=True))
        a, b = whole(1, 5), whole(2, 5)
        np.testing.assert_array_equal(found.outputs(found.binding(a=a, b=b))["sum"], a + b)
        found.close()
    with pytest.raises(UsageError, match=r"was built for \(1, 3, 8, 8\) to \(8, 3, 8, 8\); a batch of 9"):
        Opened(plans.source(library, tmp_path / "nine", batch=9, dynamic=True))


def test_arrays_on_the_gpu_are_taken_where_they_are(source: EngineSource) -> None:
    session = Session(source)
    a, b = whole(1, 3), whole(2, 3)
    dtype = session.runtime.inputs[0].dtype
    given = {name: device.to_device(array, dtype, "cuda:0", None) for name, array in (("a", a), ("b", b))}
    found = gpu_call.run_arrays(session, given, 3)
    np.testing.assert_array_equal(device.to_numpy(found["sum"], None), a + b)
    session.close()


def test_torch_tensors_are_taken_by_dlpack_too(source: EngineSource) -> None:
    torch = pytest.importorskip("torch")

    class Elsewhere:
        """A tensor that hides that it is one: only the DLPack protocol is left."""

        def __init__(self, tensor: Any) -> None:
            self.tensor, self.shape, self.dtype = tensor, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")

        def __dlpack_device__(self) -> Any:
            return self.tensor.__dlpack_device__()

        def __dlpack__(self, **asked: Any) -> Any:
            return self.tensor.__dlpack__(**asked)

    session = Session(source)
    dtype = getattr(torch, session.runtime.inputs[0].dtype)
    a, b = whole(1), whole(2)
    given = {name: Elsewhere(torch.from_numpy(array).to("cuda:0", dtype)) for name, array in (("a", a), ("b", b))}
    np.testing.assert_array_equal(device.to_numpy(gpu_call.run_arrays(session, given, 1)["sum"], None), a + b)
    session.close()


@pytest.mark.parametrize("library_name", ["pycuda", "cupy"])
def test_arrays_of_other_libraries_are_read_in_place_and_the_result_is_theirs_to_wrap(source: EngineSource, library_name: str) -> None:
    to_gpu = gpu_arrays_of(library_name)
    session = Session(source)
    dtype = np.dtype(session.runtime.inputs[0].dtype)
    a, b = whole(1, 2), whole(2, 2)
    given = {name: to_gpu(array.astype(dtype)) for name, array in (("a", a), ("b", b))}
    assert all(given_on_gpu(array) for array in given.values())
    found = gpu_call.run_arrays(session, given, 2)
    np.testing.assert_array_equal(device.to_numpy(found["twice"], None), 2 * (a + b))
    session.close()


def gpu_arrays_of(library_name: str) -> Callable[[np.ndarray], Any]:
    """A function that makes a GPU array of that library, on the device's primary context."""
    if library_name == "pycuda":
        # Never pycuda.autoinit: it makes a context of its own, whose memory nobody else can read.
        pytest.importorskip("pycuda.autoprimaryctx", reason="PyCUDA is not installed")
        return pytest.importorskip("pycuda.gpuarray").to_gpu
    return pytest.importorskip("cupy", reason="CuPy is not installed").asarray


def test_a_doctored_version_is_refused_and_damaged_weights_are_tensorrts_own_error(library: trt.Library, tmp_path: Path) -> None:
    source = plans.source(library, tmp_path)
    assert source.file is not None
    plan = source.file.read_bytes()
    if trt.read_header(source.file) is not None:
        source.file.write_bytes(plan[:24] + bytes([77]) + plan[25:])
        with pytest.raises(IncompatibleArtifact, match=r"built by TensorRT 77\..*\n.*--to trt --fp16"):
            Opened(source)
    source.file.write_bytes(plan[: len(plan) // 2])
    with pytest.raises((IncompatibleArtifact, CorruptArtifact), match="its log says: "):
        Opened(source)


def test_another_plan_under_the_same_name_is_another_engine(library: trt.Library, tmp_path: Path) -> None:
    first = plans.source(library, tmp_path / "one", doubles=1)
    second = plans.source(library, tmp_path / "two", doubles=3)
    one, two = Opened(first), Opened(dataclasses.replace(second, variant=first.variant))
    assert tensorrt_engines.count() == 2
    a, b = whole(1), whole(2)
    np.testing.assert_array_equal(one.outputs(one.binding(a=a, b=b))["twice"], 2 * (a + b))
    np.testing.assert_array_equal(two.outputs(two.binding(a=a, b=b))["twice"], 8 * (a + b))
    one.close()
    two.close()


def test_a_runtime_that_is_closed_can_be_opened_again(source: EngineSource) -> None:
    for _ in range(3):
        found = Opened(source)
        a = whole(1)
        np.testing.assert_array_equal(found.outputs(found.binding(a=a, b=a))["sum"], 2 * a)
        found.close()
        with pytest.raises(AccelError, match="not open"):
            _ = found.runtime.home
