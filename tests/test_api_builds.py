"""Several builds: each held against the golden samples and timed, the fastest right one kept with the record of all."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines.engine_samples import INPUT, OUTPUT, golden_of
from exporters import onnx_samples

from accel import exporters
from accel.api import builds
from accel.bench.launch import ARRAYS
from accel.engines import Golden
from accel.errors import ParityError
from accel.exporters import FORMATS, BuildOptions, ExportRequest
from accel.exporters.describing import describe
from accel.runtimes import RUNTIMES, RuntimeInfo
from accel.types import EngineEntry, TensorSpec

PASSED = {"status": "passed", "reason": ""}
FAILED = {"status": "failed", "reason": "output: too far"}


@pytest.fixture
def request_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExportRequest:
    """A request for three builds; the builder writes its number, and a timing cache."""
    made = iter(range(1, 100))

    def build(format: str, request: ExportRequest) -> EngineEntry:
        number = next(made)
        (request.folder / "model.plan").write_bytes(b"plan %d" % number)
        (request.folder / "timing.cache").write_bytes(b"timings %d" % number)
        return describe(format, request, 0.0, toolchain={}, precision_proof={"share": 1.0})

    monkeypatch.setattr(exporters, "export", build)
    row = RuntimeInfo("accel.runtimes.fake:Fake", "tensorrt", ("fp32", "fp16"), (), ("nothing",), "trt")
    monkeypatch.setitem(RUNTIMES, "tensorrt", RUNTIMES.get("tensorrt", row))
    folder = tmp_path / "out"
    folder.mkdir()
    return ExportRequest(None, (INPUT,), (OUTPUT,), "fp16", folder, options=BuildOptions(builds=3))


def bench_of(tmp_path: Path, medians_us: list[float]) -> builds.Bench:
    """A bench whose worker says these medians, and looks whether the bundle that it was given can be opened."""
    left = list(medians_us)

    def launch(request: dict[str, Any], python: str, folder: Path, progress: Any) -> dict[str, Any]:
        from accel.engines import Bundle

        bundle = Bundle.open(request["bundle"])
        assert bundle.file(bundle.entries[0]).read_bytes().startswith(b"plan")
        assert (request["mode"], request["plan"]["rounds"]) == ("measure", 1)
        folder.mkdir(parents=True, exist_ok=True)
        median = left.pop(0) * 1e3
        np.savez(folder / ARRAYS, host_us=np.array([median - 500, median, median + 9000]))
        return {}

    scratch = tmp_path / "builds"
    scratch.mkdir()
    return builds.Bench(scratch, "cuda:0", "tiny", (INPUT,), (OUTPUT,), golden_of(), {}, launch)


def test_the_fastest_is_kept_with_its_timings_and_the_record_of_all(request_: ExportRequest, tmp_path: Path) -> None:
    bench = bench_of(tmp_path, [41.0, 37.5, 39.0])
    entry = builds.best_of("tensorrt", request_, lambda entry, folder: PASSED, bench)
    assert (request_.folder / "model.plan").read_bytes() == b"plan 2"
    assert (request_.folder / "timing.cache").read_bytes() == b"timings 2"
    record = json.loads((request_.folder / "builds.json").read_text())
    assert (record["chosen"], [row["p50_us"] for row in record["builds"]]) == (2, [41.0, 37.5, 39.0])
    assert {row["parity"]["status"] for row in record["builds"]} == {"passed"}
    assert [row["precision_share"] for row in record["builds"]] == [1.0, 1.0, 1.0]
    assert list(entry.files) == ["tensorrt-fp16/model.plan", "tensorrt-fp16/timing.cache", "tensorrt-fp16/builds.json"]
    assert entry.parity == PASSED
    assert record["builds"][1]["sha256"] == entry.files["tensorrt-fp16/model.plan"]


def test_a_wrong_build_is_recorded_and_neither_timed_nor_chosen(request_: ExportRequest, tmp_path: Path) -> None:
    answers = iter([FAILED, PASSED, PASSED])
    builds.best_of("tensorrt", request_, lambda entry, folder: next(answers), bench_of(tmp_path, [50.0, 60.0]))
    record = json.loads((request_.folder / "builds.json").read_text())
    assert record["chosen"] == 2
    assert record["builds"][0]["p50_us"] is None
    assert record["builds"][0]["parity"] == FAILED


def test_if_every_build_is_wrong_none_is_kept(request_: ExportRequest, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"none of 3 builds passed parity \(build 1: output: too far"):
        builds.best_of("tensorrt", request_, lambda entry, folder: FAILED, bench_of(tmp_path, []))
    assert list(request_.folder.iterdir()) == []


def test_the_builds_of_a_fixed_batch_are_timed_at_it(request_: ExportRequest, tmp_path: Path) -> None:
    seen: list[int] = []
    bench = bench_of(tmp_path, [1.0, 2.0, 3.0])
    real = bench.launch

    def launch(request: dict[str, Any], *rest: Any) -> dict[str, Any]:
        seen.append(request["batch"])
        return real(request, *rest)

    builds.best_of(
        "tensorrt", dataclasses.replace(request_, batch=4), lambda entry, folder: PASSED, dataclasses.replace(bench, launch=launch)
    )
    assert seen == [4, 4, 4]


def test_builds_are_timed_by_the_worker_of_a_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real worker on the CPU, which opens a bundle of each build; what it runs is an ONNX file in the place of a plan."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    files = iter(onnx_samples.write(tmp_path / f"{number}.onnx", seed=number) for number in (1, 2))

    def build(format: str, request: ExportRequest) -> EngineEntry:
        shutil.copyfile(next(files), request.folder / "model.onnx")
        return describe(format, request, 0.0, toolchain={}, precision_proof={"share": 1.0})

    monkeypatch.setattr(exporters, "export", build)
    monkeypatch.setitem(FORMATS, "onnx", dataclasses.replace(FORMATS["onnx"], options=("builds",)))
    specs = TensorSpec("x", ("batch", 3, 8, 8), layout="NCHW"), TensorSpec("y", ("batch", 4), layout="NC")
    images = np.random.default_rng(0).standard_normal((8, 3, 8, 8), dtype=np.float32)
    golden = Golden(None, {"x": images}, {"y": np.zeros((8, 4), np.float32)})
    folder, scratch = tmp_path / "out", tmp_path / "builds"
    folder.mkdir()
    scratch.mkdir()
    bench = builds.Bench(scratch, "cpu", "tiny", specs[:1], specs[1:], golden, {})
    request = ExportRequest(None, specs[:1], specs[1:], "fp32", folder, options=BuildOptions(builds=2))
    builds.best_of("onnx", request, lambda entry, folder: PASSED, bench)
    record = json.loads((folder / "builds.json").read_text())
    times = [row["p50_us"] for row in record["builds"]]
    assert all(0 < time < 1e6 for time in times)
    assert record["chosen"] == 1 + times.index(min(times))
    assert (folder / "model.onnx").read_bytes() == (tmp_path / f"{record['chosen']}.onnx").read_bytes()
