"""The checkpoint's module as it was trained, called by torch."""

from __future__ import annotations

from typing import Any

from accel.runtimes.torch_module import load_module
from accel.runtimes.torch_runtime import TorchRuntime


class Eager(TorchRuntime):
    """Options: `fold` (BatchNorm into the convolutions), `channels_last`, `graph` (the calls recorded as one CUDA graph)."""

    def _load(self, torch: Any) -> Any:
        return load_module(torch, self.source)
