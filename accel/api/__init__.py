"""The public face written out: wires the rooms. Each name is resolved when it is used, so that a command imports only its own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accel.api.benching import bench
    from accel.api.comparing import compare
    from accel.api.evaluating import evaluate
    from accel.api.exporting import Exported, export
    from accel.api.loading import load
    from accel.api.predicting import predict
    from accel.api.reporting import report
    from accel.api.selfchecking import selfcheck
    from accel.api.serving import serve
    from accel.api.sweeping import sweep
    from accel.api.tour import demo
    from accel.api.training import train
    from accel.api.tuning import tune
    from accel.api.verifying import verify

_HOMES = {
    "Exported": "accel.api.exporting",
    "bench": "accel.api.benching",
    "compare": "accel.api.comparing",
    "demo": "accel.api.tour",
    "evaluate": "accel.api.evaluating",
    "export": "accel.api.exporting",
    "load": "accel.api.loading",
    "predict": "accel.api.predicting",
    "report": "accel.api.reporting",
    "selfcheck": "accel.api.selfchecking",
    "serve": "accel.api.serving",
    "sweep": "accel.api.sweeping",
    "train": "accel.api.training",
    "tune": "accel.api.tuning",
    "verify": "accel.api.verifying",
}

__all__ = [
    "Exported",
    "bench",
    "compare",
    "demo",
    "evaluate",
    "export",
    "load",
    "predict",
    "report",
    "selfcheck",
    "serve",
    "sweep",
    "train",
    "tune",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
