"""AOTInductor: the module compiled ahead of time for one kind of device into a library, in torch's package `.pt2`."""

from __future__ import annotations

import sys
import time
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accel.engines import arithmetic, processor
from accel.engines.embedding import is_constant
from accel.errors import PrecisionError, RuntimeUnavailable
from accel.exporters.describing import describe
from accel.exporters.formats import FORMATS
from accel.exporters.preparing import prepare, tracing
from accel.exporters.request import DTYPES, ExportRequest
from accel.files import disk_errors
from accel.optional import require
from accel.types import EngineEntry

FORMAT = "aoti"
COMPUTE_OPS = frozenset(
    {"conv1d", "conv2d", "conv3d", "convolution", "conv_transpose2d", "linear", "matmul", "mm", "addmm", "bmm", "baddbmm"}
)
"""Where the arithmetic is, by the names of ATen's operators."""

_NO_COMPILER = ("InvalidCxxCompiler", "CppCompileError", "CUDACompileError", "FileNotFoundError")
"""Classes of errors by which Inductor says that a compiler is missing or failed; some are torch's own, and move between versions."""

_SHARED_CXX = (b"libstdc++.so", b"libc++.so")
"""How a library's table of what it needs names the C++ standard library."""


def export(request: ExportRequest) -> EngineEntry:
    """Compile the module for `request.device` and write `model.pt2`; raises as `exporters.export` does.

    FP32 is compiled in IEEE arithmetic: Inductor's own kernels keep the choice between that and TF32 that they were compiled with.

    Raises:
        RuntimeUnavailable: there is no working C++ compiler, or none that finds what a GPU's code needs, or one whose code could not be
            loaded beside torch.
    """
    torch = require("torch", extra="train")
    inductor = require("torch._inductor", extra="train")
    started = time.monotonic()
    module, example = prepare(request)
    module, example = module.to(request.device), tuple(tensor.to(request.device) for tensor in example)
    path = request.folder / FORMATS[FORMAT].file
    settings = inductor_settings(request.device)
    with tracing(FORMAT), arithmetic.ieee(torch):
        program = torch.export.export(module, example, dynamic_shapes=_dynamic_shapes(torch, request), strict=False)
        proof = prove(program, request.precision)
        with disk_errors(path):
            try:
                inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=dict(settings))
            except (RuntimeError, OSError) as error:
                if (compiler := _compiler_error(error)) is not None:
                    raise compiler from error
                raise
            demand_shared_library(path)
    toolchain = {"exporter": "torch._inductor.aoti_compile_and_package", "torch": torch.__version__}
    return describe(
        FORMAT,
        request,
        started,
        toolchain={**toolchain, **{name: str(value).lower() for name, value in settings.items()}},
        precision_proof=proof,
        target=target(torch, request.device),
    )


def is_current(entry: EngineEntry, request: ExportRequest) -> bool:
    """Whether `entry` was compiled for the device of `request`, by this torch, for this processor."""
    return dict(entry.target) == target(require("torch", extra="train"), request.device)


def inductor_settings(device: str) -> dict[str, Any]:
    """What is set against Inductor's defaults, by its own names."""
    # On a CPU its channels-last layout makes every call convert the weights anew: torch.compile took 1.6 times as long with it.
    return {"layout_optimization": False} if device == "cpu" else {}


def target(torch: Any, device: str) -> dict[str, str]:
    """What the library is tied to: torch's minor version, this processor (the host's part too is compiled for it), the GPU's kind."""
    kind = device.partition(":")[0]
    minor = ".".join(torch.__version__.partition("+")[0].split(".")[:2])
    found = {"device": kind, "torch_minor": minor, "isa": processor.machine(), "simd": " ".join(processor.instructions())}
    if kind == "cuda":
        found["compute_capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
    return found


def prove(program: Any, precision: str) -> dict[str, Any]:
    """Count the dtypes of the weights and of what the convolutions and matrix products answer in an exported program.

    Raises:
        PrecisionError: a floating one is not of the precision asked for.
    """
    tensors = {**program.state_dict, **program.constants}
    weights: Counter[str] = Counter(_dtype(tensor) for name, tensor in tensors.items() if _is_floating(tensor) and not is_constant(name))
    compute = Counter(_dtype(node.meta["val"]) for node in program.graph.nodes if _operator(node) in COMPUTE_OPS)
    wrong = [
        f"{what} in {dtype}"
        for what, found in (("weights", weights), ("arithmetic", compute))
        for dtype in found
        if dtype != DTYPES[precision]
    ]
    if wrong:
        raise PrecisionError(f"{precision} was asked for; the exported program has {' and '.join(wrong)}")
    return {"weights": dict(weights), "compute": dict(compute)}


def demand_shared_library(package: Path) -> None:
    """Refuse a package whose library brings a C++ standard library of its own.

    Beside torch's, of another version, its facets of `std::locale` are taken for others: on an H200, where CXX was a GCC that links
    libstdc++ statically, every process that loaded such a package died in a `std::regex` of the generated code.

    Raises:
        RuntimeUnavailable: naming the compiler.
    """
    if not sys.platform.startswith("linux"):
        return
    with zipfile.ZipFile(package) as archive:
        libraries = [name for name in archive.namelist() if name.endswith(".so")]
        alone = [name for name in libraries if not any(shared in archive.read(name) for shared in _SHARED_CXX)]
    if alone:
        builder = require("torch._inductor.cpp_builder", extra="train")
        raise RuntimeUnavailable(
            f"{builder.get_cpp_compiler()} put a C++ standard library of its own into the engine; beside torch's, it can crash the "
            "process that loads it",
            remedy="name a compiler that links libstdc++ dynamically, as CXX=/usr/bin/g++ accel export MODEL --to aoti",
        )


def _dynamic_shapes(torch: Any, request: ExportRequest) -> tuple[Mapping[int, Any], ...] | None:
    specs = [request.native((spec,))[0] for spec in request.inputs]
    # One Dim object a name: the same name on two inputs means the same size.
    dims = {size: torch.export.Dim(size, min=1) for spec in specs for size in spec.shape if isinstance(size, str)}
    if not dims:
        return None
    return tuple({axis: dims[size] for axis, size in enumerate(spec.shape) if isinstance(size, str)} for spec in specs)


def _compiler_error(error: BaseException) -> RuntimeUnavailable | None:
    """What a failed C++ compilation means to a user; None if `error` is another one."""
    link: BaseException | None = error
    while link is not None:
        if type(link).__name__ in _NO_COMPILER:
            reason = next((line for line in str(link).splitlines() if line.strip()), "")
            return RuntimeUnavailable(
                f"AOTInductor could not compile the model's C++ code: {type(link).__name__}: {reason}",
                remedy="apt-get install g++ python3-dev, or name a compiler in CXX; `accel doctor` says which one is found",
            )
        link = getattr(link, "inner_exception", None) or link.__cause__ or link.__context__
    return None


def _operator(node: Any) -> str:
    """`conv2d` of a node that calls `aten.conv2d.default`; empty for one that calls nothing of ATen's."""
    parts = str(node.target).split(".")
    return parts[1] if node.op == "call_function" and len(parts) == 3 and parts[0] == "aten" else ""


def _is_floating(tensor: Any) -> bool:
    return bool(getattr(tensor, "is_floating_point", lambda: False)())


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")
