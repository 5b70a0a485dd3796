"""The literal table of runtimes, and the questions that it answers without importing any of them."""

from __future__ import annotations

import dataclasses

from accel.errors import RuntimeUnavailable, UnknownName, UsageError
from accel.optional import version_of
from accel.types import RUNTIME_ALIASES, Variant


@dataclasses.dataclass(frozen=True)
class RuntimeInfo:
    """One runtime.

    Attributes:
        factory: `module:callable`, called with an EngineSource; imported when one is made.
        format: of the bundle's entries that it runs; None for what runs the checkpoint itself.
        precisions: what it can be asked for.
        options: what may follow the precision in a variant.
        distributions: packages whose version is the runtime's; the first that is installed counts.
        extra: of accel-engines, that installs it.
        exclusive: groups of options; of each group at most one may be given.
        showcase: device kind → option sets that `all` runs there.
        beyond: options that need a package which the extra does not install. `all` and the bare name show what is missing of them
            and fail nothing; typed in a variant, they are a request.
        gpu_only: why a CPU never runs it, not even to compare numbers; empty where it can.
        built_in: options that an engine has only if its toolchain lists them under `schedules`; the others are not shown.
    """

    factory: str
    format: str | None
    precisions: tuple[str, ...]
    options: tuple[str, ...]
    distributions: tuple[str, ...]
    extra: str
    exclusive: tuple[tuple[str, ...], ...] = ()
    showcase: dict[str, tuple[tuple[str, ...], ...]] = dataclasses.field(default_factory=lambda: {"cpu": ((),), "cuda": ((),)})
    beyond: tuple[str, ...] = ()
    gpu_only: str = ""
    built_in: tuple[str, ...] = ()


_TORCH_PRECISIONS = ("fp32", "tf32", "fp16", "fp16-autocast", "bf16")

RUNTIMES: dict[str, RuntimeInfo] = {
    "eager": RuntimeInfo(
        factory="accel.runtimes.eager:Eager",
        format=None,
        precisions=_TORCH_PRECISIONS,
        options=("channels_last", "fold", "graph"),
        distributions=("torch",),
        extra="train",
        # The last, because cuDNN's FP16 kernels for dense convolutions want channels_last; depthwise ones may be slower in it.
        showcase={"cpu": ((),), "cuda": ((), ("fold",), ("graph",), ("fold", "graph"), ("channels_last", "fold", "graph"))},
    ),
    "compile": RuntimeInfo(
        factory="accel.runtimes.compile:Compile",
        format=None,
        precisions=_TORCH_PRECISIONS,
        options=("channels_last", "fold", "freezing", "max-autotune", "reduce-overhead"),
        distributions=("torch",),
        extra="train",
        exclusive=(("max-autotune", "reduce-overhead"),),
        # Freezing is shown once, with CUDA graphs, which take the launches out of the picture. With max-autotune it has to be named: its
        # kernels are searched for anew, minutes for a small network, beside the minutes of max-autotune itself.
        showcase={"cpu": ((),), "cuda": ((), ("reduce-overhead",), ("max-autotune",), ("freezing", "reduce-overhead"))},
    ),
    "torchscript": RuntimeInfo(
        factory="accel.runtimes.torchscript:TorchScript",
        format="torchscript",
        precisions=("fp32", "tf32", "fp16"),
        options=(),
        distributions=("torch",),
        extra="train",
    ),
    "onnxruntime": RuntimeInfo(
        factory="accel.runtimes.onnxruntime:OnnxRuntime",
        format="onnx",
        precisions=("fp32", "tf32", "fp16"),
        options=("graph", "nhwc", "rtx-ep", "trt-ep"),
        distributions=("onnxruntime-gpu", "onnxruntime"),
        extra="ort",
        exclusive=(("graph", "rtx-ep", "trt-ep"), ("nhwc", "rtx-ep", "trt-ep")),
        showcase={"cpu": ((),), "cuda": ((), ("graph",), ("nhwc",), ("graph", "nhwc"), ("trt-ep",), ("rtx-ep",))},
        beyond=("rtx-ep", "trt-ep"),
    ),
    "aoti": RuntimeInfo(
        factory="accel.runtimes.aoti:Aoti",
        format="aoti",
        # Not tf32: whether Inductor's own kernels may use it was decided when the file was compiled, in IEEE arithmetic.
        precisions=("fp32", "fp16"),
        options=("graph",),
        distributions=("torch",),
        extra="train",
        showcase={"cpu": ((),), "cuda": ((), ("graph",))},
    ),
    # Options and packages of the two are those of accel.trt.FLAVORS, written out: this table is read without importing anything.
    "tensorrt": RuntimeInfo(
        factory="accel.runtimes.tensorrt:TensorRT",
        format="tensorrt",
        precisions=("fp32", "fp16"),
        options=("-graph",),
        distributions=("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
        extra="trt",
        showcase={"cpu": ((),), "cuda": ((), ("-graph",))},
        gpu_only="TensorRT runs on NVIDIA GPUs only",
    ),
    "tensorrt-rtx": RuntimeInfo(
        factory="accel.runtimes.tensorrt:TensorRT",
        format="tensorrt-rtx",
        precisions=("fp32", "fp16"),
        options=("-graph",),
        distributions=("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu13-bindings"),
        extra="rtx",
        showcase={"cpu": ((),), "cuda": ((), ("-graph",))},
        gpu_only="TensorRT-RTX runs on NVIDIA GPUs only",
    ),
    "fused": RuntimeInfo(
        factory="accel.runtimes.fused:Fused",
        format="fused",
        precisions=("fp16",),
        options=("-graph", "chain", "cluster", "grid"),
        # What launches it; NVRTC is needed only where an engine has no machine code for the GPU.
        distributions=("cuda-bindings",),
        extra="fused",
        exclusive=(("chain", "grid", "cluster"),),
        showcase={"cpu": ((),), "cuda": ((), ("chain",), ("grid",), ("cluster",))},
        gpu_only="a fused engine runs on NVIDIA GPUs only",
        built_in=("chain", "grid", "cluster"),
    ),
}

_ON_A_CPU = {  # precision or option → why a CPU does not run it
    "fp16": "no FP16 kernels on this CPU",
    "fp16-autocast": "no FP16 kernels on this CPU",
    "tf32": "TF32 exists on NVIDIA GPUs only",
    "reduce-overhead": "CUDA graphs exist on NVIDIA GPUs only",
    "graph": "CUDA graphs exist on NVIDIA GPUs only",
    "nhwc": "this layout is an option of ONNX Runtime's CUDA provider only",
    "trt-ep": "TensorRT exists on NVIDIA GPUs only",
    "rtx-ep": "TensorRT-RTX exists on NVIDIA GPUs only",
}

_IN_TF32 = "this provider builds FP32 models with TF32 and has no option to forbid it; tf32 and fp16 are what it can honestly run"
_NOWHERE = {  # (option, precision) → why no device runs the two together
    ("trt-ep", "fp32"): _IN_TF32,
    ("rtx-ep", "fp32"): _IN_TF32,
}


def info(name: str) -> RuntimeInfo:
    """The table's row for `name` (`ort` means onnxruntime).

    Raises:
        UnknownName: there is no such runtime.
    """
    found = RUNTIMES.get(RUNTIME_ALIASES.get(name, name))
    if found is None:
        raise UnknownName("runtime", name, list(RUNTIMES))
    return found


def version(name: str) -> str | None:
    """The installed version of what `name` runs on, without importing it; None where it is not installed."""
    return version_of(*info(name).distributions)


def check(variant: Variant) -> None:
    """Hold a variant against the table.

    Raises:
        UnknownName: no such runtime, or no such option of it. UsageError: a precision that it does not have, or two options
        that exclude each other.
    """
    row = info(variant.runtime)
    if variant.precision not in row.precisions:
        raise UsageError(
            f"{variant.runtime} cannot run {variant.precision}", remedy=f"choose one of its precisions: {', '.join(row.precisions)}"
        )
    for option in variant.options:
        if option not in row.options:
            raise UnknownName(f"option of {variant.runtime}", option, row.options or ("none",))
    for group in row.exclusive:
        if len(clash := [option for option in variant.options if option in group]) > 1:
            raise UsageError(
                f"{variant} asks for {' and '.join(clash)} at once", remedy=f"keep one of them: {variant.runtime}:…+{clash[0]}"
            )


def refusal(variant: Variant, device: str, parity_only: bool = False) -> str | None:
    """Why this variant is not run on `device` (`cpu` or `cuda:N`), or None.

    Args:
        parity_only: to compare numbers once, kernels will do that nobody would deploy.
    """
    if device != "cpu":
        return next((_NOWHERE[pair] for option in variant.options if (pair := (option, variant.precision)) in _NOWHERE), None)
    gpu_only = info(variant.runtime).gpu_only
    if gpu_only or parity_only:
        return gpu_only or None
    return next((_ON_A_CPU[word] for word in (variant.precision, *variant.options) if word in _ON_A_CPU), None)


def demand(variant: Variant, device: str, parity_only: bool = False) -> None:
    """Raise what `refusal` says.

    Raises:
        RuntimeUnavailable: the variant is not run on this device.
    """
    reason = refusal(variant, device, parity_only)
    if reason is not None:
        other = "another runtime" if info(variant.runtime).gpu_only else "fp32"
        raise RuntimeUnavailable(f"{variant} was asked for on {device}: {reason}", remedy=f"run it with --device cuda, or use {other}")
