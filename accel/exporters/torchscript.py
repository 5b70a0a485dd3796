"""TorchScript: a traced module with BatchNorm folded; freezing and fusing is the runtime's. Deprecated by torch, absent on Python 3.14."""

from __future__ import annotations

import io
import time
from collections import Counter
from typing import Any

from accel.errors import PrecisionError
from accel.exporters.describing import describe
from accel.exporters.formats import FORMATS
from accel.exporters.preparing import prepare, tracing
from accel.exporters.request import DTYPES, ExportRequest
from accel.files import disk_errors
from accel.optional import require
from accel.types import EngineEntry

FORMAT = "torchscript"


def export(request: ExportRequest) -> EngineEntry:
    """Trace the module and write `model.ts`; raises as `exporters.export` does."""
    torch = require("torch", extra="train")
    started = time.monotonic()
    module, example = prepare(request)
    buffer = io.BytesIO()
    with tracing(FORMAT):
        # The golden samples prove the trace; torch's own re-run of it would only repeat the example.
        torch.jit.save(torch.jit.trace(module, example, check_trace=False), buffer)
    path = request.folder / FORMATS[FORMAT].file
    with disk_errors(path):
        path.write_bytes(buffer.getvalue())
    with tracing(FORMAT):
        proof = prove(torch.jit.load(str(path), map_location="cpu"), request.precision)
    return describe(
        FORMAT,
        request,
        started,
        toolchain={"exporter": "torch.jit.trace", "torch": torch.__version__},
        precision_proof=proof,
        target={"torch": torch.__version__},
    )


def prove(loaded: Any, precision: str) -> dict[str, Any]:
    """Count the dtypes of the parameters and buffers of a loaded TorchScript module.

    Raises:
        PrecisionError: a floating one is not of the precision asked for.
    """
    tensors = [*loaded.named_parameters(), *loaded.named_buffers()]
    wrong = [name for name, tensor in tensors if tensor.is_floating_point() and _dtype(tensor) != DTYPES[precision]]
    if wrong:
        raise PrecisionError(f"{precision} was asked for; {len(wrong)} weights of the TorchScript file are not, the first is {wrong[0]}")
    return {"weights": dict(Counter(_dtype(tensor) for _, tensor in tensors))}


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")
