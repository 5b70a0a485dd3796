"""Plans built by the TensorRT that is installed, through its network API alone: neither ONNX nor torch is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accel import device, runtimes, trt
from accel.engines import compat
from accel.types import EngineEntry, EngineSource, TensorSpec, Variant

SHAPE = (3, 8, 8)


def installed() -> trt.Library:
    """TensorRT on a GPU that works, or a skip that says what is missing."""
    if runtimes.version("tensorrt") is None:
        pytest.skip("TensorRT is not installed")
    available, reason = device.gpu_available()
    if not available:
        pytest.skip(reason)
    return trt.load("tensorrt")


def build(library: trt.Library, path: Path, precision: str = "fp16", *, dynamic: bool = False, doubles: int = 1) -> Path:
    """`sum = a + b` and `twice = 2 (a + b)`, doubled `doubles` times; with `dynamic` for batches from 1 to 8.

    The dtypes are the precision's, whichever way this version settles it: a builder's flag on 8.6, the network's types from 10 on.
    """
    module = library.trt
    builder = module.Builder(library.log)
    network = builder.create_network(_creation_flags(module))
    dtype = module.float16 if precision == "fp16" else module.float32
    batch = -1 if dynamic else 1
    config = builder.create_builder_config()
    a, b = (network.add_input(name, dtype, (batch, *SHAPE)) for name in ("a", "b"))
    total = network.add_elementwise(a, b, module.ElementWiseOperation.SUM).get_output(0)
    twice = total
    for _ in range(doubles):
        twice = network.add_elementwise(twice, twice, module.ElementWiseOperation.SUM).get_output(0)
    for name, tensor in (("sum", total), ("twice", twice)):
        tensor.name = name
        network.mark_output(tensor)
        if library.version[0] < 10:
            tensor.dtype = dtype
    if library.version[0] < 10 and precision == "fp16":
        config.set_flag(module.BuilderFlag.FP16)
    _without_libraries(module, config)
    if dynamic:
        profile = builder.create_optimization_profile()
        for name in ("a", "b"):
            profile.set_shape(name, (1, *SHAPE), (2, *SHAPE), (8, *SHAPE))
        config.add_optimization_profile(profile)
    with library.listening() as heard:
        plan = builder.build_serialized_network(network, config)
    assert plan is not None, heard
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(plan))
    return path


def source(library: trt.Library, bundle: Path, spelling: str = "tensorrt:fp16", batch: int = 1, **options: Any) -> EngineSource:
    """A source of a plan that is built now, tied to this machine as an export would tie it."""
    variant = Variant.parse(spelling)
    name = f"tensorrt-{variant.precision}"
    file = build(library, bundle / name / "model.plan", variant.precision, **options)
    dtype = "float16" if variant.precision == "fp16" else "float32"
    specs = [tuple(TensorSpec(key, ("batch", *SHAPE), dtype, "NCHW") for key in names) for names in (("a", "b"), ("sum", "twice"))]
    public = [tuple(TensorSpec(spec.name, spec.shape, "float32", spec.layout) for spec in group) for group in specs]
    machine = runtimes.machine("cuda:0")
    target = {"tensorrt": machine.libraries["tensorrt"], "gpu": machine.gpu, "compute_capability": machine.compute_capability}
    entry = EngineEntry(
        name,
        "tensorrt",
        variant.precision,
        {f"{name}/model.plan": ""},
        *specs,
        {},
        0.0,
        target=target,
        precision_proof={"by": "the builder's types"},
    )
    compat.check(entry, "cuda:0", lambda: machine)
    return EngineSource(variant, "cuda:0", *public, batch, entry=entry, file=file)


def _creation_flags(module: Any) -> int:
    """By name: 8.6 needs the batch to be said explicitly, 10 wants typed networks asked for, 11 has only those."""
    flags = module.NetworkDefinitionCreationFlag
    name = "STRONGLY_TYPED" if hasattr(flags, "STRONGLY_TYPED") else "EXPLICIT_BATCH"
    return 1 << int(getattr(flags, name))


def _without_libraries(module: Any, config: Any) -> None:
    """Without cuDNN and cuBLAS, which TensorRT 8.6 may not find; later versions do not have such sources."""
    sources = getattr(module, "TacticSource", None)
    wanted = [getattr(sources, name) for name in ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS") if hasattr(sources, name)]
    if wanted:
        config.set_tactic_sources(sum(1 << int(item) for item in wanted))
