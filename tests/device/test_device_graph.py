"""A CUDA graph captures once and launches as often as wanted; facts of a GPU; waits made once."""

from __future__ import annotations

import numpy as np
import pytest
from fake_cuda import Code, FakeDriver

from accel import device
from accel.device import stream as streams
from accel.errors import AccelError
from accel.types import Binding


def test_a_launch_does_again_what_was_captured(fake_driver: FakeDriver) -> None:
    source, target = (device.to_device(np.full(4, value), "float32", "cuda:0", 77) for value in (1, 0))
    graph = device.capture("cuda:0", 77, lambda: device.copy(target, source.ptr, 77))
    assert graph.nodes == 1
    assert device.to_numpy(target, 77).tolist() == [0] * 4
    graph.launch()
    assert device.to_numpy(target, 77).tolist() == [1] * 4
    graph.close()
    graph.close()
    assert fake_driver.calls.count("cuGraphExecDestroy") == 1


def test_a_capture_that_fails_leaves_the_stream_usable_and_nothing_behind(fake_driver: FakeDriver) -> None:
    def fails() -> None:
        raise ValueError("not today")

    device.open_stream("cuda:0")
    with pytest.raises(ValueError, match="not today"):
        device.capture("cuda:0", 77, fails)
    assert (fake_driver.capturing, fake_driver.calls[-2:]) == (None, ["cuStreamEndCapture", "cuGraphDestroy"])
    fake_driver.fail["cuGraphInstantiate"] = Code.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(AccelError, match="instantiating a CUDA graph"):
        device.capture("cuda:0", 77, lambda: None)
    # The message of an error is asked of the driver after the graph itself was given back.
    assert [call for call in fake_driver.calls[-3:] if call.startswith("cuGraph")] == ["cuGraphInstantiate", "cuGraphDestroy"]


def test_a_graph_keeps_its_nodes_only_where_they_are_wanted(fake_driver: FakeDriver) -> None:
    target = device.to_device(np.zeros(4), "float32", "cuda:0", 77)
    for keep, kept in ((False, 0), (True, 1)):
        fake_driver.calls.clear()
        graph = device.capture("cuda:0", 77, lambda: device.copy(target, target.ptr, 77), keep=keep)
        assert (graph.nodes, len(graph.kept)) == (1, kept)
        assert fake_driver.calls.count("cuGraphDestroy") == 1 - kept
        graph.close()
        assert (fake_driver.calls.count("cuGraphDestroy"), fake_driver.calls.count("cuGraphExecDestroy")) == (1, 1)


def test_a_replay_copies_what_is_not_at_its_place(fake_driver: FakeDriver) -> None:
    home = {name: device.to_device(np.zeros(4), "float32", "cuda:0", 77) for name in "ab"}
    given = {"a": device.to_device(np.full(4, 5), "float32", "cuda:0", 77), "b": home["b"]}
    graph = device.capture("cuda:0", 77, lambda: None)
    binding = Binding(given, graph.calls(home, given))
    fake_driver.calls.clear()
    device.replay(binding)
    assert fake_driver.calls == ["cuMemcpyDtoDAsync", "cuGraphLaunch"]
    assert device.to_numpy(home["a"], 77).tolist() == [5] * 4
    assert len(graph.calls(home, home)) == 1
    fake_driver.fail["cuGraphLaunch"] = Code.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(AccelError, match="replaying a CUDA graph failed: CUDA_ERROR_ILLEGAL_ADDRESS"):
        device.replay(binding)
    graph.close()


def test_what_a_gpu_is_called_and_can_do(fake_driver: FakeDriver) -> None:
    assert device.describe("cuda:0") == device.Gpu("Fake GPU", "9.0", "13.0")
    assert "cuCtxCreate" not in fake_driver.calls


def test_a_wait_belongs_to_an_open_stream_and_a_foreign_one_can_be_waited_for_too(fake_driver: FakeDriver) -> None:
    stream = device.open_stream("cuda:0")
    assert stream in streams._WAITS
    device.synchronize(stream)
    device.close_stream(stream)
    assert stream not in streams._WAITS
    device.synchronize(5)
    assert fake_driver.calls.count("cuStreamSynchronize") == 2
    fake_driver.fail["cuStreamSynchronize"] = Code.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(AccelError, match="ILLEGAL_ADDRESS"):
        device.synchronize(5)
