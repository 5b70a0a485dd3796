"""Which exit code a run over several variants ends with."""

from __future__ import annotations

import pytest

from accel.api.outcome import Fault, error_of

REFUSED = Fault("onnxruntime:fp16", "REFUSED", "no FP16 kernels on this CPU", "choose another precision")
MISSING = Fault("onnxruntime:fp32", "MISSING", "onnxruntime is not installed", "pip install 'accel-engines[ort]'")
NO_PROVIDER = Fault("onnxruntime:fp16+trt-ep", "MISSING", "libnvinfer.so.10 is not here", "pip install tensorrt-cu13")
FALLBACK = Fault("compile:fp32", "FALLBACK", "no C++ compiler was found")
UNVERIFIED = Fault("eager:fp32", "UNVERIFIED", "cifar10 is not in the cache", "accel data fetch cifar10")
INVALID = Fault("eager:fp16", "INVALID", "top1 fell by 3.00 points")
CRASHED = Fault("torchscript:fp32", "ERROR", "the worker was killed")


@pytest.mark.parametrize(
    ("faults", "names", "code"),
    [
        ([], ["all"], None),
        ([REFUSED, MISSING, FALLBACK], ["all"], None),
        ([REFUSED], ["onnxruntime"], None),
        ([REFUSED], ["ort:fp16"], 4),
        ([MISSING], ["ort"], 4),
        ([MISSING], ["eager"], None),
        ([NO_PROVIDER], ["ort"], None),
        ([NO_PROVIDER], ["all"], None),
        ([NO_PROVIDER], ["ort:fp16+trt-ep"], 4),
        ([FALLBACK], ["compile"], 4),
        ([UNVERIFIED], ["all"], 4),
        ([CRASHED], ["all"], 1),
        ([INVALID, UNVERIFIED, CRASHED], ["all"], 3),
    ],
)
def test_what_all_lacks_is_said_in_its_row_and_what_was_typed_is_an_error(faults: list[Fault], names: list[str], code: int | None) -> None:
    error = error_of(faults, names)
    assert (error and error.exit_code) == code


def test_all_of_nothing_is_no_success() -> None:
    # `accel verify` on a machine without any runtime, or of FP16 engines alone on a CPU, checked nothing and ended with 0.
    error = error_of([REFUSED, MISSING], ["all"], nothing_ran=True)
    assert error is not None
    assert (error.exit_code, error.remedy) == (4, "pip install 'accel-engines[ort]'")


def test_the_error_names_every_such_variant_and_what_mends_it() -> None:
    error = error_of([REFUSED, UNVERIFIED], ["all"])
    assert error is not None
    assert "eager:fp32 is UNVERIFIED: cifar10 is not in the cache" in error.message
    assert error.remedy == "accel data fetch cifar10"


def test_a_fault_may_carry_its_own_code() -> None:
    error = error_of([Fault("eager:fp32", "ERROR", "made for another machine", None, 5)], ["all"])
    assert error is not None
    assert error.exit_code == 5
