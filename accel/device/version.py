"""The version of NVIDIA's driver, read without starting it."""

from __future__ import annotations

import re
from pathlib import Path

_MODULE = Path("/proc/driver/nvidia/version")


def driver_version() -> str | None:
    """Of the kernel module, as `580.65.06`; None where there is none."""
    try:
        text = _MODULE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(r"Kernel Module.*?(\d+\.\d+(?:\.\d+)?)", text)
    return match.group(1) if match else None
