"""The EngineEntry of files that were just written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from accel.exporters.request import ExportRequest, plan
from accel.files import sha256_file
from accel.types import EngineEntry


def describe(
    format: str,
    request: ExportRequest,
    started: float,
    *,
    toolchain: Mapping[str, str],
    precision_proof: Mapping[str, Any],
    target: Mapping[str, Any] | None = None,
) -> EngineEntry:
    """Hash the files in `request.folder` and describe them.

    Args:
        started: `time.monotonic()` when the export began.
        toolchain, precision_proof, target: as EngineEntry has them.
    """
    planned = plan(format, request)
    paths = sorted(path for path in request.folder.rglob("*") if path.is_file())
    hashes = {f"{planned.name}/{path.relative_to(request.folder).as_posix()}": sha256_file(path) for path in paths}
    main = planned.files[0]
    return EngineEntry(
        name=planned.name,
        format=format,
        precision=request.precision,
        files={main: hashes.pop(main), **hashes},
        inputs=request.native(request.inputs),
        outputs=request.native(request.outputs),
        toolchain=toolchain,
        built_s=round(time.monotonic() - started, 3),
        target=target or {},
        opset=planned.opset,
        precision_proof=precision_proof,
    )
