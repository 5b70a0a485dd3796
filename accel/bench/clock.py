"""The only clocks of the house: the host's nanosecond counter, CUDA events, the wall clock of a record, and a fake for tests."""

from __future__ import annotations

import datetime
import time
from typing import Protocol

from accel.bench.processors import Used, used


class Clock(Protocol):
    def now_ns(self) -> int:
        """Nanoseconds since a fixed, unspecified moment; never goes back."""

    def sleep(self, seconds: float, /) -> None:
        """Let at least `seconds` pass without using the processor."""

    def used(self) -> Used | None:
        """The processor time that all processes have used until now; None where that is not known."""


class HostClock:
    # The builtins themselves, not methods around them: the loop pays one call per reading.
    now_ns = staticmethod(time.perf_counter_ns)
    sleep = staticmethod(time.sleep)
    used = staticmethod(used)


class FakeClock:
    """Time that passes only when it is told to: a scripted runtime advances it by the duration that it pretends to take."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now = start_ns

    def now_ns(self) -> int:
        return self._now

    def sleep(self, seconds: float, /) -> None:
        self._now += round(seconds * 1e9)

    def used(self) -> Used | None:
        return None

    def advance_us(self, microseconds: float) -> None:
        self._now += round(microseconds * 1000)


class DeviceTimer(Protocol):
    """Two marks on a stream and the GPU time between them."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def elapsed_ns(self) -> int:
        """Between the two marks; the stream must have been synchronised. The resolution of CUDA events is about 500 ns."""

    def close(self) -> None: ...


class EventTimer:
    """A pair of CUDA events on `stream`, made once and recorded again for every sample."""

    def __init__(self, stream: int) -> None:
        from accel.device import driver

        self._cuda, self._check, self._stream = driver.bindings(), driver.check, stream
        self._begin, self._end = (self._check(self._cuda.cuEventCreate(0), "creating an event") for _ in range(2))

    def start(self) -> None:
        self._check(self._cuda.cuEventRecord(self._begin, self._stream), "recording an event")

    def stop(self) -> None:
        self._check(self._cuda.cuEventRecord(self._end, self._stream), "recording an event")

    def elapsed_ns(self) -> int:
        milliseconds: float = self._check(self._cuda.cuEventElapsedTime(self._begin, self._end), "reading two events")
        return round(milliseconds * 1e6)

    def close(self) -> None:
        for event in (self._begin, self._end):
            self._check(self._cuda.cuEventDestroy(event), "freeing an event")


def utc_now() -> str:
    """The wall clock for records, to the second: `2026-11-22T15:23:00Z`."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
