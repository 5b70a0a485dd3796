"""One harness that times every runtime: workers in processes of their own, one record, statistics derived from samples.

The names are resolved lazily, so that a worker imports only what its one run needs.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "BenchSettings": "accel.bench.settings",
    "MeasurementPlan": "accel.bench.plan",
    "ResultSet": "accel.bench.results",
    "read_rows": "accel.bench.results",
    "render": "accel.bench.report",
    "run_set": "accel.bench.coordinate",
    "verify_variants": "accel.bench.verification",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
