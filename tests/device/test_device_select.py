"""Which device a name means, with a driver and without one."""

from __future__ import annotations

import pytest
from fake_cuda import Code, FakeDriver

from accel import device
from accel.device import driver
from accel.errors import AccelError, DeviceUnavailable, MissingExtra, UsageError


class NoLibcuda:
    """cuda-bindings on a machine without a driver: its first call raises RuntimeError."""

    def cuInit(self, flags: int) -> None:  # noqa: N802
        raise RuntimeError('"cuda" is an NVIDIA driver library and can only be found via system search')


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "bindings", NoLibcuda)


@pytest.mark.usefixtures("no_driver")
def test_without_a_driver_auto_is_the_cpu_and_cuda_says_why_not() -> None:
    assert device.gpu_available() == (False, "no NVIDIA driver was found on this machine")
    assert device.parse("auto") == "cpu"
    with pytest.raises(DeviceUnavailable, match=r"cuda:0 was asked for, but no NVIDIA driver was found[\s\S]*--device cpu"):
        device.parse("cuda")


def test_without_cuda_bindings_the_reason_is_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise MissingExtra("cuda.bindings.driver", "toolkit")

    monkeypatch.setattr(driver, "bindings", absent)
    assert device.gpu_available() == (False, "cuda.bindings.driver is not installed")


def test_a_driver_that_shows_no_gpu_is_no_gpu(fake_driver: FakeDriver) -> None:
    fake_driver.gpus = 0
    assert device.gpu_available() == (False, "the NVIDIA driver shows no GPU")
    fake_driver.fail["cuInit"] = Code.CUDA_ERROR_NO_DEVICE
    available, reason = device.gpu_available()
    assert not available
    assert "CUDA_ERROR_NO_DEVICE (said the driver)" in reason


def test_with_a_gpu_auto_takes_it_and_the_rest_is_spelled_out(fake_driver: FakeDriver) -> None:
    fake_driver.gpus = 2
    assert [device.parse(text) for text in ("auto", "CUDA", "cuda:1", " cpu ")] == ["cuda:0", "cuda:0", "cuda:1", "cpu"]
    with pytest.raises(DeviceUnavailable, match=r"cuda:2 was asked for and this machine has 2 GPU"):
        device.parse("cuda:2")
    assert device.name("cuda:1") == "Fake GPU"


def test_choosing_a_device_makes_no_context(fake_driver: FakeDriver) -> None:
    device.parse("auto")
    device.name("cuda:0")
    assert "cuDevicePrimaryCtxSetFlags" not in fake_driver.calls


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:-1", ""])
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="auto, cpu, cuda or cuda:N"):
        device.parse(text)


def test_the_cpu_has_a_name() -> None:
    assert device.name("cpu")


def test_waits_are_told_to_spin_before_the_context_is_made_and_once(fake_driver: FakeDriver) -> None:
    driver.activate("cuda:0")
    driver.activate("cuda:0")
    assert fake_driver.calls.count("cuDevicePrimaryCtxSetFlags") == 1
    assert device.spins("cuda:0")


def test_an_active_context_of_another_library_is_taken_as_it_is(fake_driver: FakeDriver) -> None:
    fake_driver.fail["cuDevicePrimaryCtxSetFlags"] = Code.CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE
    driver.activate("cuda:0")


def test_driver_errors_carry_their_name(fake_driver: FakeDriver) -> None:
    assert driver.check((Code.CUDA_SUCCESS,), "nothing") is None
    assert driver.check((Code.CUDA_SUCCESS, 1, 2), "two") == (1, 2)
    with pytest.raises(AccelError, match=r"copying failed: CUDA_ERROR_ILLEGAL_ADDRESS \(said the driver\)") as caught:
        driver.check((Code.CUDA_ERROR_ILLEGAL_ADDRESS,), "copying")
    assert caught.value.exit_code == 1
    with pytest.raises(DeviceUnavailable, match="free memory on the GPU"):
        driver.check((Code.CUDA_ERROR_OUT_OF_MEMORY,), "allocating")
