"""A gate holds the stream until it is opened, or until its watchdog finds it stuck."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from fake_cuda import FakeDriver

from accel import device
from accel.errors import UsageError


def test_a_cpu_has_nothing_to_hold() -> None:
    with pytest.raises(UsageError, match="on a GPU only"):
        device.Gate(None)


def test_each_hold_waits_for_a_value_that_the_flag_has_not_yet(fake_driver: FakeDriver) -> None:
    gate = device.Gate(77)
    for _ in range(3):
        gate.hold()
        gate.open()
    assert fake_driver.waits == [(0, 1), (1, 2), (2, 3)]
    assert not gate.blocked


def test_the_watchdog_opens_a_stuck_gate_and_says_so_ever_after(fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    forced: list[Callable[[], None]] = []

    class Watchdog:
        """A timer that goes off when the test says so."""

        daemon = False

        def __init__(self, seconds: float, function: Callable[..., None], arguments: tuple[int, ...]) -> None:
            assert seconds == 0.05
            forced.append(lambda: function(*arguments))

        def start(self) -> None: ...
        def cancel(self) -> None: ...

    monkeypatch.setattr(threading, "Timer", Watchdog)
    gate = device.Gate(77)
    gate.hold()
    gate.open()
    forced[0]()  # went off too late: the gate had been opened in time
    assert not gate.blocked
    gate.hold()
    forced[1]()
    assert gate.blocked
    gate.open()
    gate.hold()
    gate.open()
    assert gate.blocked
    forced[1]()  # and a late one never closes what is open
    gate.hold()
    assert fake_driver.waits[-1] == (3, 4)
    gate.open()


def test_as_a_context_manager_it_opens_whatever_happens(fake_driver: FakeDriver) -> None:
    gate = device.Gate(77)
    with pytest.raises(RuntimeError, match="enqueue failed"), gate:
        raise RuntimeError("enqueue failed")
    gate.hold()
    assert fake_driver.waits == [(0, 1), (1, 2)]
    gate.open()


@pytest.fixture
def stream() -> Iterator[int | None]:
    available, reason = device.gpu_available()
    if not available:
        pytest.skip(reason)
    handle = device.open_stream("cuda:0")
    yield handle
    device.close_stream(handle)


@pytest.mark.gpu
def test_work_behind_the_gate_starts_when_it_opens(stream: int) -> None:
    from accel.device import driver

    source, target = (device.to_device(np.full(8, value), "float32", "cuda:0", stream) for value in (1, 0))
    gate = device.Gate(stream, watchdog_s=5.0)
    gate.hold()
    device.copy(target, source.ptr, stream)
    # Not CUDA_SUCCESS: the copy has not run.
    assert driver.bindings().cuStreamQuery(stream)[0].name == "CUDA_ERROR_NOT_READY"
    gate.open()
    np.testing.assert_array_equal(device.to_numpy(target, stream), np.ones(8))
    assert not gate.blocked


@pytest.mark.gpu
def test_waiting_for_the_gpu_behind_the_gate_is_found_out(stream: int) -> None:
    gate = device.Gate(stream)
    gate.hold()
    device.synchronize(stream)  # what an enqueue that blocks would do; without the watchdog it would never return
    assert gate.blocked
    gate.open()
