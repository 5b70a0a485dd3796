"""A captured call: the copies, then the graph; the machinery around torch's CUDAGraph, without a GPU."""

from __future__ import annotations

import contextlib
import gc
import threading
import types
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fake_cuda import Code, FakeCore, FakeDriver

from accel import device
from accel.device import driver
from accel.errors import AccelError, RuntimeUnavailable
from accel.runtimes.torch_graph import CapturedCall, demand_main_thread
from accel.types import Binding, DeviceArray, Variant

STREAM = 77


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """The driver of host memory."""
    fake = FakeDriver()
    monkeypatch.setattr(driver, "bindings", lambda: fake)
    monkeypatch.setattr(driver, "require", lambda module, extra: FakeCore)
    driver._prepared.cache_clear()
    yield fake
    driver._prepared.cache_clear()


class FakeTorch:
    """As much of torch as a capture touches; `said` is what was done, in order."""

    def __init__(self) -> None:
        said: list[str] = []
        self.said = said

        class CUDAGraph:
            def __init__(self, keep_graph: bool) -> None:
                said.append(f"graph keep={keep_graph}")

            def instantiate(self) -> None:
                said.append("instantiate")

            def raw_cuda_graph(self) -> list[str]:
                return ["kernel"] * 7  # what the driver of host memory takes for a graph

            def replay(self) -> None:
                said.append("replay")

        @contextlib.contextmanager
        def graph(recorded: Any, stream: str, capture_error_mode: str) -> Iterator[None]:
            said.append(f"begin on {stream} {capture_error_mode}")
            yield
            said.append("end")

        self.cuda = types.SimpleNamespace(CUDAGraph=CUDAGraph, graph=graph, current_stream=lambda device: f"ours of {device}")


class Weights:
    """A callable that owns what its kernels read."""

    def __call__(self, *tensors: Any) -> str:
        return "static result"


def array(values: list[float]) -> DeviceArray:
    return device.to_device(np.array(values, np.float32), "float32", "cuda:0", STREAM)


def test_the_call_is_recorded_once_on_the_current_stream_and_replayed_from_then_on(memory: FakeDriver) -> None:
    torch, called = FakeTorch(), []
    home = Binding({"x": array([1, 1])}, ("home tensor",))
    captured = CapturedCall(torch, "cuda:0", lambda *tensors: called.append(tensors) or "static result", home, STREAM)
    assert called == [("home tensor",)]
    assert torch.said == ["graph keep=True", "begin on ours of cuda:0 thread_local", "end", "instantiate"]
    assert captured.nodes == 7
    del torch.said[:]
    assert captured() == captured() == "static result"
    assert torch.said == ["replay", "replay"]
    assert len(called) == 1


def test_a_binding_is_copied_into_home_before_the_replay_and_home_itself_is_not(memory: FakeDriver) -> None:
    home = Binding({"x": array([1, 1]), "y": array([2, 2])}, ())
    captured = CapturedCall(FakeTorch(), "cuda:0", lambda: None, home, STREAM)
    given = {"x": array([5, 6]), "y": home.inputs["y"]}
    copies = captured.copies(given)
    assert [copy.args for copy in copies] == [(home.inputs["x"].ptr, given["x"].ptr, 8, STREAM)]
    captured(*copies)
    np.testing.assert_array_equal(device.to_numpy(home.inputs["x"], STREAM), [5, 6])
    np.testing.assert_array_equal(device.to_numpy(home.inputs["y"], STREAM), [2, 2])
    assert captured.copies(home.inputs) == ()


def test_a_copy_that_fails_is_an_error_and_the_graph_is_not_launched(memory: FakeDriver) -> None:
    torch = FakeTorch()
    captured = CapturedCall(torch, "cuda:0", lambda: None, Binding({"x": array([1])}, ()), STREAM)
    copies = captured.copies({"x": array([2])})
    memory.fail["cuMemcpyDtoDAsync"] = Code.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(AccelError, match="ILLEGAL_ADDRESS"):
        captured(*copies)
    assert "replay" not in torch.said


def test_off_the_main_thread_a_capture_is_refused_with_what_can_be_loaded_instead() -> None:
    caught: list[AccelError] = []

    def serve() -> None:
        try:
            demand_main_thread(Variant.parse("eager:fp16+graph"), "without the option graph")
        except RuntimeUnavailable as error:
            caught.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    assert "main thread only" in caught[0].message
    assert "without the option graph" in str(caught[0].remedy)
    demand_main_thread(Variant.parse("eager:fp16+graph"), "")


def test_what_the_graph_reads_lives_as_long_as_the_graph(memory: FakeDriver) -> None:
    # Seen on an H200: the weights of a captured AOTInductor package were freed after open, and the next arrays took their memory.
    weights = Weights()
    alive = weakref.ref(weights)
    captured = CapturedCall(FakeTorch(), "cuda:0", weights, Binding({"x": array([1, 1])}, ("home tensor",)), STREAM)
    del weights
    gc.collect()
    assert alive() is not None
    del captured
    gc.collect()
    assert alive() is None
