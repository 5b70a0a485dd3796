"""The moments that a grid keeps when it is made to be measured (`generate(..., timed=True)`), and where they lie in State.

An exported source has none: the lines of the templates that call `stamp` are left out of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from accel.exporters.fused.plan import Plan
from accel.types import Array

KERNEL = ("NANOSECONDS_BEGIN", "BEGIN", "AGAIN", "COPYING", "SETTLED", "CLEARED", "END", "NANOSECONDS_END")
"""Of the kernel: the first two in cycles follow one another at once."""
STEP = ("BEGUN", "WEIGHTS", "LOOKED", "PREPARED", "THERE", "SYNCED", "SENT", "MULTIPLIED", "SUMMED", "STORED", "DONE")
"""Of a step, in this order; a step has those of its kind."""
OF_KIND: Mapping[str, tuple[str, ...]] = {
    "convolution": STEP,
    "head": ("BEGUN", "WEIGHTS", "PREPARED", "THERE", "SYNCED", "SUMMED", "MULTIPLIED", "STORED", "DONE"),
    "windows": ("BEGUN", "DONE"),
}
"""A head's means are its SUMMED, its products its MULTIPLIED; it asks when it prepares nothing more."""
STAMPERS = 2
"""Threads of a CTA that keep them: the first of its first warp and of its last."""
BEGIN = ("stamp_nanoseconds(state, NANOSECONDS_BEGIN);", "stamp(state, BEGIN);", "stamp(state, AGAIN);")
END = ("stamp(state, END);", "stamp_nanoseconds(state, NANOSECONDS_END);")
"""Lines at both ends of the kernel."""

_CALL = re.compile(r"^ *stamp<L>\(.*\);\n", re.MULTILINE)


def words(plan: Plan) -> int:
    """Of one thread."""
    return len(KERNEL) + len(STEP) * len(plan.steps)


def place(moment: str, number: int = 0) -> int:
    """Of a moment of step `number`, from 1; 0: of the kernel. As stamps.cuh has it."""
    return KERNEL.index(moment) if number == 0 else len(KERNEL) + (number - 1) * len(STEP) + STEP.index(moment)


def without_calls(template: str) -> str:
    return _CALL.sub("", template)


def prelude(plan: Plan, at: int) -> str:
    """The constants of stamps.cuh; `at`: the first word of State that is theirs."""
    return "\n".join(
        [
            f"constexpr int STAMPS = {words(plan)}, STAMPS_AT = {at}, KERNEL_STAMPS = {len(KERNEL)}, STEP_STAMPS = {len(STEP)};",
            f"enum KernelMoment {{ {', '.join(KERNEL)} }};",
            f"enum StepMoment {{ {', '.join(STEP)} }};",
            "",
        ]
    )


def around(number: int, call: str) -> list[str]:
    """The lines of the kernel that make a step."""
    name = f"KERNEL_STAMPS + {number - 1} * STEP_STAMPS"
    return [f"    stamp(state, {name} + BEGUN);", call, f"    stamp(state, {name} + DONE);"]


def taken(state: Array, plan: Plan, ctas: int) -> Array:
    """CTAs × threads × moments out of the bytes of State, in which they are the last."""
    size = ctas * STAMPERS * words(plan)
    return state.view(np.uint32)[-size:].reshape(ctas, STAMPERS, words(plan)).copy()
