"""An FP32 nn.Module made ready for a variant: folded, on its device, in its dtype and memory format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accel.errors import AccelError
from accel.types import EngineSource

_PARAMETERS = {"fp16": "float16", "bf16": "bfloat16"}
"""Precisions that convert the weights; the others leave them in float32."""


def load_module(torch: Any, source: EngineSource) -> Any:
    """The module of `source` in eval mode on its device; `fold` and `channels_last` as the variant says."""
    if source.module is None:
        raise AccelError(f"{source.variant} was given no module to run", remedy="resolve it with runtimes.engine_source")
    module = source.module().eval()
    if "fold" in source.variant.options:
        from accel.engines.folding import fold_batchnorm

        module = fold_batchnorm(module)
    module = module.requires_grad_(False).to(source.device)
    if dtype := _PARAMETERS.get(source.variant.precision):
        module = module.to(getattr(torch, dtype))
    if "channels_last" in source.variant.options:
        module = module.to(memory_format=torch.channels_last)
    return module


def under_autocast(torch: Any, source: EngineSource, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` itself, or inside an autocast region of its own per call, as a user of autocast writes it."""
    if source.variant.precision != "fp16-autocast":
        return call
    region = torch.autocast(source.device.partition(":")[0], dtype=torch.float16)

    def cast(*inputs: Any) -> Any:
        with region:
            return call(*inputs)

    return cast
