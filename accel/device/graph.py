"""CUDA graphs through cuda-bindings: what a stream would do is captured once and launched as one piece ever after."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accel.device import driver
from accel.types import Binding, DeviceArray

Call = Callable[[], tuple[Any, ...]]
"""One call of cuda-bindings with its arguments, which answers `(CUresult, …)`."""


class Graph:
    """An instantiated graph, made by `capture`; it is destroyed by close, or when it is forgotten.

    Attributes:
        executable: the driver's CUgraphExec.
        nodes: how many nodes were captured.
        stream: the stream that it was captured on, uploaded to and is launched on.
        kept: the nodes themselves, by which arguments of kernels can be set; empty unless the capture was told to keep them.
    """

    def __init__(self, executable: Any, nodes: int, stream: int, device: str, template: Any = None, kept: Sequence[Any] = ()) -> None:
        self.nodes, self.stream = nodes, stream
        self.executable = executable
        self.kept = tuple(kept)
        self.close = weakref.finalize(self, _destroy, executable, template, device)
        # At exit the driver frees everything itself, and may be gone before a finaliser runs.
        self.close.atexit = False

    def launch(self) -> None:
        """Enqueue the graph; not waited for."""
        driver.check(driver.bindings().cuGraphLaunch(self.executable, self.stream), "launching a CUDA graph")

    def calls(self, home: Mapping[str, DeviceArray], given: Mapping[str, DeviceArray]) -> tuple[Call, ...]:
        """What `replay` calls for a binding of `given`: a copy of every array that is not at its place in `home` already, then the launch.

        Every handle is made here, because the call is what `host_us` times: it costs what a loop over cuda-bindings costs.
        """
        cuda = driver.bindings()
        launch = functools.partial(cuda.cuGraphLaunch, self.executable, cuda.CUstream(self.stream))
        return (*copies(home, given, self.stream), launch)


def copies(home: Mapping[str, DeviceArray], given: Mapping[str, DeviceArray], stream: int) -> tuple[Call, ...]:
    """One call for every array of `given` that is not at its place in `home` already: its copy there, on `stream`."""
    cuda = driver.bindings()
    handle = cuda.CUstream(stream)
    return tuple(
        functools.partial(cuda.cuMemcpyDtoDAsync, cuda.CUdeviceptr(home[name].ptr), cuda.CUdeviceptr(array.ptr), array.nbytes, handle)
        for name, array in given.items()
        if array.ptr != home[name].ptr
    )


def replay(binding: Binding) -> None:
    """For `Runtime.enqueue`: the calls of `binding.native`, made by `Graph.calls` or `copies`, one after another; not waited for."""
    for call in binding.native:
        result = call()
        if result[0]:
            driver.check(result, "replaying a CUDA graph")


def capture(
    device: str,
    stream: int,
    enqueue: Callable[[], None],
    inspect: Callable[[Sequence[Any]], None] | None = None,
    keep: bool = False,
) -> Graph:
    """Capture what `enqueue` puts on `stream`, in thread-local mode, and upload it.

    Run `enqueue` once and wait for it beforehand: what a first call loads, allocates or chooses cannot be captured.

    Args:
        device: `cuda:N`, current on this thread.
        stream: not the default stream; nothing else may use it meanwhile.
        inspect: shown the nodes before they are instantiated; what it raises ends the capture.
        keep: the captured graph with its nodes too, by which the driver knows what is set in the instantiated one.

    Raises:
        AccelError: something in it cannot be captured; the CUDA error is named. What `enqueue` or `inspect` raises goes through.
    """
    cuda = driver.bindings()
    mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    driver.check(cuda.cuStreamBeginCapture(stream, mode), "beginning a capture")
    try:
        enqueue()
    except BaseException:
        # Whatever it was, a stream that is left capturing can do nothing else any more.
        code, *captured = cuda.cuStreamEndCapture(stream)
        if not code:
            cuda.cuGraphDestroy(captured[0])
        raise
    graph = driver.check(cuda.cuStreamEndCapture(stream), "ending a capture")
    found = None
    try:
        _, count = driver.check(cuda.cuGraphGetNodes(graph), "counting the nodes of a CUDA graph")
        nodes: Sequence[Any] = ()
        if inspect is not None or keep:
            nodes = driver.check(cuda.cuGraphGetNodes(graph, count), "listing the nodes of a CUDA graph")[0]
        if inspect is not None:
            inspect(nodes)
        executable = driver.check(cuda.cuGraphInstantiate(graph, 0), "instantiating a CUDA graph")
        found = Graph(executable, int(count), stream, device, *((graph, nodes) if keep else ()))
    finally:
        if found is None or not keep:
            cuda.cuGraphDestroy(graph)
    driver.check(cuda.cuGraphUpload(executable, stream), "uploading a CUDA graph")
    return found


def _destroy(executable: Any, template: Any, device: str) -> None:
    driver.activate(device)
    cuda = driver.bindings()
    driver.give_back(cuda.cuGraphExecDestroy(executable), "freeing a CUDA graph")
    if template is not None:
        driver.give_back(cuda.cuGraphDestroy(template), "freeing what a CUDA graph was captured to")
