"""What an exporter is asked for, whether that can be done, and what would be written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from accel.engines import entry_name
from accel.errors import UnknownName, UsageError
from accel.exporters.formats import FORMATS, FormatInfo
from accel.exporters.options import BuildOptions, flag_of
from accel.progress import Progress, silent
from accel.types import ITEMSIZE, TensorSpec

DTYPES = {"fp32": "float32", "fp16": "float16"}
"""Precision → dtype of the weights, of the computation and of every floating input and output."""


@dataclasses.dataclass(frozen=True)
class ExportRequest:
    """Attributes:
    module: nn.Module in eval mode, FP32, on the CPU, BatchNorm unfolded; it is not changed. None for a format with a source.
    inputs, outputs: public specs, batch first and dynamic; their names become the engine's.
    precision: a key of DTYPES.
    batch: a fixed batch size, or `dynamic`.
    opset: of the ONNX file; None takes the format's own.
    folder: empty; the engine's files are written into it.
    onnx: the file that a format with that source is built from.
    model: how the user named the model, for commands in messages.
    device: `cpu` or `cuda:N`, for formats that are compiled for one, or built on it.
    options: of formats that are built by an optimiser.
    progress: told how far a long build is.
    """

    module: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: str
    folder: Path
    batch: int | str = 1
    opset: int | None = None
    onnx: Path | None = None
    model: str = "MODEL"
    device: str = "cpu"
    options: BuildOptions = dataclasses.field(default_factory=BuildOptions)
    progress: Progress = silent

    def native(self, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        """`specs` as the engine will have them: floating ones in the precision's dtype, the batch fixed unless dynamic."""
        return tuple(
            dataclasses.replace(
                spec,
                shape=spec.shape if isinstance(self.batch, str) else spec.fixed(self.batch),
                dtype=DTYPES[self.precision] if spec.dtype == "float32" else spec.dtype,
            )
            for spec in specs
        )


@dataclasses.dataclass(frozen=True)
class ExportPlan:
    """What an export would write; `size_bytes` is an estimate: the weights alone."""

    name: str
    format: str
    precision: str
    batch: int | str
    opset: int | None
    files: tuple[str, ...]
    size_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "files": list(self.files)}


def plan(format: str, request: ExportRequest) -> ExportPlan:
    """Say what `export` would write, without writing; also what holds the request against the format.

    Raises:
        UnknownName: the format, or a precision that it does not write. UsageError: the batch, the opset or a build option.
    """
    if format not in FORMATS:
        raise UnknownName("export format", format, list(FORMATS))
    info = FORMATS[format]
    if request.precision not in info.precisions:
        raise UnknownName(f"{format} export precision", request.precision, info.precisions)
    batch = request.batch
    if batch != "dynamic" and not (isinstance(batch, int) and batch >= 1):
        raise UsageError(
            f"the batch {batch!r} is neither a positive number nor 'dynamic'", remedy="--batch 1, --batch 8 or --batch dynamic"
        )
    if info.batch is not None and batch != info.batch:
        raise UsageError(
            f"{format} has engines for a batch of {info.batch}; {batch} was asked for", remedy=f"--batch {info.batch}, or another format"
        )
    _check_options(format, info, request)
    name = entry_name(format, request.precision, batch)
    return ExportPlan(
        name=name,
        format=format,
        precision=request.precision,
        batch=batch,
        opset=_opset(format, info, request.opset),
        files=(f"{name}/{info.file}",),
        size_bytes=_size(request),
    )


def _check_options(format: str, info: FormatInfo, request: ExportRequest) -> None:
    for option in request.options.given():
        if option not in info.options:
            takers = [name for name, other in FORMATS.items() if option in other.options]
            raise UsageError(
                f"{flag_of(option)} does not apply to {format}", remedy=f"leave it out, or use it with --to {' or '.join(takers)} alone"
            )
        if option.endswith("_batch") and request.batch != "dynamic":
            raise UsageError(f"{flag_of(option)} was given, but the batch is fixed at {request.batch}", remedy="add --batch dynamic")


def _size(request: ExportRequest) -> int:
    if request.module is not None:
        return sum(int(weight.numel()) for weight in request.module.parameters()) * ITEMSIZE[DTYPES[request.precision]]
    return request.onnx.stat().st_size if request.onnx is not None else 0


def _opset(format: str, info: FormatInfo, asked: int | None) -> int | None:
    if asked is None:
        return info.opset
    if info.opsets is None:
        raise UsageError(f"{format} has no opset; {asked} was asked for", remedy="leave --opset out, or use --to onnx")
    low, high = info.opsets
    if not low <= asked <= high:
        raise UsageError(f"{format} is exported in the opsets {low} to {high}; {asked} was asked for", remedy=f"--opset {info.opset}")
    return asked
