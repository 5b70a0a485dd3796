"""A worker's measurement on a GPU whose driver is a fake: what it wires together, with real gate, events and staging."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import types

import bench_scripted
import fake_cuda
import numpy as np
import pytest

from accel import device
from accel.bench import environment, worker
from accel.bench.coordinate import run_set
from accel.bench.flags import NVML_COLUMNS
from accel.bench.plan import MeasurementPlan
from accel.bench.settings import BenchSettings
from accel.errors import MissingExtra
from accel.runtimes import table as runtime_table
from accel.types import Binding, Variant

PLAN = MeasurementPlan(warmup=5, iterations=12, rounds=1, block=8, discard=2)


class OnGpu(bench_scripted.Scripted):
    """Inputs and outputs in the fake GPU's memory; a call takes its scripted time and leaves `left_us` on a stream of its own."""

    left_us = 0.0

    def open(self, stream):
        self.home = Binding({"image": device.to_device(np.zeros(self.inputs[0].shape, np.float32), "float32", "cuda:0", stream)})
        self._result = device.empty(self.outputs[0].shape, "float32", "cuda:0")
        self.pending_us = 0.0

    def enqueue(self, binding):
        bench_scripted.script.clock.advance_us(next(bench_scripted.script.call_us))
        type(self).pending_us = self.left_us

    def output(self, binding):
        return {"logits": self._result}


@pytest.fixture
def gpu(script, monkeypatch):
    """A function that opens a fake GPU, whose events and waits go by the script's clock, as a context."""
    row = bench_scripted.table()["eager"]
    monkeypatch.setitem(runtime_table.RUNTIMES, "eager", type(row)(**{**vars(row), "factory": f"{__name__}:OnGpu"}))

    def wait_for_all():
        script.clock.advance_us(3 + OnGpu.pending_us)
        OnGpu.pending_us = 0.0
        return ()

    # On a busy machine a test may stand still for longer than the real watchdog's 50 ms.
    monkeypatch.setattr(device, "Gate", functools.partial(device.Gate, watchdog_s=60.0))

    @contextlib.contextmanager
    def opened(left_us=0.0, flags=1):
        monkeypatch.setattr(OnGpu, "left_us", left_us)
        OnGpu.pending_us = 0.0
        with fake_cuda.installed() as fake:
            # An event is the fake clock's reading when it is recorded.
            marks, made = {}, itertools.count(1)
            fake._cuEventCreate = lambda flags: (next(made),)
            fake._cuEventRecord = lambda event, stream: marks.__setitem__(event, script.clock.now_ns()) or ()
            fake._cuEventElapsedTime = lambda begin, end: ((marks[end] - marks[begin]) / 1e6,)
            fake._cuCtxSynchronize = wait_for_all
            fake._cuDevicePrimaryCtxGetState = lambda handle: (flags, 1)
            yield fake

    return opened


@pytest.fixture
def answer(script, bundle, gpu):
    """A function that lets a worker measure on the fake GPU."""

    def make(plan=PLAN, **given):
        with gpu(**given) as fake:
            request = {"mode": "measure", "bundle": str(bundle.path), "variant": "eager:fp32", "device": "cuda:0", "batch": 1}
            return (*worker.answer({**request, "threads": 1, "plan": plan.to_dict()}, clock=script.clock), fake)

    return make


def test_a_worker_beside_a_gpu_takes_every_pass_with_the_instrument_of_its_own(answer):
    found, samples, _ = answer()

    assert list(samples) == ["host_us", "device_us", "span_us", "enqueue_us", "replay_us", "e2e_us"]
    assert {kind: set(taken) for kind, taken in samples.items()} == {kind: {100_000} for kind in samples}
    assert (found["flags"], found["event_floor_us"]) == ([], {"device_us": 0, "span_us": 0})


@pytest.mark.parametrize(("left_us", "flags"), [(0, []), (15, []), (60, ["FOREIGN_STREAM"])])
def test_a_worker_finds_out_work_that_its_runtime_leaves_on_another_stream(answer, left_us, flags):
    assert answer(left_us=left_us)[0]["flags"] == flags


@pytest.mark.parametrize(("flags", "said"), [(1, "spin"), (4, "as another library chose")])
def test_how_the_gpu_was_waited_for_is_read_back_from_the_driver(answer, flags, said):
    assert answer(flags=flags)[0]["sync_mode"] == said


def test_a_cold_cache_is_filled_before_every_sample(answer):
    _, samples, fake = answer(MeasurementPlan(**{**PLAN.to_dict(), "l2": "cold"}))

    assert list(samples) == ["host_us", "device_us", "span_us", "e2e_us"]
    # Warm-up, four passes of 12 samples and two discarded pairs, and the pass with one input.
    assert fake.calls.count("cuMemsetD8Async") == 5 + 5 * (12 + 2 * 2)


@pytest.fixture
def bench(script, bundle, gpu, tmp_path, monkeypatch):
    """A function that runs a whole set on the fake GPU, where torch (for the self-check) and NVML are absent."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    script.fail["selfcheck", "eager"] = MissingExtra("torch", "train")
    requests = []

    def launch(request, *rest):
        requests.append(request)
        return script.launch(request, *rest)

    def run(plan=PLAN, **given):
        with gpu(**given):
            variants = [Variant("eager", "fp32")]
            result = run_set(bundle, variants, plan, "cuda:0", tmp_path / "out", BenchSettings(), verify=False, launch=launch)
        return result, [request for request in requests if request["mode"] == "measure"]

    return run


def test_a_set_on_a_gpu_without_nvml_has_its_columns_null_and_one_thread(bench):
    result, (request,) = bench()

    rows = {row["latency_kind"]: row for row in result.rows}
    assert list(rows) == ["host_us", "device_us", "span_us", "enqueue_us", "replay_us", "e2e_us"]
    assert {name: value for row in result.rows for name, value in row.items() if name in NVML_COLUMNS} == dict.fromkeys(NVML_COLUMNS)
    assert {tuple(row["flags"]) for row in result.rows} == {("NVML_UNAVAILABLE", "UNVERIFIED")}
    assert "pynvml" in result.description["environment"]["nvml"]["absent"]
    assert result.description["self_check"]["passed"] is None
    shared = {(row["threads"], row["sync_mode"], row["l2_mode"], row["gpu_name"]) for row in result.rows}
    assert shared == {(1, "spin", "hot", "Fake GPU")}
    assert request["threads"] == 1
    events = {kind: (row["event_floor_us"], row["p50_corrected_us"]) for kind, row in rows.items()}
    assert events == {**dict.fromkeys(rows, (None, None)), "device_us": (0, 100), "span_us": (0, 100)}


def test_work_on_a_foreign_stream_makes_every_row_of_the_run_invalid(bench):
    rows = bench(left_us=60)[0].rows

    assert {(row["verdict"], row["exit_code"], *row["refusals"]) for row in rows} == {("INVALID", 3, "FOREIGN_STREAM")}
    assert {tuple(row["flags"]) for row in rows} == {("NVML_UNAVAILABLE", "UNVERIFIED")}


def test_on_a_cpu_nobody_waited_for_a_gpu(script, bundle):
    request = {"mode": "measure", "bundle": str(bundle.path), "variant": "eager:fp32", "device": "cpu", "batch": 1}

    found, _ = worker.answer({**request, "threads": 1, "plan": PLAN.to_dict()}, clock=script.clock)

    assert (found["sync_mode"], found["cudnn"], found["event_floor_us"]) == (None, None, {})


def test_cudnn_is_torchs_own_where_torch_is_loaded(monkeypatch):
    def using(number):
        torch = types.SimpleNamespace(backends=types.SimpleNamespace(cudnn=types.SimpleNamespace(version=lambda: number)))
        monkeypatch.setitem(sys.modules, "torch", torch)
        return environment.cudnn()

    monkeypatch.setattr(environment, "version_of", lambda *names: "9.13.0.50")
    assert [using(91002), using(8907), using(None)] == ["9.10.2", "8.9.7", "9.13.0.50"]
    monkeypatch.delitem(sys.modules, "torch")
    assert environment.cudnn() == "9.13.0.50"
