"""What NVML (nvidia-ml-py) tells of one GPU, read only. What it does not tell, or fails to, is None."""

from __future__ import annotations

import contextlib
import dataclasses
from types import TracebackType
from typing import Any

from accel.errors import DeviceUnavailable
from accel.optional import require

MIB = 1 << 20

_UNKNOWN_HERE = (2, 3, 4, 13, 25)
"""InvalidArgument, NotSupported, NoPermission, FunctionNotFound, ArgumentVersionMismatch: the next call would say the same."""

_CALLS = {
    "sm_clock": ("nvmlDeviceGetClockInfo",),
    "mem_clock": ("nvmlDeviceGetClockInfo",),
    "temperature": ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"),
    "power": ("nvmlDeviceGetPowerUsage",),
    "power_limit": ("nvmlDeviceGetEnforcedPowerLimit",),
    "utilisation": ("nvmlDeviceGetUtilizationRates",),
    "reasons": ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"),
    "memory": ("nvmlDeviceGetMemoryInfo",),
    "processes": ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetComputeRunningProcesses_v2"),
    "viol_power": ("nvmlDeviceGetViolationStatus",),
    "viol_thermal": ("nvmlDeviceGetViolationStatus",),
}
"""What is asked → the functions that answer it, the newest first: an older driver knows only the later ones."""

_ARGUMENTS = {
    "sm_clock": "NVML_CLOCK_SM",
    "mem_clock": "NVML_CLOCK_MEM",
    "temperature": "NVML_TEMPERATURE_GPU",
    "viol_power": "NVML_PERF_POLICY_POWER",
    "viol_thermal": "NVML_PERF_POLICY_THERMAL",
}


@dataclasses.dataclass(frozen=True)
class Reading:
    """One look at the GPU; None where it could not be read.

    Attributes:
        reasons: the bits of the clock-event reasons.
        mem_used_mib: device memory in use, by whomever.
        pids: the processes with a compute context, as NVML numbers them.
    """

    sm_clock_mhz: int | None
    mem_clock_mhz: int | None
    temp_c: int | None
    power_w: float | None
    utilisation_pct: int | None
    reasons: int | None
    mem_used_mib: float | None
    pids: frozenset[int] | None


class Nvml:
    """NVML opened on the GPU with `uuid` (`GPU-xxxxxxxx-…`): an index would not do, CUDA_VISIBLE_DEVICES renumbers.

    A question that this GPU or driver cannot answer is asked once and never again.

    Raises:
        MissingExtra: nvidia-ml-py is not installed.
        DeviceUnavailable: NVML's library is not here or does not start, or it does not show this GPU.
    """

    def __init__(self, uuid: str) -> None:
        self._nvml: Any = require("pynvml", extra="bench")
        self._names = {what: list(names) for what, names in _CALLS.items()}
        remedy = "check `nvidia-smi`; without NVML the numbers stand, but nobody watches the GPU"
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise DeviceUnavailable(f"NVML cannot be started: {error}", remedy=remedy) from error
        try:
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        except self._nvml.NVMLError as error:
            self.close()
            raise DeviceUnavailable(f"NVML does not show the GPU {uuid}: {error}", remedy=remedy) from error

    def __enter__(self) -> Nvml:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        # A GPU that was lost meanwhile fails this too; the readings before it stand.
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    @property
    def unreadable(self) -> tuple[str, ...]:
        """What was asked and cannot be answered on this machine."""
        return tuple(what for what, names in self._names.items() if not names)

    def read(self) -> Reading:
        power, utilisation, memory, processes = map(self._ask, ("power", "utilisation", "memory", "processes"))
        return Reading(
            sm_clock_mhz=self._ask("sm_clock"),
            mem_clock_mhz=self._ask("mem_clock"),
            temp_c=self._ask("temperature"),
            power_w=None if power is None else power / 1000,
            utilisation_pct=None if utilisation is None else int(utilisation.gpu),
            reasons=self._ask("reasons"),
            mem_used_mib=None if memory is None else memory.used / MIB,
            pids=None if processes is None else frozenset(int(process.pid) for process in processes),
        )

    def power_limit_w(self) -> float | None:
        """The limit in force, in watts."""
        milliwatts = self._ask("power_limit")
        return None if milliwatts is None else milliwatts / 1000

    def violations_ns(self) -> tuple[int | None, int | None]:
        """Nanoseconds that the clocks were held down by power and by heat, counted since the driver was loaded."""
        power, thermal = self._ask("viol_power"), self._ask("viol_thermal")
        return None if power is None else int(power.violationTime), None if thermal is None else int(thermal.violationTime)

    def _ask(self, what: str) -> Any:
        names = self._names[what]
        arguments = (getattr(self._nvml, _ARGUMENTS[what]),) if what in _ARGUMENTS else ()
        while names:
            function = getattr(self._nvml, names[0], None)
            try:
                if function is not None:
                    return function(self._handle, *arguments)
            # What pynvml makes of a versioned function that the library lacks; no NVMLError.
            except self._nvml.NVMLLibraryMismatchError:
                pass
            except self._nvml.NVMLError as error:
                if error.value not in _UNKNOWN_HERE:
                    return None
            names.pop(0)
        return None
