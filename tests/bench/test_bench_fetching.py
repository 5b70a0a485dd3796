"""Several engines at once through the test samples: what each ends with, and that an interrupt ends them all."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from accel.bench import fetching
from accel.bench.candidates import Job, threads_on
from accel.bench.fetching import fetch_together, together
from accel.bench.launch import ARRAYS
from accel.bench.settings import BenchSettings
from accel.errors import AccelError
from accel.types import Variant

EAGER, ONNX = Variant("eager", "fp32"), Variant("onnxruntime", "fp32")
WANTED = {EAGER: "python", ONNX: "python"}


def job_with(launch: Any, folder: Path) -> Job:
    bundle: Any = SimpleNamespace(path=folder, name="net")
    return Job(bundle, "cpu", 1, None, BenchSettings(), folder, launch)


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching.os, "cpu_count", lambda: 2)


def answer_with(folder: Path, value: float) -> dict[str, Any]:
    folder.mkdir(parents=True)
    np.savez(folder / ARRAYS, outputs=np.full((3, 2), value, np.float32))
    return {"facts": {"precision": "fp32"}}


def test_engines_run_side_by_side_each_with_one_thread_and_a_folder_of_its_own(tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=30)  # passes only if both are inside at the same time

    def launch(request: Any, python: str, folder: Path, progress: Any) -> Any:
        assert request["threads"] == 1
        together.wait()
        return answer_with(folder, 1.0 if request["variant"] == "eager:fp32" else 2.0)

    found = dict(fetch_together(job_with(launch, tmp_path), "cifar10", WANTED, lambda *report: None))

    assert {str(variant): outputs[0][0, 0] for variant, outputs in found.items()} == {"eager:fp32": 1.0, "onnxruntime:fp32": 2.0}


def test_a_worker_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    def launch(request: Any, python: str, folder: Path, progress: Any) -> Any:
        if request["variant"] == "eager:fp32":
            raise AccelError("the worker died")
        return answer_with(folder, 2.0)

    found = dict(fetch_together(job_with(launch, tmp_path), "cifar10", WANTED, lambda *report: None))

    assert str(found[EAGER]) == "the worker died"
    assert found[ONNX][1] == {"precision": "fp32"}  # type: ignore[index]


def test_progress_is_the_mean_of_all_workers_in_percent(tmp_path: Path) -> None:
    told: list[float] = []

    def launch(request: Any, python: str, folder: Path, progress: Any) -> Any:
        progress("samples", 5000, 10000)
        return answer_with(folder, 0.0)

    dict(fetch_together(job_with(launch, tmp_path), "cifar10", WANTED, lambda step, done, total=None: told.append(done)))

    assert sorted(told) == [25.0, 50.0]


def test_an_interrupt_ends_the_other_workers_too(tmp_path: Path) -> None:
    started, ended = threading.Event(), threading.Event()

    def launch(request: Any, python: str, folder: Path, progress: Any) -> Any:
        if request["variant"] == "eager:fp32":
            started.wait(30)
            raise KeyboardInterrupt
        started.set()
        try:
            # As the real launcher does: tell the progress now and then; what it raises ends the worker.
            while not ended.wait(0.01):
                progress("samples", 1, 10000)
        finally:
            ended.set()
        return answer_with(folder, 0.0)

    with pytest.raises(KeyboardInterrupt):
        dict(fetch_together(job_with(launch, tmp_path), "cifar10", WANTED, lambda *report: None))

    assert ended.is_set()


@pytest.mark.parametrize(("device", "asked", "given"), [("cpu", None, None), ("cpu", 2, 2), ("cuda:0", None, 1), ("cuda:0", 4, 4)])
def test_beside_a_gpu_a_worker_has_one_thread(device: str, asked: int | None, given: int | None) -> None:
    assert threads_on(device, asked) == given


def test_compiled_code_is_verified_with_the_threads_that_it_is_timed_with(tmp_path: Path) -> None:
    compiled, job = Variant("compile", "fp32"), job_with(None, tmp_path)
    wanted = {**WANTED, compiled: "python"}
    assert set(together(job, wanted)) == {EAGER, ONNX}  # compile is left for a run alone, with the threads of the set
    assert set(together(dataclasses.replace(job, threads=1), wanted)) == {EAGER, ONNX, compiled}
    assert together(dataclasses.replace(job, threads=2), wanted) == {}


def test_on_a_gpu_what_tunes_itself_as_it_opens_is_verified_alone(tmp_path: Path) -> None:
    compiled, job = Variant("compile", "fp16"), dataclasses.replace(job_with(None, tmp_path), device="cuda:0")
    assert set(together(job, {**WANTED, compiled: "python"})) == {EAGER, ONNX}
    assert together(job, {EAGER: "python", compiled: "python"}) == {}
    assert set(together(dataclasses.replace(job, threads=1), {**WANTED, compiled: "python"})) == {EAGER, ONNX}


def test_a_gpu_takes_only_a_few_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching.os, "cpu_count", lambda: 64)
    job = job_with(None, tmp_path)
    assert fetching.at_once(job) == 64
    assert fetching.at_once(dataclasses.replace(job, device="cuda:0")) == fetching.ON_ONE_GPU


def test_what_fails_beside_others_on_a_gpu_is_left_for_a_run_alone(tmp_path: Path) -> None:
    def launch(request: Any, python: str, folder: Path, progress: Any) -> Any:
        if request["variant"] == "eager:fp32":
            raise AccelError("out of memory")
        return answer_with(folder, 2.0)

    job = dataclasses.replace(job_with(launch, tmp_path), device="cuda:0")
    found = dict(fetch_together(job, "cifar10", WANTED, lambda *report: None))

    assert set(found) == {ONNX}
