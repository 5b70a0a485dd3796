"""Export a trained model to engines, verify each on the real test set, time each at batch 1, and load the fastest that is right.

>>> import accel
>>> engine = accel.load("engines/resnet18.accel")   # doctest: +SKIP
>>> logits = engine(images)                         # doctest: +SKIP

Nothing heavy is imported until a name below is used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accel.api import bench, export, load, predict, train, verify

__all__ = ["__version__", "bench", "export", "load", "predict", "train", "verify"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("accel.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _CallableRoom(ModuleType):
    """`accel.bench` and `accel.verify` are rooms as well as functions of the face: calling the room calls the function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module("accel.api"), self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Face(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds an imported room to its name here, and would hide the function of the same name.
        if name in __all__ and isinstance(value, ModuleType):
            value.__class__ = _CallableRoom
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
