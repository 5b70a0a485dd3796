"""What runs an engine. Nothing heavy is imported until a runtime is made, and nothing is loaded until it is opened.

>>> str(info("ort").format)
'onnx'
"""

from __future__ import annotations

import importlib

from accel.runtimes.sources import engine_source, machine, stored_precision
from accel.runtimes.table import RUNTIMES, RuntimeInfo, check, demand, info, refusal, version
from accel.runtimes.variants import variants
from accel.types import EngineSource, Runtime

__all__ = [
    "RUNTIMES",
    "RuntimeInfo",
    "check",
    "create",
    "engine_source",
    "info",
    "machine",
    "refusal",
    "stored_precision",
    "variants",
    "version",
]


def create(source: EngineSource) -> Runtime:
    """The runtime of `source.variant`, inert until `open`.

    Raises:
        UnknownName, UsageError: the table does not have the variant.
        RuntimeUnavailable: it is refused on this device.
    """
    check(source.variant)
    demand(source.variant, source.device, source.parity_only)
    module, _, name = info(source.variant.runtime).factory.partition(":")
    runtime: Runtime = getattr(importlib.import_module(module), name)(source)
    return runtime
