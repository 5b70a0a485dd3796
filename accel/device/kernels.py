"""Kernels of our own through the driver: machine code loaded, its limits held against the GPU, and launches with their attributes."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import weakref
from collections.abc import Sequence
from typing import Any

from accel.device import driver
from accel.device.graph import Call
from accel.errors import AccelError, IncompatibleArtifact, RuntimeUnavailable
from accel.types import Kernel

CLUSTERS_FROM = DEPENDENT_FROM = (9, 0)
"""Compute capabilities from which a GPU has clusters of CTAs, and launches that may begin before their predecessor has ended."""

PORTABLE_CLUSTER = 8
"""CTAs of a cluster that every GPU with clusters takes; larger ones it has to be asked for."""

KERNEL_NODE = "CU_GRAPH_NODE_TYPE_KERNEL"


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a GPU can do.

    Attributes:
        capability: as (9, 0). sms: multiprocessors. shared: most dynamic shared memory of a CTA in bytes. cooperative: whether it can
            launch a grid whose CTAs wait for one another.
    """

    capability: tuple[int, int]
    sms: int
    shared: int
    cooperative: bool


def limits(device: str) -> Limits:
    """What `cuda:N` can do; makes no context."""
    cuda, handle = driver.bindings(), driver.handle_of(device)
    asked = cuda.CUdevice_attribute

    def read(name: str) -> int:
        return int(
            driver.check(cuda.cuDeviceGetAttribute(getattr(asked, f"CU_DEVICE_ATTRIBUTE_{name}"), handle), f"reading {name} of {device}")
        )

    return Limits(
        capability=(read("COMPUTE_CAPABILITY_MAJOR"), read("COMPUTE_CAPABILITY_MINOR")),
        sms=read("MULTIPROCESSOR_COUNT"),
        shared=read("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
        cooperative=bool(read("COOPERATIVE_LAUNCH")),
    )


class Module:
    """Loaded machine code, shared by all that launch its kernels; it is unloaded when nothing refers to it any more.

    Attributes:
        limits: of the GPU that it is loaded on.
    """

    def __init__(self, cubin: bytes, device: str, what: str) -> None:
        driver.activate(device)
        cuda = driver.bindings()
        image = ctypes.create_string_buffer(cubin, len(cubin))
        self._handle = driver.check(cuda.cuModuleLoadData(ctypes.addressof(image)), f"loading {what}")
        # At exit the driver frees everything itself, and may be gone before a finaliser runs.
        weakref.finalize(self, _unload, self._handle, device).atexit = False
        self.device, self.limits = device, limits(device)
        self._functions: dict[str, Any] = {}

    def function(self, kernel: Kernel, instead: str) -> Any:
        """The driver's handle of a kernel, allowed what it needs, and known to fit.

        Args:
            instead: what the user can run in its place, for the message.

        Raises:
            RuntimeUnavailable: this GPU cannot launch it so: no cooperative launches, a grid whose CTAs are not all resident at once, no
                clusters, or too much shared memory.
            IncompatibleArtifact: the machine code has no such kernel.
        """
        if kernel.name not in self._functions:
            self._functions[kernel.name] = self._prepared(kernel, instead)
        return self._functions[kernel.name]

    def _prepared(self, kernel: Kernel, instead: str) -> Any:
        cuda, found = driver.bindings(), self.limits
        self._demand(
            kernel.shared <= found.shared, kernel, instead, f"needs {kernel.shared} bytes of shared memory, and it has {found.shared}"
        )
        clusters = found.capability >= CLUSTERS_FROM
        self._demand(kernel.cluster == 1 or clusters, kernel, instead, "needs clusters of CTAs, which begin with compute capability 9.0")
        self._demand(not kernel.cooperative or found.cooperative, kernel, instead, "needs cooperative launches, which it does not have")
        code, *handle = cuda.cuModuleGetFunction(self._handle, kernel.name.encode())
        if code:
            raise IncompatibleArtifact(
                f"the machine code has no kernel {kernel.name}", remedy="accel export MODEL --to fused --fp16 --force"
            )
        (function,) = handle
        allow = cuda.CUfunction_attribute
        given = [(allow.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, kernel.shared)] if kernel.shared else []
        if kernel.cluster > PORTABLE_CLUSTER:
            given.append((allow.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1))
        for attribute, value in given:
            driver.check(cuda.cuFuncSetAttribute(function, attribute, value), f"allowing {kernel.name} what it needs")
        prefer_shared(function, kernel)
        self._demand_room(function, kernel, instead)
        return function

    def _demand_room(self, function: Any, kernel: Kernel, instead: str) -> None:
        """A grid whose CTAs wait for one another must fit as a whole: one that is not resident would be waited for for ever."""
        cuda = driver.bindings()
        if kernel.cluster > 1:
            config = configure(kernel, 0, self.limits.capability)
            room = kernel.cluster * int(
                driver.check(cuda.cuOccupancyMaxActiveClusters(function, config), f"asking for room for {kernel.name}")
            )
            needed = kernel.grid if kernel.cooperative else kernel.cluster
        elif kernel.cooperative:
            asked = cuda.cuOccupancyMaxActiveBlocksPerMultiprocessor(function, kernel.block, kernel.shared)
            room = self.limits.sms * int(driver.check(asked, f"asking for room for {kernel.name}"))
            needed = kernel.grid
        else:
            return
        self._demand(room >= needed, kernel, instead, f"needs {needed} CTAs resident at once, and it has room for {room}")

    def _demand(self, well: bool, kernel: Kernel, instead: str, why: str) -> None:
        if not well:
            raise RuntimeUnavailable(f"{self.device} cannot run the kernel {kernel.name}: it {why}", remedy=instead)


class Launch:
    """One kernel with its arguments, on one stream; called, it is enqueued and not waited for.

    Args:
        arguments: addresses, in the order of the kernel's parameters.

    Attributes:
        function: the driver's handle of the kernel. parameters: the address of the addresses of its arguments, valid as long as this lives.
    """

    def __init__(self, module: Module, kernel: Kernel, arguments: Sequence[int], stream: int, instead: str) -> None:
        self.kernel = kernel
        self._module, self._stream, self._instead = module, stream, instead
        self._values = (ctypes.c_void_p * len(arguments))(*arguments)
        start, size = ctypes.addressof(self._values), ctypes.sizeof(ctypes.c_void_p)
        self._pointers = (ctypes.c_void_p * len(arguments))(*(start + number * size for number in range(len(arguments))))
        self.function, self.parameters = module.function(kernel, instead), ctypes.addressof(self._pointers)
        self._call = (configure(kernel, stream, module.limits.capability), self.function, self.parameters, 0)
        self._launch = driver.bindings().cuLaunchKernelEx

    def with_argument(self, position: int, address: int) -> Launch:
        """The same launch, but for one argument."""
        arguments = [value or 0 for value in self._values]
        arguments[position] = address
        return Launch(self._module, self.kernel, arguments, self._stream, self._instead)

    def __call__(self) -> None:
        result = self._launch(*self._call)
        if result[0]:
            driver.check(result, f"launching {self.kernel.name}")


def prefer_shared(function: Any, kernel: Kernel, largest: bool = True) -> None:
    """Ask for the largest carve-out of shared memory whenever `function` runs, or leave that to the driver again.

    An SM changes its split of L1 cache and shared memory only when nothing runs on it. The driver chooses the split by what a kernel asks
    for, so that two kernels of a chain which ask for different amounts could never be on an SM at once, and a dependent launch would
    overlap nothing. With one split for all of them they can.
    """
    cuda = driver.bindings()
    wanted = cuda.CUshared_carveout
    value = wanted.CU_SHAREDMEM_CARVEOUT_MAX_SHARED if largest else wanted.CU_SHAREDMEM_CARVEOUT_DEFAULT
    attribute = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
    driver.check(cuda.cuFuncSetAttribute(function, attribute, int(value)), f"choosing the carve-out of {kernel.name}")


def configure(kernel: Kernel, stream: int, capability: tuple[int, int]) -> Any:
    """The driver's CUlaunchConfig: the shape, and only those attributes that the kernel needs and the GPU knows."""
    cuda = driver.bindings()
    config = cuda.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = kernel.grid, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = kernel.block, 1, 1
    config.sharedMemBytes = kernel.shared
    config.hStream = cuda.CUstream(stream)
    attributes = []
    if kernel.cooperative:
        attributes.append(_attribute("COOPERATIVE"))
        attributes[-1].value.cooperative = 1
    if kernel.cluster > 1:
        attributes.append(_attribute("CLUSTER_DIMENSION"))
        size = attributes[-1].value.clusterDim
        size.x, size.y, size.z = kernel.cluster, 1, 1
    if kernel.dependent and capability >= DEPENDENT_FROM:
        attributes.append(_attribute("PROGRAMMATIC_STREAM_SERIALIZATION"))
        attributes[-1].value.programmaticStreamSerializationAllowed = 1
    config.attrs, config.numAttrs = attributes, len(attributes)
    return config


def count_cooperative(nodes: Sequence[Any]) -> tuple[int, int]:
    """Of a captured graph's nodes: how many are kernels, and how many of these the graph will launch cooperatively.

    A kernel node keeps the attributes of the launch that it was captured from; of CU_LAUNCH_ATTRIBUTE_COOPERATIVE the driver's header
    says that it is valid for graph nodes. It is read back all the same, because without it the CTAs could wait for ever.
    """
    cuda = driver.bindings()
    kernels = cooperative = 0
    for node in filter(_is_kernel, nodes):
        kernels += 1
        asked = cuda.CUkernelNodeAttrID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
        value = driver.check(cuda.cuGraphKernelNodeGetAttribute(node, asked), "reading a kernel node's attribute")
        cooperative += bool(value.cooperative)
    return kernels, cooperative


def demand_cooperative(nodes: Sequence[Any], launched: Sequence[Kernel]) -> None:
    """Hold a capture against what was launched into it.

    Raises:
        AccelError: a kernel is missing, or one whose CTAs wait for one another would be launched without that being sure.
    """
    kernels, cooperative = count_cooperative(nodes)
    wanted = sum(kernel.cooperative for kernel in launched)
    if (kernels, cooperative) != (len(launched), wanted):
        raise AccelError(f"{len(launched)} kernels were captured, {wanted} of them cooperative; the graph has {kernels} and {cooperative}")


def nodes_of(nodes: Sequence[Any], launches: Sequence[Launch]) -> tuple[Any, ...]:
    """Of a captured graph's nodes, the one that each of `launches` became, known by its function.

    Raises:
        AccelError: a launch has not exactly one.
    """
    cuda, found = driver.bindings(), dict[int, list[Any]]()
    for node in filter(_is_kernel, nodes):
        of = driver.check(cuda.cuGraphKernelNodeGetParams(node), "reading a kernel node's parameters")
        found.setdefault(int(of.func), []).append(node)
    of_launches = [found.get(int(launch.function), []) for launch in launches]
    for launch, of_launch in zip(launches, of_launches, strict=True):
        if len(of_launch) != 1:
            raise AccelError(f"the captured graph has {len(of_launch)} nodes of the kernel {launch.kernel.name}")
    return tuple(node for (node,) in of_launches)


def argument_setter(executable: Any, node: Any, launch: Launch) -> Call:
    """A call that gives `node` of an instantiated graph the arguments of `launch`, for the graph's launches from then on.

    Shape and attributes of the node stay. `launch`, where the arguments lie, must live as long as the call; so must the graph that was
    captured, to which `node` belongs.
    """
    cuda = driver.bindings()
    parameters = driver.check(cuda.cuGraphKernelNodeGetParams(node), "reading a kernel node's parameters")
    parameters.kernelParams = launch.parameters
    return functools.partial(cuda.cuGraphExecKernelNodeSetParams, executable, node, parameters)


def _is_kernel(node: Any) -> bool:
    found = driver.check(driver.bindings().cuGraphNodeGetType(node), "reading a node's type")
    return getattr(found, "name", "") == KERNEL_NODE


def _attribute(name: str) -> Any:
    cuda = driver.bindings()
    found = cuda.CUlaunchAttribute()
    found.id = getattr(cuda.CUlaunchAttributeID, f"CU_LAUNCH_ATTRIBUTE_{name}")
    return found


def _unload(handle: Any, device: str) -> None:
    driver.activate(device)
    driver.give_back(driver.bindings().cuModuleUnload(handle), "unloading machine code")
