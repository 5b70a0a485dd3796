"""The spelling of variants, the shapes that a spec accepts, and arrays that say where they live."""

from __future__ import annotations

import numpy as np
import pytest

from accel.errors import UnknownName, UsageError
from accel.types import DeviceArray, EngineEntry, TensorSpec, Variant


def test_a_variant_is_spelled_back_as_it_was_typed() -> None:
    assert str(Variant.parse("eager:fp16-autocast+channels_last")) == "eager:fp16-autocast+channels_last"


def test_aliases_are_resolved_and_options_are_sorted() -> None:
    assert Variant.parse("ort:fp16+nhwc+graph") == Variant("onnxruntime", "fp16", ("graph", "nhwc"))
    assert str(Variant.parse("trt:fp16")) == "tensorrt:fp16"
    assert Variant.parse("trt:fp16-graph") == Variant("tensorrt", "fp16", ("-graph",))
    assert str(Variant.parse("ort:fp16+nhwc-graph")) == "onnxruntime:fp16-graph+nhwc"
    assert Variant.parse("onnxruntime:fp16-graph+nhwc") == Variant.parse("ort:fp16+nhwc-graph")


@pytest.mark.parametrize("text", ["onnxruntime", "onnxruntime:", ":fp32", ""])
def test_a_variant_without_runtime_or_precision_is_a_usage_error_that_shows_the_spelling(text: str) -> None:
    with pytest.raises(UsageError, match="RUNTIME:PRECISION"):
        Variant.parse(text)


def test_an_unknown_precision_lists_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="fp16-autocast") as caught:
        Variant.parse("eager:half")
    assert caught.value.exit_code == 2


def test_a_dynamic_dimension_takes_any_size_but_the_others_only_theirs() -> None:
    spec = TensorSpec("input", ("batch", 3, 32, 32))
    assert spec.accepts((7, 3, 32, 32))
    assert not spec.accepts((0, 3, 32, 32))
    assert not spec.accepts((1, 3, 32, 31))
    assert not spec.accepts((3, 32, 32))
    assert spec.fixed(4) == (4, 3, 32, 32)


def test_a_spec_of_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(UnknownName, match="complex64"):
        TensorSpec("input", (1,), "complex64")


def test_an_entry_survives_the_way_through_plain_data() -> None:
    spec = TensorSpec("input", ("batch", 3), "float16", "NC")
    entry = EngineEntry(
        name="onnx-fp16",
        format="onnx",
        precision="fp16",
        files={"onnx-fp16/model.onnx": "0" * 64},
        inputs=(spec,),
        outputs=(spec,),
        toolchain={"torch": "2.15.0"},
        built_s=1.5,
        opset=17,
        parity={"status": "passed"},
    )
    assert EngineEntry.from_dict(entry.to_dict()) == entry


def test_a_wrapped_numpy_array_shares_its_memory_and_has_no_cuda_interface() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    wrapped = DeviceArray.of_numpy(array)
    assert (wrapped.ptr, wrapped.shape, wrapped.dtype, wrapped.device) == (array.ctypes.data, (2, 3), "float32", "cpu")
    assert wrapped.nbytes == 24
    assert not hasattr(wrapped, "__cuda_array_interface__")


def test_an_array_on_a_gpu_describes_itself_to_other_libraries() -> None:
    interface = DeviceArray(4096, (1, 3), "bfloat16", "cuda:0", None).__cuda_array_interface__
    assert interface["data"] == (4096, False)
    assert interface["shape"] == (1, 3)
    assert interface["typestr"] == "<u2"


def test_a_strided_array_is_refused() -> None:
    with pytest.raises(UsageError, match="C-contiguous"):
        DeviceArray.of_numpy(np.zeros((4, 4), np.float32)[:, ::2])
