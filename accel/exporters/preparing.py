"""The module as every exporter takes it: BatchNorm folded, then cast; and the example it is traced with."""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from accel.engines.folding import fold_batchnorm
from accel.engines.running import as_tensors
from accel.errors import UnsupportedOperator, UsageError
from accel.exporters.request import DTYPES, ExportRequest
from accel.optional import require
from accel.types import TensorSpec

_OPERATOR = re.compile(
    r"operator '(?:aten::)?([\w:]+)'"
    r"|OpOverload\(op='([\w.]+)'"
    r"|\"(\w+)\" not implemented for"
    r"|exporting? (?:operator|the operator) ([\w:]+)",
    re.IGNORECASE,
)
"""How torch's exporters name the operator that stopped them."""


def prepare(request: ExportRequest) -> tuple[Any, tuple[Any, ...]]:
    """Return a copy of the module, ready to be traced, and example inputs in its dtypes.

    The example has batch 2 where the batch is dynamic: a size of 1 would be specialised.

    Raises:
        UsageError: the module does not take the public inputs, or does not give the public outputs.
    """
    torch = require("torch", extra="train")
    module = fold_batchnorm(request.module).requires_grad_(False)
    batch = 2 if isinstance(request.batch, str) else request.batch
    generator = torch.Generator().manual_seed(0)
    example = tuple(_drawn(torch, spec, batch, generator) for spec in request.inputs)
    _check_interface(module, example, request, batch)
    module = module.to(getattr(torch, DTYPES[request.precision]))
    return module, tuple(
        tensor.to(getattr(torch, spec.dtype)) for tensor, spec in zip(example, request.native(request.inputs), strict=True)
    )


def _drawn(torch: Any, spec: TensorSpec, batch: int, generator: Any) -> Any:
    if spec.is_pixels:
        return torch.randint(0, 256, spec.fixed(batch), generator=generator, dtype=torch.uint8)
    return torch.randn(spec.fixed(batch), generator=generator).to(getattr(torch, spec.dtype))


@contextlib.contextmanager
def tracing(format: str) -> Iterator[None]:
    """Run one of torch's exporters: no gradients, its notices of deprecation silenced, what it prints sent to stderr.

    Raises:
        UnsupportedOperator: it failed; the message names the operator and the reason, the cause is chained.
    """
    torch = require("torch", extra="train")
    with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
        # TracerWarning stays visible: it tells that the trace may not hold for other inputs.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        try:
            yield
        except RuntimeError as error:
            raise unsupported(format, error) from error


def unsupported(format: str, error: BaseException) -> UnsupportedOperator:
    """Say which operator `format` could not express, as far as `error` or one of its causes tells."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    texts = [str(link) for link in chain]
    found = next(filter(None, map(_OPERATOR.search, texts)), None)
    reason = texts[-1].strip().partition("\n")[0] if found is None else _line_of(found)
    what = "the model" if found is None else f"the operator {next(filter(None, found.groups()))}"
    return UnsupportedOperator(
        f"{what} cannot be exported to {format}: {reason}",
        remedy="replace it in the model by operators that the format has, or try another --opset, --precision or --to",
    )


def _line_of(found: re.Match[str]) -> str:
    start = found.string.rfind("\n", 0, found.start()) + 1
    end = found.string.find("\n", found.end())
    return found.string[start : end if end >= 0 else None].strip()


def _check_interface(module: Any, example: tuple[Any, ...], request: ExportRequest, batch: int) -> None:
    torch = require("torch", extra="train")
    asked = ", ".join(f"{spec.name} {spec.dtype} {spec.fixed(batch)}" for spec in request.inputs)
    try:
        with torch.no_grad():
            answers = as_tensors(module(*example))
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"the model does not take {asked}: {error}", remedy="give the input that it was trained with (--input)") from error
    shapes = [tuple(answer.shape) for answer in answers]
    wanted = [spec.fixed(batch) for spec in request.outputs]
    if shapes != wanted:
        raise UsageError(f"for {asked} the model answers with the shapes {shapes}; {wanted} was declared")
