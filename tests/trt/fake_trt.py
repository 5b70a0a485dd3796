"""A `tensorrt` module that imitates the builder's side of 8.6, 10 and 11 closely enough to test what is asked of it, and by which name.

world = World("8.6.0", layers=[Layer(...)])
library = world.library()            # accel.trt.Library over the fake
world.flags, world.calls             # what was asked for
"""

from __future__ import annotations

import dataclasses
import enum
import json
import types
from typing import Any

from accel.trt import FLAVORS, Library
from accel.trt.library import _make_log


class Named(enum.IntEnum):
    """Prints as pybind11's enums do: `DataType.HALF`."""

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


def _enum(name: str, *members: str) -> Any:
    return Named(name, {member: value for value, member in enumerate(members)})


DATA_TYPE = _enum("DataType", "FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8", "BF16", "INT64")


@dataclasses.dataclass
class Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: Any = DATA_TYPE.FLOAT
    is_network_output: bool = False


@dataclasses.dataclass
class Layer:
    """A network layer with the parameters of whichever kind it is; the exporter changes its class, as the real bindings want."""

    name: str
    kind: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    kernel_size_nd: tuple[int, ...] = (3, 3)
    num_groups: int = 1
    num_output_channels: int = 1
    equation: str = ""
    op0: Any = "MatrixOperation.NONE"
    metadata: str = ""
    precision: Any = None
    output_types: dict[int, Any] = dataclasses.field(default_factory=dict)

    def set_output_type(self, index: int, dtype: Any) -> None:
        self.output_types[index] = dtype

    @property
    def type(self) -> str:
        return f"LayerType.{self.kind}"

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]


@dataclasses.dataclass
class World:
    """What the fake library is, what its network holds, and what happened.

    Attributes:
        layers, inputs, outputs: of the network, whatever file is parsed.
        engine: the inspector's `Layers`; `raw` is all that it says, in their place.
        errors: the parser's, as (node number, node name, operator, reason).
        plan: what the builder returns.
        said: logged as errors while it builds.
        no_sources: the configuration refuses every choice of tactic sources.
        steps: of the builder's one phase; `during` is called in each.
    """

    version: str
    layers: list[Layer] = dataclasses.field(default_factory=list)
    inputs: list[Tensor] = dataclasses.field(default_factory=list)
    outputs: list[Tensor] = dataclasses.field(default_factory=list)
    engine: list[Any] = dataclasses.field(default_factory=list)
    errors: list[tuple[int, str, str, str]] = dataclasses.field(default_factory=list)
    raw: str | None = None
    plan: bytes | None = None
    readable: bool = True
    said: list[str] = dataclasses.field(default_factory=list)
    steps: int = 4
    during: Any = None
    no_gpu: bool = False
    no_sources: bool = False
    calls: list[tuple[str, Any]] = dataclasses.field(default_factory=list)
    flags: set[str] = dataclasses.field(default_factory=lambda: {"TF32"})
    config: Any = None

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])

    def library(self) -> Library:
        numbers = tuple(int(part) for part in self.version.split("."))
        if self.plan is None:
            self.plan = b"ftrt" + bytes(20) + bytes([*numbers, 0, 0, 0, 0][:4]) + b"weights"
        module = make(self)
        return Library(FLAVORS["tensorrt"], module, numbers, _make_log(module))

    def called(self, name: str) -> list[Any]:
        return [value for what, value in self.calls if what == name]


def make(world: World) -> Any:
    """The module."""
    trt = types.SimpleNamespace()
    trt.DataType = DATA_TYPE
    trt.ILogger = type("ILogger", (), {"Severity": _enum("Severity", "INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")})
    flags = ["TF32", "VERSION_COMPATIBLE", "REFIT"] + (["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"] if world.major <= 10 else [])
    trt.BuilderFlag = _enum("BuilderFlag", *flags)
    creation = {8: ["EXPLICIT_BATCH"], 10: ["EXPLICIT_BATCH", "STRONGLY_TYPED"], 11: ["STRONGLY_TYPED"]}[world.major]
    trt.NetworkDefinitionCreationFlag = _enum("NetworkDefinitionCreationFlag", *creation)
    trt.MemoryPoolType = _enum("MemoryPoolType", "WORKSPACE", "DLA_MANAGED_SRAM")
    trt.ProfilingVerbosity = _enum("ProfilingVerbosity", "LAYER_NAMES_ONLY", "NONE", "DETAILED")
    trt.HardwareCompatibilityLevel = _enum("HardwareCompatibilityLevel", "NONE", "AMPERE_PLUS")
    trt.LayerInformationFormat = _enum("LayerInformationFormat", "ONELINE", "JSON")
    old = ["CUBLAS", "CUBLAS_LT", "CUDNN"] if world.major <= 10 else []
    trt.TacticSource = _enum("TacticSource", *old, "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
    for kind in ("IConvolutionLayer", "IDeconvolutionLayer", "IMatrixMultiplyLayer", "IEinsumLayer", "IFullyConnectedLayer"):
        setattr(trt, kind, type(kind, (Layer,), {}))
    if world.major >= 10:
        trt.IProgressMonitor = type("IProgressMonitor", (), {})
    trt.Builder = lambda log: _Builder(world, trt, log)
    trt.OnnxParser = lambda network, log: _Parser(world)
    trt.Runtime = lambda log: _Runtime(world, log)
    return trt


class _Builder:
    def __init__(self, world: World, trt: Any, log: Any) -> None:
        if world.no_gpu:
            log.log(trt.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._world, self._trt, self._log = world, trt, log

    def create_network(self, flags: int) -> Any:
        world, kinds = self._world, self._trt.NetworkDefinitionCreationFlag
        world.calls.append(("create_network", [kind.name for kind in kinds if flags >> kind & 1]))
        return types.SimpleNamespace(
            num_layers=len(world.layers),
            get_layer=lambda index: world.layers[index],
            num_inputs=len(world.inputs),
            get_input=lambda index: world.inputs[index],
            num_outputs=len(world.outputs),
            get_output=lambda index: world.outputs[index],
        )

    def create_builder_config(self) -> Any:
        self._world.config = _Config(self._world, self._trt)
        return self._world.config

    def create_optimization_profile(self) -> Any:
        return types.SimpleNamespace(set_shape=lambda *shapes: self._world.calls.append(("set_shape", shapes)))

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        world, monitor = self._world, getattr(config, "progress_monitor", None)
        for text in world.said:
            self._log.log(self._trt.ILogger.Severity.ERROR, text)
        if monitor is not None:
            monitor.phase_start("Building", None, 2)
            monitor.phase_start("Tactics", "Building", world.steps)
        for step in range(world.steps):
            if world.during is not None:
                world.during(step)
            if monitor is not None and not monitor.step_complete("Tactics", step):
                world.calls.append(("cancelled", step))
                return None
        if monitor is not None:
            monitor.phase_finish("Tactics")
            monitor.phase_finish("Building")
        world.calls.append(("built", None))
        return world.plan if not world.said else None


class _Config:
    def __init__(self, world: World, trt: Any) -> None:
        self._world, self._trt = world, trt
        self.builder_optimization_level, self.max_aux_streams = 3, -1
        self.profiling_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
        self.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
        self._pools = {trt.MemoryPoolType.WORKSPACE: 1 << 36}
        self._sources = (1 << len(trt.TacticSource)) - 1
        if world.major >= 10:
            self.progress_monitor: Any = None

    def set_flag(self, flag: Any) -> None:
        self._world.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self._world.flags.discard(flag.name)

    def get_flag(self, flag: Any) -> bool:
        return flag.name in self._world.flags

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self._pools[pool] = size

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self._pools[pool]

    def set_tactic_sources(self, mask: int) -> bool:
        if self._world.no_sources:
            return False
        self._sources = mask
        return True

    def get_tactic_sources(self) -> int:
        return self._sources

    def add_optimization_profile(self, profile: Any) -> int:
        self._world.calls.append(("add_optimization_profile", profile))
        return 0

    def create_timing_cache(self, blob: bytes) -> Any:
        if blob.startswith(b"broken"):
            return None
        self._world.calls.append(("create_timing_cache", bytes(blob)))
        return types.SimpleNamespace(blob=blob, serialize=lambda: blob + b"+timings")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        return ignore_mismatch or not cache.blob.startswith(b"foreign")


class _Parser:
    def __init__(self, world: World) -> None:
        self._world = world
        self.num_errors = len(world.errors)

    def parse_from_file(self, path: str) -> bool:
        self._world.calls.append(("parse", path))
        return not self._world.errors

    def get_error(self, index: int) -> Any:
        number, name, operator, reason = self._world.errors[index]
        problem = types.SimpleNamespace(node=lambda: number, desc=lambda: reason, code=lambda: 1)
        if self._world.major >= 10:
            problem.node_name, problem.node_operator = lambda: name, lambda: operator
        return problem


class _Runtime:
    def __init__(self, world: World, log: Any) -> None:
        self._world, self.engine_host_code_allowed = world, False

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        world = self._world
        # A version-compatible plan carries code, which TensorRT takes only from who allows it.
        if not world.readable or ("VERSION_COMPATIBLE" in world.flags and not self.engine_host_code_allowed):
            return None
        inspector = types.SimpleNamespace(execution_context=None)
        unknown = [{"Format/Datatype": "N/A due to dynamic shapes"}]

        def information(format: Any) -> str:
            if world.raw is not None:
                return world.raw
            shapeless = world.called("set_shape") and inspector.execution_context is None
            hidden = {"Inputs": unknown, "Outputs": unknown} if shapeless else {}
            return json.dumps({"Layers": [{**layer, **hidden} for layer in world.engine], "Bindings": []})

        inspector.get_engine_information = information
        context = types.SimpleNamespace(set_input_shape=lambda name, shape: world.calls.append(("set_input_shape", (name, shape))))
        return types.SimpleNamespace(create_engine_inspector=lambda: inspector, create_execution_context=lambda: context)
