"""The metric that a user names as `package.module:function`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from accel.errors import UsageError, of_users_code
from accel.verify.accuracy import Metric


def resolve(name: str) -> Metric | None:
    """None for `top1`, else the function: `fn(outputs, labels) -> float`, in percent.

    Raises:
        UsageError: the name is not `package.module:function`, or nothing callable is there.
    """
    if name == "top1":
        return None
    module_name, colon, attribute = name.partition(":")
    remedy = "name it as package.module:function, importable from here; it takes (outputs, labels) and returns a percentage"
    if not colon or not module_name or not attribute:
        raise UsageError(f"{name!r} is not a metric", remedy=remedy)
    here = str(Path.cwd())
    if here not in sys.path:
        # A console script, unlike `python -m`, does not look where it was started; users keep their metric there.
        sys.path.append(here)
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"the metric {name!r} cannot be imported: {error}", remedy=remedy) from error
    except Exception as error:
        raise of_users_code(f"the metric {name!r} cannot be imported", error) from error
    if not callable(function):
        raise UsageError(f"the metric {name!r} is a {type(function).__name__}, not a function", remedy=remedy)
    checked: Metric = function
    return checked
