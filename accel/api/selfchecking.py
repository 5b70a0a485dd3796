"""`accel selfcheck`: whether the harness measures right on this machine."""

from __future__ import annotations

import tempfile
from pathlib import Path

from accel import device as devices
from accel.api.settings import resolve
from accel.bench import checking
from accel.bench.launch import spawn
from accel.bench.selfcheck import SelfCheck
from accel.progress import Progress, silent


def selfcheck(device: str | None = None, *, progress: Progress = silent) -> SelfCheck:
    """Make the seven checks of the harness on `device`; on a CPU on a simulated rig, which proves the arithmetic alone.

    Raises:
        MissingExtra: on a GPU torch is needed, whose sleep is counted in clock cycles. DeviceUnavailable: there is no such device.
    """
    settings = resolve({"device": device})
    chosen = devices.parse(settings["device"])
    with tempfile.TemporaryDirectory(prefix="accel-selfcheck-") as folder:
        return checking.check(chosen, settings.table("bench.python"), Path(folder), spawn, progress)
