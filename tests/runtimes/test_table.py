"""The table answers by itself: names, versions, precisions, options and refusals."""

from __future__ import annotations

import pytest

from accel import runtimes
from accel.errors import AccelError, RuntimeUnavailable, UnknownName, UsageError
from accel.types import EngineSource, TensorSpec, Variant

SPEC = (TensorSpec("x", ("batch", 3)),)


def test_ort_is_onnxruntime() -> None:
    assert runtimes.info("ort") is runtimes.info("onnxruntime")


def test_an_unknown_runtime_lists_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="aoti, compile, eager, fused, onnxruntime, tensorrt, tensorrt-rtx, torchscript"):
        runtimes.info("caffe")


@pytest.mark.parametrize(
    "spelling",
    [
        *("onnxruntime:fp32", "eager:bf16+fold", "compile:fp16+reduce-overhead+channels_last", "trt:fp16-graph", "tensorrt-rtx:fp32"),
        *("eager:fp16+fold+graph", "compile:fp16+freezing+max-autotune", "ort:fp16+nhwc+graph", "ort:tf32+trt-ep", "aoti:fp16+graph"),
    ],
)
def test_what_the_table_has_passes(spelling: str) -> None:
    runtimes.check(Variant.parse(spelling))


@pytest.mark.parametrize(
    ("spelling", "error", "message"),
    [
        ("onnxruntime:bf16", UsageError, "fp32, tf32, fp16"),
        ("tensorrt:tf32", UsageError, "fp32, fp16"),
        ("fused:fp32", UsageError, "fp16"),
        ("fused:fp16+chain+grid", UsageError, "chain and grid at once"),
        ("tensorrt:fp16+graph", UnknownName, "-graph"),
        ("torchscript:fp16-autocast", UsageError, "torchscript cannot run fp16-autocast"),
        ("torchscript:fp32+graph", UnknownName, "option of torchscript"),
        ("compile:fp32+graph", UnknownName, "channels_last, fold, freezing, max-autotune, reduce-overhead"),
        ("compile:fp32+max-autotune+reduce-overhead", UsageError, "at once"),
        ("onnxruntime:fp16+rtx-ep+trt-ep", UsageError, "rtx-ep and trt-ep at once"),
        ("onnxruntime:fp16+graph+trt-ep", UsageError, "graph and trt-ep at once"),
        ("aoti:tf32", UsageError, "aoti cannot run tf32"),
    ],
)
def test_what_it_has_not_is_refused_with_what_there_is(spelling: str, error: type[AccelError], message: str) -> None:
    with pytest.raises(error, match=message):
        runtimes.check(Variant.parse(spelling))


@pytest.mark.parametrize(
    ("spelling", "on_cpu"),
    [
        ("eager:fp32", None),
        ("eager:bf16", None),
        ("onnxruntime:fp16", "no FP16 kernels on this CPU"),
        ("eager:fp16-autocast", "no FP16 kernels on this CPU"),
        ("eager:tf32", "TF32 exists on NVIDIA GPUs only"),
        ("compile:fp32+reduce-overhead", "CUDA graphs exist on NVIDIA GPUs only"),
        ("compile:fp32+max-autotune", None),
        ("compile:fp32+freezing", None),
        ("eager:fp32+graph", "CUDA graphs exist on NVIDIA GPUs only"),
        ("aoti:fp32+graph", "CUDA graphs exist on NVIDIA GPUs only"),
        ("onnxruntime:fp32+nhwc", "this layout is an option of ONNX Runtime's CUDA provider only"),
        ("onnxruntime:tf32+trt-ep", "TF32 exists on NVIDIA GPUs only"),
        ("tensorrt:fp32", "TensorRT runs on NVIDIA GPUs only"),
        ("tensorrt-rtx:fp16-graph", "TensorRT-RTX runs on NVIDIA GPUs only"),
        ("fused:fp16+grid", "a fused engine runs on NVIDIA GPUs only"),
    ],
)
def test_a_cpu_refuses_what_it_has_no_kernels_for(spelling: str, on_cpu: str | None) -> None:
    variant = Variant.parse(spelling)
    assert runtimes.refusal(variant, "cpu") == on_cpu
    assert runtimes.refusal(variant, "cuda:0") is None


@pytest.mark.parametrize("option", ["trt-ep", "rtx-ep"])
def test_tensorrts_providers_are_refused_in_ieee_fp32_everywhere(option: str) -> None:
    """They build FP32 with TF32: a row that says fp32 would not be true."""
    assert "no option to forbid it" in str(runtimes.refusal(Variant.parse(f"onnxruntime:fp32+{option}"), "cuda:0"))
    assert runtimes.refusal(Variant.parse(f"onnxruntime:tf32+{option}"), "cuda:0") is None
    assert runtimes.refusal(Variant.parse(f"onnxruntime:fp16+{option}"), "cuda:0") is None


def test_a_refused_variant_is_not_made_except_for_parity() -> None:
    source = EngineSource(Variant("eager", "fp16"), "cpu", SPEC, SPEC)
    with pytest.raises(RuntimeUnavailable, match="no FP16 kernels on this CPU") as caught:
        runtimes.create(source)
    assert caught.value.exit_code == 4
    runtimes.create(EngineSource(Variant("eager", "fp16"), "cpu", SPEC, SPEC, parity_only=True))


def test_the_version_is_read_without_an_import_and_none_where_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    row = runtimes.RuntimeInfo("nowhere:Nothing", None, ("fp32",), (), ("no-such-distribution",), "none")
    monkeypatch.setitem(runtimes.RUNTIMES, "absent", row)
    assert runtimes.version("absent") is None
