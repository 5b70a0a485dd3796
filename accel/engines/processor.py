"""This machine's processor, as far as compiled code is tied to it."""

from __future__ import annotations

import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

_ALIASES = {"amd64": "x86_64", "arm64": "aarch64"}
_VECTOR = re.compile(r"avx|sse|ssse|fma|f16c|bmi|abm|popcnt|movbe|gfni|amx|adx")
"""Sets of x86 instructions that a compiler may use by itself; the rest of the flags are the system's business."""


def machine() -> str:
    """The architecture as Linux spells it: `x86_64`, `aarch64`."""
    found = platform.machine().lower()
    return _ALIASES.get(found, found)


def instructions() -> tuple[str, ...]:
    """Names of the instruction sets beyond the architecture's base, sorted, as Linux spells them (`avx2`, `avx512f`, `sve`).

    Empty where the system does not tell.
    """
    if not CPUINFO.is_file():
        return ()
    for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return tuple(sorted(flag for flag in set(value.split()) if _VECTOR.match(flag)))
        if key.strip() == "Features":  # so the line is called on aarch64
            return tuple(sorted(set(value.split())))
    return ()
