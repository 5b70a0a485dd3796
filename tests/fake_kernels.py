"""The CUDA driver of `fake_cuda`, with machine code: its kernels are functions of numpy on the same host memory.

Launch configurations are those of the real cuda-bindings, whose structures need no driver, so that attributes are read from where the real
driver would read them.
"""

from __future__ import annotations

import ctypes
import dataclasses
import types
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from fake_cuda import Code, FakeDriver

real = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")

CAPABILITY, SMS, SHARED, COOPERATIVE, L2 = (75, 76), 16, 97, 95, 38
"""CUdevice_attribute's numbers."""

Emulated = Callable[[Sequence[int]], None]
"""A kernel: called with the addresses that it was launched with."""


@dataclasses.dataclass(frozen=True)
class Launched:
    """What the driver was told of one launch; `attributes` in the order in which they stood."""

    kernel: str
    grid: int
    block: int
    shared: int
    stream: int
    attributes: tuple[str, ...]
    cluster: int
    arguments: tuple[int, ...]

    @property
    def cooperative(self) -> bool:
        return "COOPERATIVE" in self.attributes


class KernelDriver(FakeDriver):
    """Attributes:
    kernels: name → what it does. launched: every launch, those into a graph too. allowed: what functions were allowed, by name.
    room: CTAs of a kernel that fit on one multiprocessor. clusters: how many fit at all. keeps: whether a graph keeps attributes.
    loaded: machine code by handle; it lives until it is unloaded. parameters: of a kernel that has not five.
    arguments: of kernel nodes of instantiated graphs, where they were set: (graph, node) → addresses. templates: captured graphs that live.
    """

    CUlaunchConfig, CUlaunchAttribute, CUlaunchAttributeID = real.CUlaunchConfig, real.CUlaunchAttribute, real.CUlaunchAttributeID
    CUfunction_attribute, CUdevice_attribute, CUkernelNodeAttrID = (
        real.CUfunction_attribute,
        real.CUdevice_attribute,
        real.CUkernelNodeAttrID,
    )
    CUshared_carveout, CUDA_KERNEL_NODE_PARAMS = real.CUshared_carveout, real.CUDA_KERNEL_NODE_PARAMS

    def __init__(self, kernels: dict[str, Emulated], capability: str = "9.0") -> None:
        super().__init__()
        major, minor = map(int, capability.split("."))
        self.capability = {75: major, 76: minor, SMS: 132, SHARED: 232448, COOPERATIVE: 1, L2: 1024}
        self.kernels = kernels
        self.launched: list[Launched] = []
        self.allowed: dict[str, dict[str, int]] = {}
        self.room, self.clusters, self.keeps = 1, 8, True
        self.loaded: dict[int, bytes] = {}
        self.parameters: dict[str, int] = {}
        self.arguments: dict[tuple[int, int], tuple[int, ...]] = {}
        self.templates: dict[int, Any] = {}

    def _cuDeviceGetAttribute(self, attribute: Any, handle: int) -> tuple[int]:  # noqa: N802
        return (self.capability[int(attribute)],)

    def _cuModuleLoadData(self, address: int) -> tuple[int]:  # noqa: N802
        handle = max(self.loaded, default=0) + 1
        self.loaded[handle] = ctypes.string_at(address, 4)
        return (handle,)

    def _cuModuleUnload(self, handle: int) -> tuple[()]:  # noqa: N802
        del self.loaded[handle]
        return ()

    def cuModuleGetFunction(self, handle: int, name: bytes) -> tuple[Any, ...]:  # noqa: N802
        assert handle in self.loaded
        return (Code.CUDA_SUCCESS, Function(name.decode())) if name.decode() in self.kernels else (500,)

    def _cuFuncSetAttribute(self, function: str, attribute: Any, value: int) -> tuple[()]:  # noqa: N802
        self.allowed.setdefault(function, {})[attribute.name.removeprefix("CU_FUNC_ATTRIBUTE_")] = value
        return ()

    def _cuOccupancyMaxActiveBlocksPerMultiprocessor(self, function: str, block: int, shared: int) -> tuple[int]:  # noqa: N802
        return (self.room,)

    def _cuOccupancyMaxActiveClusters(self, function: str, config: Any) -> tuple[int]:  # noqa: N802
        assert self._attributes(config)[0] == ("CLUSTER_DIMENSION",)
        return (self.clusters,)

    def _cuLaunchKernelEx(self, config: Any, function: str, parameters: int, extra: int) -> tuple[()]:  # noqa: N802
        arguments = self._read(parameters, function)
        attributes, cluster = self._attributes(config)
        launched = Launched(
            function, config.gridDimX, config.blockDimX, config.sharedMemBytes, int(config.hStream), attributes, cluster, arguments
        )
        self.launched.append(launched)
        self.enqueue(_Work(launched, lambda given: self.kernels[function](given)))
        return ()

    def _read(self, parameters: int, function: str) -> tuple[int, ...]:
        """The arguments as the driver takes them, at the moment of the call."""
        pointers = (ctypes.c_void_p * self.parameters.get(function, 5)).from_address(parameters)
        return tuple(ctypes.c_void_p.from_address(pointer).value or 0 for pointer in pointers)

    def _attributes(self, config: Any) -> tuple[tuple[str, ...], int]:
        found = {attribute.id.name.removeprefix("CU_LAUNCH_ATTRIBUTE_"): attribute.value for attribute in config.attrs[: config.numAttrs]}
        values = {"COOPERATIVE": "cooperative", "PROGRAMMATIC_STREAM_SERIALIZATION": "programmaticStreamSerializationAllowed"}
        assert all(getattr(found[name], field) == 1 for name, field in values.items() if name in found)
        size = found["CLUSTER_DIMENSION"].clusterDim.x if "CLUSTER_DIMENSION" in found else 1
        return tuple(found), size

    def _cuGraphNodeGetType(self, node: Any) -> tuple[Any]:  # noqa: N802
        kind = "KERNEL" if isinstance(node, _Work) else "MEMCPY"
        return (types.SimpleNamespace(name=f"CU_GRAPH_NODE_TYPE_{kind}"),)

    def _cuStreamEndCapture(self, stream: int) -> tuple[list[Callable[[], None]]]:  # noqa: N802
        (graph,) = super()._cuStreamEndCapture(stream)
        self.templates[id(graph)] = graph
        return (graph,)

    def _cuGraphDestroy(self, graph: list[Callable[[], None]]) -> tuple[()]:  # noqa: N802
        del self.templates[id(graph)]
        return ()

    def _cuGraphKernelNodeGetParams(self, node: _Work) -> tuple[Any]:  # noqa: N802
        found, launched = real.CUDA_KERNEL_NODE_PARAMS(), node.launched
        found.func = real.CUfunction(int(Function(launched.kernel)))
        found.gridDimX, found.blockDimX, found.sharedMemBytes = launched.grid, launched.block, launched.shared
        return (found,)

    def _cuGraphExecKernelNodeSetParams(self, executable: int, node: _Work, parameters: Any) -> tuple[()]:  # noqa: N802
        launched = node.launched
        assert any(node is other for other in self.templates[executable]), "the graph that was captured must live"
        shape = (parameters.gridDimX, parameters.blockDimX, parameters.sharedMemBytes)
        assert (int(parameters.func), *shape) == (int(Function(launched.kernel)), launched.grid, launched.block, launched.shared)
        self.arguments[executable, id(node)] = self._read(int(parameters.kernelParams), launched.kernel)
        return ()

    def _cuGraphLaunch(self, executable: int, stream: int) -> tuple[()]:  # noqa: N802
        for work in self.graphs[executable]:
            if isinstance(work, _Work):
                work.run(self.arguments.get((executable, id(work)), work.launched.arguments))
            else:
                work()
        return ()

    def _cuGraphKernelNodeGetAttribute(self, node: _Work, attribute: Any) -> tuple[Any]:  # noqa: N802
        assert attribute.name == "CU_LAUNCH_ATTRIBUTE_COOPERATIVE"
        return (types.SimpleNamespace(cooperative=int(node.launched.cooperative and self.keeps)),)


class Function(str):
    """A kernel's handle: its name, and a number as the real one has."""

    def __int__(self) -> int:
        return zlib.crc32(self.encode())


@dataclasses.dataclass(frozen=True)
class _Work:
    """A node of a captured graph, or work on a stream."""

    launched: Launched
    run: Emulated

    def __call__(self) -> None:
        self.run(self.launched.arguments)
