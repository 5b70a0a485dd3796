"""ONNX Runtime gets what was asked for or an error, never another provider."""

from __future__ import annotations

from collections.abc import Callable
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_net import expected, some_images

from accel import device, runtimes
from accel.device import driver
from accel.errors import CorruptArtifact, MissingExtra, RuntimeUnavailable, UsageError
from accel.types import EngineSource

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("torch")
MakeSource = Callable[..., EngineSource]


def changed(source: EngineSource, **changes: Any) -> EngineSource:
    return EngineSource(**{**vars(source), **changes})


def test_cuda_without_a_gpu_is_an_error_and_not_a_trip_to_the_cpu(
    make_source: MakeSource, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The real provider on this machine: activating the device is skipped, so that ONNX Runtime itself must refuse."""
    if device.gpu_available()[0]:
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(driver, "activate", lambda device: None)
    runtime = runtimes.create(make_source("onnxruntime:fp32", device="cuda:0"))
    with pytest.raises(RuntimeUnavailable, match=r"accel-engines\[ort\]") as caught:
        runtime.open(1)
    assert caught.value.exit_code == 4
    assert "CPUExecutionProvider" not in str(runtime.facts.get("provider"))
    assert capfd.readouterr().out == ""


def test_a_build_without_cuda_says_what_it_has(make_source: MakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "activate", lambda device: None)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["AzureExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(RuntimeUnavailable, match="has only AzureExecutionProvider, CPUExecutionProvider"):
        runtimes.create(make_source("onnxruntime:fp16", device="cuda:0")).open(1)


def test_the_cuda_session_is_asked_for_alone_with_its_arithmetic_and_stream(
    make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Stop(RuntimeError):
        pass

    def session(path: str, options: Any, providers: Any, enable_fallback: int) -> None:
        asked.append((providers, enable_fallback, options.get_session_config_entry("session.disable_cpu_ep_fallback")))
        raise Stop("enough")

    monkeypatch.setattr(driver, "activate", lambda device: None)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(ort, "InferenceSession", session)
    for precision, tf32 in (("fp32", "0"), ("tf32", "1")):
        with pytest.raises(RuntimeUnavailable, match="enough"):
            runtimes.create(make_source(f"onnxruntime:{precision}", device="cuda:1")).open(4711)
        ((name, options),), fallback, no_cpu = asked.pop()
        assert (name, fallback, no_cpu) == ("CUDAExecutionProvider", 0, "1")
        assert options == {"device_id": "1", "user_compute_stream": "4711", "cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": tf32}


def test_graph_and_nhwc_are_options_of_the_cuda_provider(make_source: MakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def session(path: str, options: Any, providers: Any, enable_fallback: int) -> None:
        asked.append(dict(providers[0][1]))
        raise RuntimeError("enough")

    monkeypatch.setattr(driver, "activate", lambda device: None)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(ort, "InferenceSession", session)
    for spelling, names in (
        ("graph", {"enable_cuda_graph"}),
        ("nhwc", {"prefer_nhwc"}),
        ("graph+nhwc", {"enable_cuda_graph", "prefer_nhwc"}),
    ):
        with pytest.raises(RuntimeUnavailable, match="enough"):
            runtimes.create(make_source(f"onnxruntime:fp16+{spelling}", device="cuda:0")).open(4711)
        found = asked.pop()
        assert {name for name in ("enable_cuda_graph", "prefer_nhwc") if found.get(name) == "1"} == names
        assert found["user_compute_stream"] == "4711"


def test_tensorrts_provider_comes_first_with_cuda_behind_it_and_a_cache_of_the_files_own(
    make_source: MakeSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def session(path: str, options: Any, providers: Any, enable_fallback: int) -> None:
        asked.append((providers, options.get_session_config_entry("session.disable_cpu_ep_fallback")))
        raise RuntimeError("enough")

    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "activate", lambda device: None)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(ort, "InferenceSession", session)
    for precision in ("fp16", "tf32"):
        with pytest.raises(RuntimeUnavailable, match="enough"):
            runtimes.create(make_source(f"onnxruntime:{precision}+trt-ep", device="cuda:0")).open(4711)
    caches = []
    for half, ((first, second), no_cpu) in zip(("1", "0"), asked, strict=True):
        (name, options), (behind, _) = first, second
        assert (name, behind, no_cpu) == ("TensorrtExecutionProvider", "CUDAExecutionProvider", "1")
        assert (options["trt_fp16_enable"], options["user_compute_stream"], options["has_user_compute_stream"]) == (half, "4711", "1")
        assert options["trt_engine_cache_path"].startswith(str(tmp_path))
        caches.append(options["trt_engine_cache_path"])
    assert caches[0] != caches[1]


@pytest.mark.parametrize(
    ("option", "found", "mends"),
    [
        ("trt-ep", "TensorRT libraries", "libnvinfer.so.10"),
        ("rtx-ep", "no plugin is installed", "pip install onnxruntime-ep-nv-tensorrt-rtx"),
    ],
)
def test_a_provider_that_is_not_here_is_missing_with_what_would_mend_it(
    make_source: MakeSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str, found: str, mends: str
) -> None:
    """The real package on this machine."""
    if find_library("nvinfer") or find_spec("onnxruntime_ep_nv_tensorrt_rtx"):
        pytest.skip("a TensorRT provider can be loaded here")
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "activate", lambda device: None)
    with pytest.raises(RuntimeUnavailable, match=found) as caught:
        runtimes.create(make_source(f"onnxruntime:fp16+{option}", device="cuda:0")).open(1)
    assert mends in str(caught.value.remedy)
    assert caught.value.exit_code == 4


@pytest.mark.gpu
@pytest.mark.parametrize("option", ["trt-ep", "rtx-ep"])
def test_a_tensorrt_provider_that_opens_answers_as_the_network_does(make_source: MakeSource, option: str) -> None:
    available, reason = device.gpu_available()
    if not available:
        pytest.skip(reason)
    stream = device.open_stream("cuda:0")
    runtime = runtimes.create(make_source(f"onnxruntime:fp16+{option}", device="cuda:0"))
    try:
        runtime.open(stream)
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    images = some_images()
    logits = device.Staging(runtime.home, stream).run(runtime, {"images": images})["logits"]
    np.testing.assert_allclose(logits, expected(images), atol=2e-2, rtol=0)
    assert sum(runtime.facts["placement"].values()) == runtime.facts["gpu_nodes"] > 0
    runtime.close()
    device.close_stream(stream)


def test_a_truncated_file_is_corrupt(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source("onnxruntime:fp32")
    assert source.file is not None
    broken = tmp_path / "model.onnx"
    broken.write_bytes(source.file.read_bytes()[:300])
    with pytest.raises(CorruptArtifact, match="accel export MODEL --to onnx"):
        runtimes.create(changed(source, file=broken)).open(None)
    with pytest.raises(CorruptArtifact):
        runtimes.create(changed(source, file=tmp_path / "absent.onnx")).open(None)


def test_missing_onnxruntime_names_the_extra(make_source: MakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    source = make_source("onnxruntime:fp32")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"accel-engines\[ort\]"):
        runtimes.create(source).open(None)


def test_no_call_looks_for_an_option_that_is_not_there(make_source: MakeSource) -> None:
    """In 1.31 that is an exception inside every run: 40 µs of each call."""
    runtime: Any = runtimes.create(make_source("onnxruntime:fp32"))
    runtime.open(None)
    assert runtime._run_options is None
    runtime.close()


def test_home_is_bound_once_and_other_inputs_whenever_they_change(make_source: MakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime: Any = runtimes.create(make_source("onnxruntime:fp32"))
    runtime.open(None)
    bound: list[Any] = []
    real = runtime._io.bind_input
    monkeypatch.setattr(runtime._io, "bind_input", lambda *call: bound.append(call) or real(*call))
    mine = runtime.prepare({"images": device.to_device(some_images(seed=4), "float32", "cpu", None)})
    for binding in (runtime.home, runtime.home, mine, mine, runtime.home):
        runtime.enqueue(binding)
    assert [call[-1] for call in bound] == [mine.inputs["images"].ptr, runtime.home.inputs["images"].ptr]
    np.testing.assert_allclose(runtime.output(mine)["logits"].owner, expected(np.ones_like(some_images())), atol=1e-5)
    runtime.close()


def test_threads_are_an_option_of_the_session_and_opening_twice_is_refused(make_source: MakeSource) -> None:
    runtime: Any = runtimes.create(make_source("onnxruntime:fp32", threads=1))
    runtime.open(None)
    assert runtime._session.get_session_options().intra_op_num_threads == 1
    with pytest.raises(UsageError, match="open already"):
        runtime.open(None)
    runtime.close()


def test_a_dynamic_batch_is_set_to_the_sources_batch(make_source: MakeSource, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    source = make_source("onnxruntime:fp32", batch=3)
    model = onnx.load(str(source.file))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, str(tmp_path / "dynamic.onnx"))
    runtime = runtimes.create(changed(source, file=tmp_path / "dynamic.onnx", batch=2))
    runtime.open(None)
    images = some_images(batch=2)
    logits = device.Staging(runtime.home, None).run(runtime, {"images": images})["logits"]
    np.testing.assert_allclose(logits, expected(images), atol=1e-5)
    runtime.close()
