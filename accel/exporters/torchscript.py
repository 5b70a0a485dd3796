"""TorchScript: a traced module with BatchNorm folded; freezing and fusing is the runtime's. Deprecated by torch, absent on Python 3.14."""

from __future__ import annotations

import io
import time
from collections import Counter
from typing import Any

from accel.engines.embedding import is_constant
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
        traced = torch.jit.trace(module, example, check_trace=False)
        unbind_convolutions(traced)
        torch.jit.save(traced, buffer)
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


def unbind_convolutions(traced: Any) -> None:
    """Rewrite the traced convolutions, in place, to the form that leaves cuDNN's settings to whoever runs them.

    A trace freezes the settings of the tracing process into each `aten::_convolution` as constants: `benchmark` false and
    `allow_tf32` true, so that an FP32 file would compute in TF32 on a GPU whatever the runtime asks for.
    """
    for module in traced.modules():
        graph = getattr(module, "graph", None)
        if graph is None:
            continue
        for node in graph.findAllNodes("aten::_convolution", recurse=True):
            tensor, weight, bias, stride, padding, dilation, transposed, output_padding, groups = list(node.inputs())[:9]
            plain = transposed.toIValue() is False and len(list(stride.node().inputs())) == 2
            # torch's freezing passes know conv2d; the general form is for the rest.
            name, inputs = (
                ("aten::conv2d", (tensor, weight, bias, stride, padding, dilation, groups))
                if plain
                else ("aten::convolution", (tensor, weight, bias, stride, padding, dilation, transposed, output_padding, groups))
            )
            unbound = graph.create(name, inputs, 1)
            unbound.insertBefore(node)
            unbound.output().setType(node.output().type())
            node.output().replaceAllUsesWith(unbound.output())
            node.destroy()


def prove(loaded: Any, precision: str) -> dict[str, Any]:
    """Count the dtypes of the parameters and buffers of a loaded TorchScript module; those of an embedded preprocessing are not its own.

    Raises:
        PrecisionError: a floating one is not of the precision asked for.
    """
    tensors = [item for item in (*loaded.named_parameters(), *loaded.named_buffers()) if not is_constant(item[0])]
    wrong = [name for name, tensor in tensors if tensor.is_floating_point() and _dtype(tensor) != DTYPES[precision]]
    if wrong:
        raise PrecisionError(f"{precision} was asked for; {len(wrong)} weights of the TorchScript file are not, the first is {wrong[0]}")
    return {"weights": dict(Counter(_dtype(tensor) for _, tensor in tensors))}


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")
