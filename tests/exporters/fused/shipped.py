"""The intermediate form of the models that accel ships, with their random initial weights."""

from __future__ import annotations

import functools
import importlib

from accel.engines.folding import fold_batchnorm
from accel.exporters.fused import from_torch
from accel.exporters.fused.network import Network, Shape

MODELS = ("student_a", "student_b", "resnet18")


@functools.lru_cache
def read(name: str) -> Network:
    module = importlib.import_module(f"accel.trainers.models.{name}")
    return from_torch.read(fold_batchnorm(getattr(module, "build_deployed", module.build)().eval()), Shape(3, 32, 32))
