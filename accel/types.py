"""The types that the rooms hand to each other. Seconds inside (`_s`); microseconds only where a file or table says `_us`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from accel.errors import UnknownName, UsageError

PRECISIONS = ("fp32", "tf32", "fp16", "fp16-autocast", "bf16")
"""Each is its own: fp32 is IEEE single, tf32 lets matrix units round inputs to 10 mantissa bits."""

RUNTIME_ALIASES = {"ort": "onnxruntime", "trt": "tensorrt"}
"""Short names that may be typed wherever a runtime is named."""

DEFAULT_OPTIONS = ("graph",)
"""Options that some runtimes have without being asked; a minus switches one off, as in `tensorrt:fp16-graph`."""

ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int8": 1, "uint8": 1, "bool": 1}
"""Bytes per element of every dtype that a TensorSpec may name."""

Shape = tuple[int, ...]
Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One input or output of an engine.

    Attributes:
        name: the tensor's name in the engine.
        shape: sizes; a dynamic dimension is a name, as in `("batch", 3, 32, 32)`.
        dtype: a key of ITEMSIZE.
        layout: `NCHW`, `NHWC`, `NC` or `` where none applies.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"
    layout: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in ITEMSIZE:
            raise UnknownName("dtype", self.dtype, list(ITEMSIZE))

    @property
    def is_pixels(self) -> bool:
        """Whether it takes pictures as they are: uint8 N×H×W×C, the input of a model with its preprocessing embedded."""
        return self.dtype == "uint8" and self.layout == "NHWC"

    def accepts(self, shape: Shape) -> bool:
        """Whether `shape` fits; a dynamic dimension takes any size of at least 1."""
        return len(shape) == len(self.shape) and all(
            got >= 1 if isinstance(want, str) else got == want for want, got in zip(self.shape, shape, strict=True)
        )

    def fixed(self, batch: int) -> Shape:
        """The shape with every dynamic dimension replaced by `batch`."""
        return tuple(batch if isinstance(size, str) else size for size in self.shape)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype, "layout": self.layout}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TensorSpec:
        return cls(data["name"], tuple(data["shape"]), data["dtype"], data.get("layout", ""))


@dataclasses.dataclass(frozen=True)
class Variant:
    """What is verified and timed, spelled `RUNTIME:PRECISION[+option…]` everywhere.

    >>> str(Variant.parse("ort:fp16+nhwc+graph"))
    'onnxruntime:fp16+graph+nhwc'
    >>> Variant.parse("trt:fp16-graph").options
    ('-graph',)
    """

    runtime: str
    precision: str
    options: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Variant:
        """Read the spelling; aliases are resolved and options sorted, so equal variants are spelled alike.

        Raises:
            UsageError: no precision is named. UnknownName: the precision is not in PRECISIONS.
        """
        runtime, colon, rest = text.strip().partition(":")
        precision, *options = (word for token in rest.split("+") for word in _words(token))
        if not runtime or not colon or not precision:
            raise UsageError(f"{text!r} is not a variant", remedy="spell it RUNTIME:PRECISION[+option...], as onnxruntime:fp16")
        if precision not in PRECISIONS:
            raise UnknownName("precision", precision, PRECISIONS)
        return cls(RUNTIME_ALIASES.get(runtime, runtime), precision, tuple(sorted(filter(None, options))))

    def __str__(self) -> str:
        options = (option if option.startswith("-") else f"+{option}" for option in self.options)
        return f"{self.runtime}:{self.precision}" + "".join(options)


def _words(token: str) -> list[str]:
    """`fp16-graph` → `fp16`, `-graph`; a hyphen inside a name, as in `reduce-overhead`, is the name's own."""
    for option in DEFAULT_OPTIONS:
        if token.endswith(f"-{option}"):
            return [token.removesuffix(f"-{option}"), f"-{option}"]
    return [token]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A trained model on disk: the one thing that trainers give to exporters.

    Attributes:
        path: the folder that holds `weights.safetensors` and `checkpoint.json`.
        sha256: of `weights.safetensors`.
        factory: `package.module:callable` that builds the untrained nn.Module; called with `factory_args`.
        input: the public input, batch first and dynamic: `("batch", 3, 32, 32)`. Where it `is_pixels`, the preprocessing is a part of the
            model, and `engines.module.build_module` puts it before what the factory builds.
        preprocess: what `accel.preprocess.Preprocess.to_dict` wrote; empty for a model that takes no images.
        labels: class names in the order of the logits; empty where the model is no classifier.
        top1: measured on the dataset's test set, in percent; None if it was not measured.
        recipe: the training recipe as plain data.
    """

    path: Path
    sha256: str
    name: str
    factory: str
    num_classes: int
    input: TensorSpec
    output: TensorSpec
    dataset: str = ""
    factory_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocess: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] = ()
    top1: float | None = None
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"


@dataclasses.dataclass(frozen=True)
class EngineEntry:
    """One engine of a bundle.

    Attributes:
        name: its folder in the bundle, `FORMAT-PRECISION`, as `onnx-fp16`; with `-dynamic` or `-bN` for a batch other than 1, and
            with GPU and version after it where it was rebuilt beside one that is for another machine.
        files: path relative to the bundle → SHA-256; the first is the one that a runtime opens.
        inputs, outputs: the engine's own names and native dtypes.
        toolchain: what built it: distribution or tool → version; the exporter's name under `exporter`.
        target: what it is tied to, `{}` for a portable file: `compute_capability`, `gpu`, `isa`, `torch`, … (see engines/compat.py).
        opset: of an ONNX file, else None.
        precision_proof: how the precision was read back from the file, for instance `{"float16": 43, "float32": 0}` initialisers.
        parity: `{"status": "passed"|"failed"|"not run", "reason", "max_abs_err", "max_rel_err", "limit", "argmax_mismatches"}`.
        built_s: export or build time in seconds.
    """

    name: str
    format: str
    precision: str
    files: Mapping[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    toolchain: Mapping[str, str]
    built_s: float
    target: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    opset: int | None = None
    precision_proof: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parity: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data["inputs"] = [spec.to_dict() for spec in self.inputs]
        data["outputs"] = [spec.to_dict() for spec in self.outputs]
        return {key: dict(value) if isinstance(value, Mapping) else value for key, value in data.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EngineEntry:
        values = dict(data)
        values["inputs"] = tuple(TensorSpec.from_dict(item) for item in values["inputs"])
        values["outputs"] = tuple(TensorSpec.from_dict(item) for item in values["outputs"])
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One launch of a GPU kernel.

    Attributes:
        name: an `extern "C"` symbol of the source.
        grid, block: CTAs and threads of a CTA, both one-dimensional.
        shared: dynamic shared memory of a CTA in bytes.
        cluster: CTAs of a cluster; above 8 it needs the attribute for sizes that are not portable.
        cooperative: all CTAs must be resident at once (they wait for one another); such a kernel is never launched otherwise.
        dependent: may begin before the kernel in front of it has ended (programmatic stream serialization); it waits itself.
        layers: names of the layers that it computes, for tables and errors.
        reads_image: whether it looks at its first argument, so that it must be told when the image is somewhere else.
    """

    name: str
    grid: int
    block: int
    shared: int = 0
    cluster: int = 1
    cooperative: bool = False
    dependent: bool = False
    layers: tuple[str, ...] = ()
    reads_image: bool = True


@dataclasses.dataclass(frozen=True)
class Resources:
    """What the assembler says of one GPU kernel.

    Attributes:
        registers: of a thread. spills: bytes of them that a thread stores to memory and reads back. shared: static shared memory in bytes.
    """

    registers: int
    spills: int = 0
    shared: int = 0


@dataclasses.dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous tensor in the memory of one device, whoever allocated it.

    Attributes:
        ptr: address of the first element on `device`.
        dtype: a key of ITEMSIZE; `bfloat16` has no numpy dtype and is stored as uint16.
        device: `cpu` or `cuda:N`.
        owner: keeps the memory alive; a numpy array when `device` is `cpu`.
    """

    ptr: int
    shape: Shape
    dtype: str
    device: str
    owner: Any = dataclasses.field(repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count * ITEMSIZE[self.dtype]

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        # hasattr() must be False on a CPU: consumers take the attribute's presence as "this is on a GPU".
        if not self.device.startswith("cuda"):
            raise AttributeError("__cuda_array_interface__: the array is on the CPU")
        storage = np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)
        return {"shape": self.shape, "typestr": storage.str, "data": (self.ptr, False), "version": 3, "strides": None}

    @classmethod
    def of_numpy(cls, array: Array, dtype: str | None = None) -> DeviceArray:
        """Wrap a C-contiguous numpy array without a copy; `dtype` says what uint16 storage means."""
        if not array.flags.c_contiguous:
            raise UsageError("the array is not C-contiguous", remedy="pass numpy.ascontiguousarray(array)")
        return cls(array.ctypes.data, array.shape, dtype or str(array.dtype), "cpu", array)


@dataclasses.dataclass
class Binding:
    """Inputs that a runtime has checked once and keeps alive; `native` is what the runtime itself made of them."""

    inputs: Mapping[str, DeviceArray]
    native: Any = None


@dataclasses.dataclass(frozen=True)
class EngineSource:
    """All that a runtime needs to make itself: resolved by api or by the worker, checked before it is handed over.

    Attributes:
        device: `cpu` or `cuda:N`.
        inputs, outputs: the public specs; the native ones are the runtime's own answer.
        batch: what a dynamic batch dimension is set to.
        entry, file: the engine of the bundle that the variant runs; None for eager and compile.
        module: builds the FP32 nn.Module in eval mode as it was trained; None where torch is not needed.
        threads: intra-op threads on a CPU; None leaves the runtime's default.
        parity_only: run once to compare numbers, on kernels that nobody would deploy (FP16 on a CPU).
        loaded: called once inside `open`, when the library and what it runs (a plan, a package, a module with its weights) are in
            memory and before anything is compiled, warmed up or captured. A runtime that reads and builds in one step calls it
            before that step. Whoever times the opening passes it: runtimes have no clock.
    """

    variant: Variant
    device: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: int = 1
    entry: EngineEntry | None = None
    file: Path | None = None
    module: Callable[[], Any] | None = None
    threads: int | None = None
    parity_only: bool = False
    loaded: Callable[[], None] = dataclasses.field(default=lambda: None, repr=False, compare=False)


class Runtime(Protocol):
    """One engine on one thread and one stream; inert until opened.

    `enqueue` is the timed call. It makes the backend's bind call or, for static inputs, one device-to-device copy per input,
    launches and returns: no validation, allocation of ours, logging, event or synchronisation. On a CPU it is the whole blocking call.
    """

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Native names, dtypes and (fixed) shapes; known after open."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def home(self) -> Binding:
        """The binding of the runtime's own static input buffers, for callers that copy into them."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What really runs, read back from the backend after open, for the record and the refusals.

        Keys where they apply: `runtime_version`, `precision` (effective), `tf32_matmul`, `tf32_conv`, `provider`,
        `gpu_nodes`, `cpu_nodes`, `placement` (nodes by provider), `graph_nodes`, `recompiles`, `options`, `settings`,
        `build_cached` (whether open took what it would have compiled from a cache on the disk), `provider_options`,
        `fallback` (a reason, if compile fell back).
        """

    def open(self, stream: int | None) -> None:
        """Load onto the caller's stream (None on a CPU, never 0); may synchronise, allocate, compile, warm up, capture."""

    def prepare(self, inputs: Mapping[str, DeviceArray]) -> Binding:
        """Check names, shapes, dtypes and device once, untimed; the binding holds references.

        Raises:
            UsageError: which tensor, what was expected and what was received.
        """

    def enqueue(self, binding: Binding) -> None: ...

    def output(self, binding: Binding) -> Mapping[str, DeviceArray]:
        """Results by name, borrowed until the next enqueue; on a GPU valid only after the stream was synchronised."""

    def close(self) -> None: ...
