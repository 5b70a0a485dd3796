"""A torch callable as a CUDA graph over static inputs: recorded once, then one launch a call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from accel import device as devices
from accel.device import driver
from accel.errors import RuntimeUnavailable
from accel.types import Binding, DeviceArray, Variant


def demand_main_thread(variant: Variant, instead: str) -> None:
    """Refuse to capture with torch on another thread than the main one.

    Seen on an H200 with torch 2.11: a capture on a second thread fails in cuDNN's search and breaks torch's random state for the
    whole process.

    Args:
        instead: what can be loaded on any thread, for the remedy.

    Raises:
        RuntimeUnavailable: this is not the main thread.
    """
    here = threading.current_thread()
    if here is not threading.main_thread():
        raise RuntimeUnavailable(
            f"{variant} was opened on the thread {here.name}; torch captures its CUDA graphs reliably on the main thread only",
            remedy=f"load and call it on the main thread, or load the variant without CUDA graphs ({instead})",
        )


class CapturedCall:
    """Called with the copies of a binding: enqueues them, then the graph; returns the static results, overwritten by the next call.

    Everything is recorded on torch's current stream, which must be the caller's own. The callable has run often enough before:
    a search of cuDNN's or a compilation cannot be recorded.

    Attributes:
        nodes: of the graph, None where torch or the driver does not tell.
    """

    def __init__(self, torch: Any, device: str, call: Callable[..., Any], home: Binding, stream: int) -> None:
        self._home, self._stream = home.inputs, stream
        # The template is kept so that its nodes can be counted; a replay launches the instantiated graph either way.
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        # Only this thread's calls can spoil the capture: other threads may be serving meanwhile.
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream(device), capture_error_mode="thread_local"):
            self._results = call(*home.native)
        graph.instantiate()
        self.nodes = count_nodes(graph.raw_cuda_graph())
        self._graph, self._replay = graph, graph.replay
        # The graph holds bare addresses. Whatever it reads lives as long as it does: the tensors over home's buffers, and the callable
        # with its weights, which nothing else may hold.
        self._reads = (home.native, call)

    def copies(self, given: Mapping[str, DeviceArray]) -> tuple[Any, ...]:
        """What a binding of `given` has to copy in each call."""
        return devices.copies(self._home, given, self._stream)

    def __call__(self, *copies: Any) -> Any:
        for copy in copies:
            result = copy()
            if result[0]:
                driver.check(result, "copying an input into the graph's buffer")
        self._replay()
        return self._results


def count_nodes(graph: int) -> int:
    """How many nodes the CUDA graph with this handle has."""
    found = driver.check(driver.bindings().cuGraphGetNodes(graph), "counting the nodes of a CUDA graph")
    return int(found[1])
