"""Arrays to a device and back, on the CPU twin, on a driver of host memory, and on a GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
from fake_cuda import Code, FakeDriver

from accel import device
from accel.runtimes.fake import Fake
from accel.types import EngineSource, TensorSpec, Variant


@pytest.fixture(params=["cpu", "fake", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def where(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device to work on; `fake` is cuda:0 of the driver of host memory."""
    if request.param == "fake":
        request.getfixturevalue("fake_driver")
        yield "cuda:0"
    else:
        if request.param != "cpu" and not device.gpu_available()[0]:
            pytest.skip(device.gpu_available()[1])
        yield request.param


@pytest.fixture
def stream(where: str) -> Iterator[int | None]:
    handle = device.open_stream(where)
    yield handle
    device.close_stream(handle)


VALUES = np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 3, 4)


def test_a_gpu_gets_a_stream_that_is_not_the_default_one(where: str, stream: int | None) -> None:
    assert (stream is None) if where == "cpu" else bool(stream)
    device.synchronize(stream)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "uint8", "int64"])
def test_what_goes_to_the_device_comes_back(where: str, stream: int | None, dtype: str) -> None:
    values = np.arange(24).reshape(2, 3, 4)
    array = device.to_device(values, dtype, where, stream)
    assert (array.shape, array.dtype, array.device, array.nbytes) == (
        (2, 3, 4),
        dtype,
        where,
        24 * {"int64": 8, "uint8": 1}.get(dtype, 2 if "16" in dtype else 4),
    )
    back = device.to_numpy(array, stream)
    np.testing.assert_array_equal(back, values)
    assert str(back.dtype) == ("float32" if dtype == "bfloat16" else dtype)


def test_strided_arrays_are_packed_and_the_caller_keeps_its_own(where: str, stream: int | None) -> None:
    values = VALUES.copy()
    array = device.to_device(values.transpose(2, 0, 1), "float32", where, stream)
    values[:] = 0
    np.testing.assert_array_equal(device.to_numpy(array, stream), VALUES.transpose(2, 0, 1))


def test_results_are_owned(where: str, stream: int | None) -> None:
    array = device.to_device(VALUES, "float32", where, stream)
    device.to_numpy(array, stream)[:] = 0
    np.testing.assert_array_equal(device.to_numpy(array, stream), VALUES)


def test_copy_stays_on_the_device(where: str, stream: int | None) -> None:
    source, target = device.to_device(VALUES, "float16", where, stream), device.empty(VALUES.shape, "float16", where)
    device.copy(target, source.ptr, stream)
    np.testing.assert_allclose(device.to_numpy(target, stream), VALUES, atol=2e-3)


def test_device_memory_goes_back_when_the_array_is_forgotten(fake_driver: FakeDriver) -> None:
    array = device.empty((1024,), "float32", "cuda:0")
    assert list(fake_driver.memory) == [array.ptr]
    del array
    assert not fake_driver.memory


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_staging_is_the_road_of_a_request(where: str, stream: int | None, dtype: str) -> None:
    """The engine here only passes its input on; what it was given has the native dtype, what comes back is float32 and owned."""
    spec = (TensorSpec("x", (2, 3, 4)),)
    runtime = Fake(EngineSource(Variant("eager", "fp32"), "cpu", spec, spec))
    from accel.types import Binding

    home = Binding({"x": device.to_device(np.zeros((2, 3, 4)), dtype, where, stream)})
    runtime.enqueue = lambda binding: None  # type: ignore[method-assign]
    runtime.output = lambda binding: {"y": binding.inputs["x"]}  # type: ignore[method-assign]
    staging = device.Staging(home, stream)
    first = staging.run(runtime, {"x": VALUES})["y"]
    second = staging.run(runtime, {"x": -VALUES.astype(np.float64)})["y"]
    np.testing.assert_allclose(first, VALUES, atol=2e-2)
    np.testing.assert_array_equal(second, -first)
    assert first.dtype == second.dtype == np.float32


@pytest.mark.gpu
def test_waits_spin_on_the_gpu() -> None:
    available, reason = device.gpu_available()
    if not available:
        pytest.skip(reason)
    assert device.spins("cuda:0")


def test_the_l2_cache_is_filled_twice_over_with_other_data(fake_driver: FakeDriver) -> None:
    flush = device.L2Flush("cuda:0", 77)
    array = device.to_device(np.zeros(4, np.float32), "float32", "cuda:0", 77)
    flush()
    assert flush.bytes == 2048
    assert fake_driver.calls.count("cuMemsetD8Async") == 1
    assert not device.to_numpy(array, 77).any()


@pytest.mark.parametrize(
    ("code", "told"), [(Code.CUDA_ERROR_ILLEGAL_ADDRESS, []), (Code.CUDA_ERROR_OUT_OF_MEMORY, ["freeing device memory failed"])]
)
def test_of_a_context_that_is_gone_nothing_is_given_back_and_nothing_said(
    code: Code, told: list[str], fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error was raised where the work was waited for; each buffer's finaliser would print it once more."""
    seen = list[str]()
    monkeypatch.setattr(sys, "unraisablehook", lambda found: seen.append(str(found.exc_value).partition(":")[0]))
    array = device.empty((4,), "float32", "cuda:0")
    fake_driver.fail = {"cuMemFree": code}
    del array
    fake_driver.fail = {}
    assert seen == told
