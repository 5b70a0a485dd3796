"""ONNX Runtime with a CUDA graph: real options and bindings of ours, a session of the test's own, memory of the host."""

from __future__ import annotations

import ctypes
import gc
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCore, FakeDriver

from accel import device, runtimes
from accel.device import driver
from accel.errors import RuntimeUnavailable
from accel.types import EngineSource, TensorSpec, Variant

ort = pytest.importorskip("onnxruntime")
STREAM = 77
X, Y = TensorSpec("x", (1, 4)), TensorSpec("y", (1, 4))


class FakeSession:
    """`y = 2 x` on whatever addresses are bound; like ONNX Runtime it reads the addresses of its second run from then on."""

    ignores: tuple[str, ...] = ()
    fails: Exception | None = None
    ep = "CUDAExecutionProvider"

    def __init__(self, path: str, options: Any, providers: Any, enable_fallback: int) -> None:
        self.asked = {name: value for name, value in providers[0][1].items() if name not in self.ignores}
        self.bound: list[tuple[str, int]] = []
        self.addresses: dict[str, int] = {}
        self.recorded: dict[str, int] = {}
        self.runs = 0

    def get_inputs(self) -> list[Any]:
        return [types.SimpleNamespace(name="x", type="tensor(float)", shape=[1, 4])]

    def get_outputs(self) -> list[Any]:
        return [types.SimpleNamespace(name="y", type="tensor(float)", shape=[1, 4])]

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {"CUDAExecutionProvider": self.asked}

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [types.SimpleNamespace(ep_name=self.ep, get_nodes=lambda: ["Mul"])]

    def io_binding(self) -> FakeSession:
        return self

    def bind_input(self, name: str, kind: str, index: int, dtype: Any, shape: Any, address: int) -> None:
        self.bound.append((name, address))
        self.addresses[name] = address

    def bind_output(self, name: str, kind: str, index: int, dtype: Any, shape: Any, address: int) -> None:
        self.addresses[name] = address

    def run_with_iobinding(self, io: Any, options: Any) -> None:
        self.runs += 1
        assert options.get_run_config_entry("gpu_graph_id") == "0"  # said aloud, since an absent entry is an exception in every run
        if self.fails is not None and self.runs == 2:
            raise type(self.fails)(*self.fails.args)
        if self.runs == 2 and self.asked.get("enable_cuda_graph") == "1":
            self.recorded = dict(self.addresses)
        at = self.recorded or self.addresses
        values = np.frombuffer((ctypes.c_float * 4).from_address(at["x"]), np.float32)
        ctypes.memmove(at["y"], (2 * values).ctypes.data, 16)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeSession]]:
    fake = FakeDriver()
    monkeypatch.setattr(driver, "bindings", lambda: fake)
    monkeypatch.setattr(driver, "require", lambda module, extra: FakeCore)
    driver._prepared.cache_clear()
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])

    class Session(FakeSession):
        pass

    monkeypatch.setattr(ort, "InferenceSession", Session)
    yield Session
    # Buffers that an error's traceback still holds are freed while their driver is there.
    gc.collect()
    driver._prepared.cache_clear()


def make(spelling: str) -> Any:
    return runtimes.create(EngineSource(Variant.parse(spelling), "cuda:0", (X,), (Y,), file=Path("model.onnx")))


def answers(runtime: Any, values: list[float]) -> list[float]:
    binding = runtime.prepare({"x": device.to_device(np.array([values], np.float32), "float32", "cuda:0", STREAM)})
    runtime.enqueue(binding)
    return list(device.to_numpy(runtime.output(binding)["y"], STREAM)[0])


@pytest.mark.parametrize(("spelling", "bindings"), [("onnxruntime:fp32+graph", 1), ("onnxruntime:fp32", 3)])
def test_a_graph_is_bound_once_and_every_binding_still_gives_its_own_answer(
    session: type[FakeSession], spelling: str, bindings: int
) -> None:
    """Three runs to warm up, which bind home once, and two calls with bindings of their own."""
    runtime = make(spelling)
    runtime.open(STREAM)
    assert answers(runtime, [1, 2, 3, 4]) == [2, 4, 6, 8]
    assert answers(runtime, [5, 6, 7, 8]) == [10, 12, 14, 16]
    assert runtime._session.runs == 5
    assert len(runtime._session.bound) == bindings
    runtime.close()


def test_home_costs_no_copy_and_is_what_the_graph_reads(session: type[FakeSession]) -> None:
    runtime = make("onnxruntime:fp32+graph+nhwc")
    runtime.open(STREAM)
    assert runtime.home.native == ()
    assert runtime._session.recorded["x"] == runtime.home.inputs["x"].ptr
    assert runtime.facts["provider_options"] == {"enable_cuda_graph": "1", "prefer_nhwc": "1"}
    assert (runtime.facts["gpu_nodes"], runtime.facts["cpu_nodes"]) == (1, 0)
    runtime.close()


def test_an_option_that_the_session_ignored_is_an_error(session: type[FakeSession]) -> None:
    session.ignores = ("prefer_nhwc",)
    with pytest.raises(RuntimeUnavailable, match="read prefer_nhwc=1 and has prefer_nhwc=None"):
        make("onnxruntime:fp32+graph+nhwc").open(STREAM)


def test_a_model_that_cannot_be_recorded_says_so(session: type[FakeSession]) -> None:
    session.fails = ort.capi.onnxruntime_pybind11_state.Fail("control flow\nand more")
    with pytest.raises(RuntimeUnavailable, match=r"cannot record model\.onnx as a CUDA graph: control flow") as caught:
        make("onnxruntime:fp32+graph").open(STREAM)
    assert "without the option graph" in str(caught.value.remedy)


def test_tensorrts_provider_must_have_taken_some_of_the_model(
    session: type[FakeSession], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path))
    both = ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: both)
    monkeypatch.setattr(session, "get_providers", lambda self: both)
    source = EngineSource(Variant.parse("onnxruntime:tf32+trt-ep"), "cuda:0", (X,), (Y,), file=tmp_path / "model.onnx")
    with pytest.raises(RuntimeUnavailable, match=r"gave it no node of the model: \{'CUDAExecutionProvider': 1\}"):
        runtimes.create(source).open(STREAM)
    session.ep = "TensorrtExecutionProvider"
    runtime = runtimes.create(source)
    runtime.open(STREAM)
    assert runtime.facts["placement"] == {"TensorrtExecutionProvider": 1}
    assert runtime.facts["precision"] == "tf32"
    assert runtime.facts["build_cached"] is False
    runtime.close()
    (folder,) = (tmp_path / "onnxruntime-tensorrt").iterdir()
    (folder / "TensorrtExecutionProvider_graph_0_sm90.engine").touch()
    runtime = runtimes.create(source)
    runtime.open(STREAM)
    assert runtime.facts["build_cached"] is True
    runtime.close()
    monkeypatch.setattr(session, "get_providers", lambda self: both[1:])
    with pytest.raises(RuntimeUnavailable, match="took CUDAExecutionProvider"):
        runtimes.create(source).open(STREAM)
