"""Was what ran what was asked for? The runtime's facts, read back after open, against the variant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel.types import Variant

_ON = {True: True, "tf32": True, False: False, "ieee": False, "none": False, "": False}
"""How backends spell whether TF32 is on → whether it is; anything else is unknown."""


def tf32(value: Any) -> bool | None:
    return _ON.get(value)


def mismatch(facts: Mapping[str, Any], variant: Variant, device: str) -> str:
    """Why the run is INVALID, or an empty string. A fact that the backend does not tell is not held against it."""
    effective = facts.get("precision")
    if effective is not None and effective != variant.precision:
        return f"{variant.precision} was asked for and {effective} was computed"
    if not device.startswith("cuda"):
        return ""
    for key in ("tf32_matmul", "tf32_conv"):
        found = tf32(facts.get(key))
        if variant.precision in ("fp32", "tf32") and found is not None and found != (variant.precision == "tf32"):
            return f"{variant.precision} was asked for and {key} is {'on' if found else 'off'}"
    if facts.get("cpu_nodes"):
        return f"{facts['cpu_nodes']} nodes of the graph ran on the CPU although {device} was asked for"
    return ""


def recompiled(facts: Mapping[str, Any]) -> str:
    """Why a timed run is INVALID although it computed the right thing, or an empty string."""
    count = facts.get("recompiles")
    return f"the model was compiled again {count} times while it was timed" if count else ""
