"""From an nn.Module to an engine file, one file a format; reached by name through one table.

>>> from accel import exporters
>>> exporters.plan("onnx", request).name  # doctest: +SKIP
'onnx-fp16'
>>> entry = exporters.export("onnx", request)  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accel.errors import UnknownName
from accel.exporters.formats import FORMATS, FormatInfo, resolve
from accel.exporters.options import BuildOptions
from accel.exporters.request import ExportPlan, ExportRequest, plan
from accel.types import EngineEntry

EXPORTERS: dict[str, str] = {
    "onnx": "accel.exporters.onnx:export",
    "torchscript": "accel.exporters.torchscript:export",
    "aoti": "accel.exporters.aoti:export",
    "tensorrt": "accel.exporters.tensorrt:export",
    "tensorrt-rtx": "accel.exporters.tensorrt:export_rtx",
    "fused": "accel.exporters.fused.exporting:export",
}
"""Format → what writes it: called with an ExportRequest, returns the EngineEntry without its parity."""

__all__ = [
    "EXPORTERS",
    "FORMATS",
    "BuildOptions",
    "ExportPlan",
    "ExportRequest",
    "FormatInfo",
    "details",
    "export",
    "get",
    "is_current",
    "plan",
    "resolve",
]


def get(format: str) -> Callable[[ExportRequest], EngineEntry]:
    """The exporter of `format`, imported.

    Raises:
        UnknownName: there is none.
    """
    if format not in EXPORTERS:
        raise UnknownName("export format", format, list(EXPORTERS))
    exporter: Any = _imported(EXPORTERS[format])
    return exporter  # type: ignore[no-any-return]


def export(format: str, request: ExportRequest) -> EngineEntry:
    """Write the engine into `request.folder` and describe it; the bundle is not touched (`engines.add` does that).

    Returns:
        An entry whose files are keyed relative to the bundle (`onnx-fp16/model.onnx`) and whose parity is empty.

    Raises:
        UnknownName: the format. UsageError: the format has no such precision or opset, or the module does not take the input.
        UnsupportedOperator: the format cannot express the model. PrecisionError: the file is not in the precision asked for.
        MissingExtra: torch or onnx is absent. DiskFull: the disk filled up.
    """
    exporter = get(format)
    plan(format, request)
    return exporter(request)


def is_current(entry: EngineEntry, request: ExportRequest) -> bool:
    """Whether `entry`, whose files are whole, is what `export` would make of `request` now.

    Raises:
        AccelError: as `export`, where that cannot be told.
    """
    if request.opset not in (None, entry.opset):
        return False
    asked = FORMATS[entry.format].current
    return True if asked is None else bool(_imported(asked)(entry, request))


def details(entry: EngineEntry, file: Path) -> list[dict[str, Any]]:
    """What the format can tell of the engine in `file` as rows of a table; none of a format that this accel does not know.

    Raises:
        CorruptArtifact: the file is not what the format writes.
    """
    info = FORMATS.get(entry.format)
    found: list[dict[str, Any]] = [] if info is None or info.details is None else _imported(info.details)(file)
    return found


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
