"""A pynvml of plain values, which counts its calls and fails those that it is told to."""

from __future__ import annotations

import collections
import contextlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

UUID = "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
NOT_SUPPORTED, UNKNOWN = 3, 999
MIB = 1 << 20


class FakeNvml(types.ModuleType):
    """`values` are what it answers, as NVML's own units; `fail` maps a function to the code of its NVMLError."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2
    NVML_TEMPERATURE_GPU = 0
    NVML_PERF_POLICY_POWER, NVML_PERF_POLICY_THERMAL = 0, 1

    class NVMLError(Exception):
        def __init__(self, value: int) -> None:
            super().__init__(f"code {value}")
            self.value = value

    class NVMLLibraryMismatchError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.calls: collections.Counter[str] = collections.Counter()
        self.fail: dict[str, int] = {}
        self.mismatch: set[str] = set()
        self.sm_clock, self.mem_clock, self.temp, self.milliwatts, self.limit = 1980, 2619, 41, 350_500, 700_000
        self.busy, self.mask, self.used_mib = 97, 0, 1000
        self.pids: list[int] = []
        self.violations = {0: 100, 1: 7}

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml") or not hasattr(type(self), f"_{name}"):
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            self.calls[name] += 1
            if name in self.mismatch:
                raise self.NVMLLibraryMismatchError(name)
            if name in self.fail:
                raise self.NVMLError(self.fail[name])
            return getattr(type(self), f"_{name}")(self, *arguments)

        return call

    def _nvmlInit(self) -> None: ...  # noqa: N802

    def _nvmlShutdown(self) -> None: ...  # noqa: N802

    def _nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != UUID:
            raise self.NVMLError(6)
        return "handle"

    def _nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        return self.sm_clock if kind == self.NVML_CLOCK_SM else self.mem_clock

    def _nvmlDeviceGetTemperatureV(self, handle: str, sensor: int) -> int:  # noqa: N802
        return self.temp

    _nvmlDeviceGetTemperature = _nvmlDeviceGetTemperatureV  # noqa: N815

    def _nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        return self.milliwatts

    def _nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:  # noqa: N802
        return self.limit

    def _nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        return types.SimpleNamespace(gpu=self.busy, memory=3)

    def _nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:  # noqa: N802
        return self.mask

    _nvmlDeviceGetCurrentClocksThrottleReasons = _nvmlDeviceGetCurrentClocksEventReasons  # noqa: N815

    def _nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        return types.SimpleNamespace(total=143_000 * MIB, used=self.used_mib * MIB)

    def _nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:  # noqa: N802
        return [types.SimpleNamespace(pid=pid, usedGpuMemory=None) for pid in self.pids]

    _nvmlDeviceGetComputeRunningProcesses_v2 = _nvmlDeviceGetComputeRunningProcesses  # noqa: N815

    def _nvmlDeviceGetViolationStatus(self, handle: str, policy: int) -> Any:  # noqa: N802
        return types.SimpleNamespace(referenceTime=0, violationTime=self.violations[policy])


@contextlib.contextmanager
def installed() -> Iterator[FakeNvml]:
    """A FakeNvml in the place of pynvml."""
    fake = FakeNvml()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pynvml", fake)
        yield fake
