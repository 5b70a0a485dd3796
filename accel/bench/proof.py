"""Was what ran what was asked for? The runtime's facts, read back after open, against the variant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel.bench.flags import Refused
from accel.types import Variant

_ON = {True: True, "tf32": True, False: False, "ieee": False, "none": False, "": False}
"""How backends spell whether TF32 is on → whether it is; anything else is unknown."""


def tf32(value: Any) -> bool | None:
    return _ON.get(value)


def mismatches(facts: Mapping[str, Any], variant: Variant, device: str) -> list[Refused]:
    """How what ran is not what was asked for. A fact that the backend does not tell is not held against it."""
    found = []
    wrong = _wrong_precision(facts, variant, device)
    if wrong:
        found.append(Refused("PRECISION", wrong))
    if device.startswith("cuda") and facts.get("cpu_nodes"):
        said = f"{facts['cpu_nodes']} nodes of the graph ran on the CPU although {device} was asked for"
        found.append(Refused("CPU_NODES", said))
    return found


def recompiled(facts: Mapping[str, Any]) -> list[Refused]:
    """What is held against a timed run although it computed the right thing."""
    count = facts.get("recompiles")
    if not count:
        return []
    return [Refused("RECOMPILED", f"the model was compiled again {count} time{'' if count == 1 else 's'} while it was timed")]


def _wrong_precision(facts: Mapping[str, Any], variant: Variant, device: str) -> str:
    effective = facts.get("precision")
    if effective is not None and effective != variant.precision:
        return f"{variant.precision} was asked for and {effective} was computed"
    # TF32 exists on a GPU alone.
    for key in ("tf32_matmul", "tf32_conv") if device.startswith("cuda") else ():
        found = tf32(facts.get(key))
        if variant.precision in ("fp32", "tf32") and found is not None and found != (variant.precision == "tf32"):
            return f"{variant.precision} was asked for and {key} is {'on' if found else 'off'}"
    return ""
