"""Watch the GPU from the coordinator while a worker is timed: 10 readings a second on a thread, made into a row's columns."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from accel.bench.clock import Clock, HostClock
from accel.bench.nvml import Nvml, Reading
from accel.bench.warming import PREHEAT_NS
from accel.errors import MissingError

PERIOD_S = 0.1

STILL_SAMPLES, STILL = 5, 0.01
"""The SM clock has settled if it moved by less than STILL over the last STILL_SAMPLES before the timed passes."""

Family = Callable[[int], bool]
"""Whether a process is the worker, or a child of it."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """A reading at `at_ns` of the host's clock; `own`: the worker was among its processes; `others`: those that are not ours."""

    at_ns: int
    reading: Reading
    own: bool = False
    others: frozenset[int] = frozenset()


@dataclasses.dataclass
class Watch:
    """What was seen while one worker ran; empty where nobody watched.

    Attributes:
        samples: in the order taken; the first before the worker was started, the last after it ended.
        violations_ns: of power and of heat, what the driver's counters grew by.
    """

    samples: list[Sample] = dataclasses.field(default_factory=list)
    power_limit_w: float | None = None
    violations_ns: tuple[int | None, int | None] = (None, None)

    def columns(self, timed_ns: Sequence[int] | None = None) -> dict[str, Any]:
        """The NVML columns of the worker's rows.

        Clocks, temperature, power, throttling and other processes are those of the timed passes; `mem_peak_mib` is of the worker's
        whole life, above what was in use before it was started; the violation counters are over its whole life too.

        Args:
            timed_ns: when the timed passes began and ended on the host's clock, which all processes of a machine share; without it,
                the samples in which the worker kept the GPU busy stand for them.
        """
        if not self.samples:
            return {}
        timed = [sample.reading for sample in self._timed(timed_ns)]
        clocks = _known(reading.sm_clock_mhz for reading in timed)
        temperatures = _known(reading.temp_c for reading in timed)
        powers = _known(reading.power_w for reading in timed)
        masks = _known(reading.reasons for reading in timed)
        memory = _known(sample.reading.mem_used_mib for sample in self.samples)
        before = self.samples[0].reading.mem_used_mib
        return {
            "sm_clock_min_mhz": min(clocks, default=None),
            "sm_clock_mean_mhz": round(statistics.fmean(clocks), 1) if clocks else None,
            "sm_clock_max_mhz": max(clocks, default=None),
            "mem_clock_mhz": min(_known(reading.mem_clock_mhz for reading in timed), default=None),
            "temp_start_c": temperatures[0] if temperatures else None,
            "temp_max_c": max(temperatures, default=None),
            "power_mean_w": round(statistics.fmean(powers), 1) if powers else None,
            "power_limit_w": self.power_limit_w,
            "throttle_mask": functools.reduce(int.__or__, masks) if masks else None,
            "viol_power_ns": self.violations_ns[0],
            "viol_thermal_ns": self.violations_ns[1],
            "other_pids": self.other_pids(timed_ns),
            "mem_peak_mib": None if before is None else round(max(memory) - before, 1),
        }

    @property
    def pids_hidden(self) -> bool:
        """Processes are not shown, or not by their numbers here: our own worker was never among them although it computed."""
        return bool(self.samples) and not any(sample.own for sample in self.samples)

    def clock_moved(self, timed_ns: Sequence[int] | None = None) -> bool:
        """Whether the SM clock had not settled when the timed passes began; False where too little of the preheat was seen to tell.

        The preheat is not made longer for it: a worker has no NVML, and by the time that we know, its passes are under way.
        """
        if timed_ns is None:
            return False
        before = [sample.reading.sm_clock_mhz for sample in self.samples if 0 <= timed_ns[0] - sample.at_ns <= PREHEAT_NS]
        clocks = _known(before[-STILL_SAMPLES:])
        return len(clocks) == STILL_SAMPLES and max(clocks) - min(clocks) >= STILL * max(clocks)

    def other_pids(self, timed_ns: Sequence[int] | None = None) -> list[int] | None:
        """Processes with a compute context that are neither the worker, a child of it, nor the coordinator; None if that is not known."""
        if not self.pids_hidden:
            shown = [sample.others for sample in self._timed(timed_ns) if sample.reading.pids is not None]
            return sorted(frozenset().union(*shown)) if shown else None
        # Numbers of another namespace do not tell which one is the worker. What was there before it and still is after it, is not.
        stayed = sorted(self.samples[0].others & self.samples[-1].others) if self.samples else []
        return stayed or None

    def _timed(self, timed_ns: Sequence[int] | None) -> list[Sample]:
        if timed_ns is not None:
            begin, end = timed_ns
            # Passes shorter than a period have the samples just before and after them.
            slack = max(0, round(PERIOD_S * 1e9) - (end - begin))
            return [sample for sample in self.samples if begin - slack <= sample.at_ns <= end + slack]
        # The first and the last were taken outside the worker's life.
        own = [sample for sample in self.samples if sample.own] or self.samples[1:-1] or self.samples
        return [sample for sample in own if sample.reading.utilisation_pct] or own


class Telemetry:
    """NVML on one GPU, open while a set runs; on a CPU, or where NVML is absent, it watches nothing.

    Args:
        uuid: the GPU's; None is a CPU.

    Attributes:
        absent: why nothing can be read; empty if something can, or if there is no GPU.
    """

    def __init__(self, uuid: str | None, *, period_s: float = PERIOD_S, clock: Clock | None = None, family: Family | None = None) -> None:
        self._period_s, self._clock, self._family = period_s, clock or HostClock(), family
        self._nvml: Nvml | None = None
        self.absent = ""
        if uuid is not None:
            try:
                self._nvml = Nvml(uuid)
            except MissingError as error:
                self.absent = error.message

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._nvml is not None:
            self._nvml.close()

    def describe(self) -> dict[str, Any] | None:
        """For a set's description: what NVML cannot tell here, and why; None without a GPU."""
        if self._nvml is None:
            return {"absent": self.absent} if self.absent else None
        return {"period_s": self._period_s, "unreadable": list(self._nvml.unreadable)}

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watch]:
        """Sample on a thread while the block runs; the Watch is whole when the block has ended, also by an exception."""
        watch = Watch()
        if self._nvml is None:
            yield watch
            return
        nvml, stop, family = self._nvml, threading.Event(), self._family or functools.cache(is_descendant)
        before = nvml.violations_ns()
        watch.power_limit_w = nvml.power_limit_w()
        watch.samples.append(self._sample(nvml, family))

        def sample_until_stopped() -> None:
            while not stop.wait(self._period_s):
                watch.samples.append(self._sample(nvml, family))

        with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="telemetry") as pool:
            sampling = pool.submit(sample_until_stopped)
            try:
                yield watch
            finally:
                stop.set()
                # A mistake of ours on the thread must not pass for a GPU that cannot be read.
                sampling.result()
                watch.samples.append(self._sample(nvml, family))
                watch.violations_ns = _growth(before, nvml.violations_ns())

    def _sample(self, nvml: Nvml, family: Family) -> Sample:
        at_ns = self._clock.now_ns()
        reading = nvml.read()
        pids = (reading.pids or frozenset()) - {os.getpid()}
        own = frozenset(pid for pid in pids if family(pid))
        return Sample(at_ns, reading, bool(own), pids - own)


def is_descendant(pid: int, ancestor: int | None = None, proc: Path = Path("/proc")) -> bool:
    """Whether `pid` descends from `ancestor` (this process); False where that cannot be read, as of a process that has ended."""
    wanted = os.getpid() if ancestor is None else ancestor
    while pid > 1:
        try:
            # The name in brackets may hold anything, brackets and blanks too.
            parent = int((proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            return False
        if parent == wanted:
            return True
        pid = parent
    return False


def _known(values: Any) -> list[Any]:
    return [value for value in values if value is not None]


def _growth(before: tuple[int | None, ...], after: tuple[int | None, ...]) -> tuple[int | None, int | None]:
    first, second = (None if old is None or new is None else new - old for old, new in zip(before, after, strict=True))
    return first, second
