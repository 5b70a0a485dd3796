"""What an exporter is asked for, whether that can be done, and what would be written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from accel.engines import entry_name
from accel.errors import UnknownName, UsageError
from accel.exporters.formats import FORMATS, FormatInfo
from accel.types import ITEMSIZE, TensorSpec

DTYPES = {"fp32": "float32", "fp16": "float16"}
"""Precision → dtype of the weights, of the computation and of every floating input and output."""


@dataclasses.dataclass(frozen=True)
class ExportRequest:
    """Attributes:
    module: nn.Module in eval mode, FP32, on the CPU, BatchNorm unfolded; it is not changed.
    inputs, outputs: public specs, batch first and dynamic; their names become the engine's.
    precision: a key of DTYPES.
    batch: a fixed batch size, or `dynamic`.
    opset: of the ONNX file; None takes the format's own.
    folder: empty; the engine's files are written into it.
    device: `cpu` or `cuda:N`, for formats that are compiled for one.
    """

    module: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: str
    folder: Path
    batch: int | str = 1
    opset: int | None = None
    device: str = "cpu"

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
        UnknownName: the format, or a precision that it does not write. UsageError: the batch or the opset.
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
    name = entry_name(format, request.precision, batch)
    return ExportPlan(
        name=name,
        format=format,
        precision=request.precision,
        batch=batch,
        opset=_opset(format, info, request.opset),
        files=(f"{name}/{info.file}",),
        size_bytes=sum(weight.numel() for weight in request.module.parameters()) * ITEMSIZE[DTYPES[request.precision]],
    )


def _opset(format: str, info: FormatInfo, asked: int | None) -> int | None:
    if asked is None:
        return info.opset
    if info.opsets is None:
        raise UsageError(f"{format} has no opset; {asked} was asked for", remedy="leave --opset out, or use --to onnx")
    low, high = info.opsets
    if not low <= asked <= high:
        raise UsageError(f"{format} is exported in the opsets {low} to {high}; {asked} was asked for", remedy=f"--opset {info.opset}")
    return asked
