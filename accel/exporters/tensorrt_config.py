"""The builder's configuration: every flag and level by its name, asked for where this TensorRT has it, and read back for the record."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from accel.device.select import describe
from accel.errors import RuntimeUnavailable, UnknownName, UnsupportedOperator, UsageError
from accel.exporters.options import BuildOptions
from accel.exporters.request import ExportRequest
from accel.exporters.tensorrt_macs import multiplies
from accel.exporters.tensorrt_network import Network
from accel.trt import Library

HARDWARE_LEVEL = "AMPERE_PLUS"


@dataclasses.dataclass(frozen=True)
class Config:
    """A configuration with what it was read back to be.

    Attributes:
        profile: input → smallest, best and largest shape; empty where every shape is fixed.
        facts: for the entry's toolchain: `flags`, `optimization_level`, `workspace`, `tactic_sources`, `profile`, `typing`.
    """

    config: Any
    profile: Mapping[str, tuple[tuple[int, ...], ...]]
    facts: Mapping[str, str]


def configure(parsed: Network, request: ExportRequest) -> Config:
    """Configure the build of `parsed`.

    Raises:
        UsageError, UnknownName: an option that this TensorRT does not have, or an input whose shape no batch size settles.
    """
    trt, options = parsed.library.trt, request.options
    config = parsed.builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector would tell names alone
    if hasattr(config, "max_aux_streams"):
        config.max_aux_streams = 0  # at batch 1 the hand-over between streams costs more than it hides
    if request.precision == "fp16" and not parsed.strong:
        config.set_flag(trt.BuilderFlag.FP16)
        if not options.allow_mixed:
            _demand_half(parsed, config)
    if request.precision == "fp32" and hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means IEEE single
    _apply(parsed.library, config, options)
    profile = _profile(parsed, config, request)
    facts = {
        "flags": ",".join(_flags(trt, config)) or "none",
        "optimization_level": str(config.builder_optimization_level),
        "workspace": str(config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)),
        "profile": json.dumps(profile, sort_keys=True),
        "typing": "strong" if parsed.strong else "weak",
    }
    sources = _sources_of(trt, config)
    return Config(config, profile, facts if sources is None else {**facts, "tactic_sources": sources})


def capabilities(library: Library, request: ExportRequest) -> tuple[str, ...]:
    """The GPUs that a plan is built for ahead of time: those that were named, else the one of `request.device`.

    Raises:
        UsageError: one that was named is none of this library's. RuntimeUnavailable: nothing was named, and the GPU here is none of them,
        or there is none.
    """
    known = {member.removeprefix("SM"): member for member in library.trt.ComputeCapability.__members__ if member.startswith("SM")}
    spelled = {f"{digits[:-1]}.{digits[-1]}": member for digits, member in known.items()}
    choice = f"--compute-capability with one or more of {', '.join(spelled)}"
    for asked in request.options.compute_capabilities:
        if asked not in spelled:
            raise UsageError(f"{library.title} builds for no GPU of compute capability {asked}", remedy=choice)
    if request.options.compute_capabilities:
        return request.options.compute_capabilities
    if request.device == "cpu":
        raise RuntimeUnavailable(f"there is no GPU here that {library.title} could build for", remedy=choice)
    here = describe(request.device).compute_capability
    if here not in spelled:
        raise RuntimeUnavailable(f"{library.title} has nothing for the compute capability {here} of {request.device}", remedy=choice)
    return (here,)


def aim(library: Library, config: Any, wanted: tuple[str, ...]) -> None:
    """Tell a builder that works ahead of time which GPUs the plan is for.

    Raises:
        UnsupportedOperator: it refuses one of them.
    """
    trt = library.trt
    config.num_compute_capabilities = len(wanted)
    for index, text in enumerate(wanted):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + text.replace(".", "")), index):
            raise UnsupportedOperator(f"{library.title} refuses to build for {', '.join(wanted)}", remedy="name fewer of them")


def _demand_half(parsed: Network, config: Any) -> None:
    """Tie every layer that multiplies to FP16: the flag alone lets the builder take FP32 wherever that ran faster while it built."""
    trt, network = parsed.library.trt, parsed.network
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if multiplies(layer):
            layer.precision = trt.DataType.HALF
            for number in range(layer.num_outputs):
                # What a network gives out keeps the type that its ONNX file promises.
                if not layer.get_output(number).is_network_output:
                    layer.set_output_type(number, trt.DataType.HALF)


def _apply(library: Library, config: Any, options: BuildOptions) -> None:
    trt = library.trt
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, HARDWARE_LEVEL)
    if options.tactic_sources:
        known = {name.lower().replace("_", "-"): value for name, value in trt.TacticSource.__members__.items()}
        for name in options.tactic_sources:
            if name not in known:
                raise UnknownName(f"tactic source of {library.title}", name, list(known))
        if not config.set_tactic_sources(sum(1 << int(known[name]) for name in options.tactic_sources)):
            raise UsageError(f"{library.title} refuses the tactic sources {', '.join(options.tactic_sources)}", remedy="name others")


def _flags(trt: Any, config: Any) -> list[str]:
    return [name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)]


def _sources_of(trt: Any, config: Any) -> str | None:
    if not hasattr(config, "get_tactic_sources") or not hasattr(trt, "TacticSource"):
        return None
    mask = int(config.get_tactic_sources())
    return ",".join(name.lower().replace("_", "-") for name, source in trt.TacticSource.__members__.items() if mask >> int(source) & 1)


def _profile(parsed: Network, config: Any, request: ExportRequest) -> dict[str, tuple[tuple[int, ...], ...]]:
    """A profile over every input that has a dynamic batch; also for a fixed batch, which then is the only one."""
    network = parsed.network
    batches = request.options.batches if isinstance(request.batch, str) else (request.batch,) * 3
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(int(size) for size in tensor.shape)
        if -1 in shape[1:]:
            raise UsageError(
                f"the input {tensor.name} has the shape {shape}: more than its batch is dynamic",
                remedy="fix the other sizes (python -m onnxruntime.tools.make_dynamic_shape_fixed) and export that file",
            )
        if shape and shape[0] == -1:
            shapes[tensor.name] = tuple((batch, *shape[1:]) for batch in batches)
        elif isinstance(request.batch, str) or (shape and shape[0] != request.batch):
            raise UsageError(
                f"the input {tensor.name} of the ONNX file has the fixed shape {shape}; batch {request.batch} was asked for",
                remedy=f"--batch {shape[0] if shape else 1}, or export the ONNX file with that batch",
            )
    if shapes:
        profile = parsed.builder.create_optimization_profile()
        for name, (small, best, large) in shapes.items():
            profile.set_shape(name, small, best, large)
        config.add_optimization_profile(profile)
    return shapes
