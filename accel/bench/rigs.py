"""The two rigs of the self-check: a GPU whose sleeps are counted in clock cycles, and a simulated one on a fake clock."""

from __future__ import annotations

from typing import Any

from accel import device
from accel.bench import warming
from accel.bench.clock import EventTimer, FakeClock, HostClock
from accel.device import driver
from accel.optional import require

CALIBRATION_CYCLES = 20_000_000


class GpuRig:
    """Sleeps by `torch.cuda._sleep`, which spins on the cycle counter of a multiprocessor; preheated and calibrated when it is made.

    Raises:
        MissingExtra: torch is not installed. DeviceUnavailable: there is no GPU.
    """

    def __init__(self, place: str) -> None:
        self._torch = require("torch", "train")
        driver.activate(place)
        self._place = place
        self._stream, self._other = (int(device.open_stream(place) or 0) for _ in range(2))
        self.clock, self.timer = HostClock(), EventTimer(self._stream)
        self.gate = device.Gate(self._stream)
        self._ours, self._elsewhere = (self._torch.cuda.ExternalStream(stream, device=place) for stream in (self._stream, self._other))
        self._cycles_per_us = 1.0
        # An idle GPU is clocked low: cycles counted now would be worth less time soon, and its front end would answer faster.
        warming.preheat(lambda _: self._wait_for(CALIBRATION_CYCLES), self.clock.now_ns)
        self.timer.start()
        self.spin(CALIBRATION_CYCLES)
        self.timer.stop()
        self.synchronize()
        self._cycles_per_us = CALIBRATION_CYCLES / (self.timer.elapsed_ns() / 1e3)
        self._graph = device.capture(place, self._stream, lambda: self.spin(0.0))

    def _wait_for(self, us: float) -> None:
        self.spin(us)
        self.synchronize()

    def spin(self, us: float) -> None:
        self._spin_on(self._ours, us)

    def spin_elsewhere(self, us: float) -> None:
        self._spin_on(self._elsewhere, us)

    def _spin_on(self, stream: Any, us: float) -> None:
        with self._torch.cuda.stream(stream):
            self._torch.cuda._sleep(round(us * self._cycles_per_us))

    def one_node(self) -> None:
        self._graph.launch()

    def synchronize(self) -> None:
        device.synchronize(self._stream)

    def synchronize_device(self) -> None:
        device.synchronize_device(self._place)

    def close(self) -> None:
        self._graph.close()
        self.timer.close()
        for stream in (self._stream, self._other):
            device.close_stream(stream)


class SimulatedRig:
    """A host and a GPU on one fake clock: a call takes the host LAUNCH_US, and the GPU begins when its stream is free.

    Attributes:
        drift: what every length is multiplied with, more from call to call; for tests of what must fail.
    """

    LAUNCH_US, EVENT_US, NODE_US = 2.0, 0.5, 1.5

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.timer, self.gate = _SimulatedTimer(self), _SimulatedGate(self)
        self.drift = 0.0
        self._calls = 0
        self._free_ns, self._other_free_ns, self._held = 0, 0, False

    def work(self, us: float) -> None:
        """Put `us` of the GPU's time on the stream; a held one begins when it is let go."""
        start = self._free_ns if self._held else max(self._free_ns, self.clock.now_ns())
        self._free_ns = start + round(us * 1000)

    def spin(self, us: float) -> None:
        self.clock.advance_us(self.LAUNCH_US)
        self._calls += 1
        self.work(us * (1 + self.drift * self._calls) + 0.3)

    def spin_elsewhere(self, us: float) -> None:
        self.clock.advance_us(self.LAUNCH_US)
        self._other_free_ns = max(self._other_free_ns, self.clock.now_ns()) + round(us * 1000)

    def one_node(self) -> None:
        self.clock.advance_us(self.LAUNCH_US)
        self.work(self.NODE_US)

    def synchronize(self) -> None:
        self._wait_until(self._free_ns)

    def synchronize_device(self) -> None:
        self._wait_until(max(self._free_ns, self._other_free_ns))

    def hold(self) -> None:
        self._held = True
        self._free_ns = 0

    def let_go(self) -> None:
        """What was enqueued meanwhile begins now."""
        self._held = False
        now = self.clock.now_ns()
        self.timer.shift(now)
        self._free_ns += now

    def mark(self) -> int:
        """The moment that an event records: when all before it on the stream is done."""
        self.clock.advance_us(self.EVENT_US)
        if not self._held:
            self._free_ns = max(self._free_ns, self.clock.now_ns())
        return self._free_ns

    def _wait_until(self, moment_ns: int) -> None:
        self.clock.advance_us(max(moment_ns - self.clock.now_ns(), 0) / 1e3 + 1.0)


class _SimulatedTimer:
    def __init__(self, rig: SimulatedRig) -> None:
        self._rig, self._begin, self._end = rig, 0, 0

    def start(self) -> None:
        self._begin = self._rig.mark()

    def stop(self) -> None:
        self._end = self._rig.mark()

    def shift(self, by_ns: int) -> None:
        self._begin, self._end = self._begin + by_ns, self._end + by_ns

    def elapsed_ns(self) -> int:
        return self._end - self._begin

    def close(self) -> None: ...


class _SimulatedGate:
    def __init__(self, rig: SimulatedRig) -> None:
        self._rig, self.blocked = rig, False

    def hold(self) -> None:
        self._rig.hold()

    def open(self) -> None:
        self._rig.let_go()
