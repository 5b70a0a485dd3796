"""Several builds: each held against the golden samples and timed, the fastest right one kept with the record of all."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines.engine_samples import INPUT, OUTPUT, golden_of
from exporters import onnx_samples

from accel import exporters
from accel.api import builds, export
from accel.bench.launch import ARRAYS
from accel.engines import Golden, Reference
from accel.errors import ParityError
from accel.exporters import FORMATS, BuildOptions, ExportRequest
from accel.exporters.describing import describe
from accel.preprocess import Preprocess
from accel.runtimes import RUNTIMES, RuntimeInfo
from accel.types import EngineEntry, TensorSpec
from accel.verify.data import open_data

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
    with pytest.raises(ParityError, match=r"none of 3 builds is right \(build 1: output: too far"):
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


@dataclasses.dataclass
class Real:
    """Builds that real workers run on the CPU: ONNX files, of the seeds given, in the place of plans."""

    bench: builds.Bench
    request: ExportRequest
    images: np.ndarray

    def record(self) -> dict[str, Any]:
        builds.best_of("onnx", self.request, lambda entry, folder: PASSED, self.bench)
        return json.loads((self.request.folder / "builds.json").read_text())


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Real:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    seeds = iter((1, 2))

    def build(format: str, request: ExportRequest) -> EngineEntry:
        onnx_samples.write(request.folder / "model.onnx", seed=next(seeds))
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
    return Real(bench, ExportRequest(None, specs[:1], specs[1:], "fp32", folder, options=BuildOptions(builds=2)), images)


def test_builds_are_timed_by_the_worker_of_a_bench(real: Real) -> None:
    record = real.record()
    times = [row["p50_us"] for row in record["builds"]]
    assert all(0 < time < 1e6 for time in times)
    assert record["chosen"] == 1 + times.index(min(times))
    onnx_samples.write(real.request.folder / "again.onnx", seed=record["chosen"])
    assert (real.request.folder / "model.onnx").read_bytes() == (real.request.folder / "again.onnx").read_bytes()
    assert [row["accuracy"] for row in record["builds"]] == [{"reason": "not measured: the bundle names no test data"}] * 2


def test_the_accuracy_of_each_build_is_on_record_and_one_that_fails_its_gate_is_not_chosen(real: Real, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(onnx_samples.write(tmp_path / "second.onnx", seed=2)), providers=["CPUExecutionProvider"])
    logits = np.concatenate([session.run(None, {"x": image[None]})[0] for image in real.images])
    data = tmp_path / "data.npz"
    np.savez(data, images=real.images, labels=logits.argmax(axis=1).astype(np.int64))
    reference = Reference(logits, "0" * 64, open_data(f"npz:{data}").sha256)
    real.bench = dataclasses.replace(real.bench, data=f"npz:{data}", reference=lambda: reference)
    record = real.record()
    wrong, right = record["builds"]
    # The first build is another network: its answers pass no gate, however fast it is.
    assert (record["chosen"], wrong["p50_us"]) == (2, None)
    assert wrong["accuracy"]["top1"] < 60
    assert wrong["accuracy"]["reason"].startswith("top1 fell by ")
    assert right["accuracy"] == {"top1": 100.0, "top1_reference": 100.0, "n_flips": 0, "n_test": 8, "reason": ""}
    assert right["p50_us"] > 0


def test_without_a_reference_an_accuracy_is_not_measured_and_says_so(real: Real, tmp_path: Path) -> None:
    real.bench = dataclasses.replace(real.bench, data="npz:nowhere.npz")
    rows = real.record()["builds"]
    assert {row["accuracy"]["reason"] for row in rows} == {"not measured: no reference is stored: `accel verify` makes one"}
    assert all(row["p50_us"] for row in rows)


def test_an_export_makes_the_reference_of_its_bundle_where_there_is_none(
    tiny: Path, tiny_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(FORMATS, "torchscript", dataclasses.replace(FORMATS["torchscript"], options=("builds",)))
    model = tmp_path / "model"
    shutil.copytree(tiny / "checkpoint", model)
    described = json.loads((model / "checkpoint.json").read_text())
    (model / "checkpoint.json").write_text(json.dumps({**described, "dataset": tiny_data}))
    bundle = Path(export(model, "onnx", name="mine", device="cpu", trusted=True)[0].bundle)
    with caplog.at_level("INFO", logger="accel"):
        export(bundle, "torchscript", options=BuildOptions(builds=2), device="cpu")
    record = json.loads((bundle / "torchscript-fp32" / "builds.json").read_text())
    known = {(round(row["accuracy"]["top1"], 2), row["accuracy"]["n_flips"], row["accuracy"]["n_test"]) for row in record["builds"]}
    assert known == {(91.67, 0, 60)}
    assert (bundle / "reference.npz").is_file()
    assert "build 2 of torchscript-fp32: passed (" in caplog.text
    assert "µs from call to result, median), top-1 91.67 %" in caplog.text


def test_builds_are_verified_on_images_by_the_preprocessing_of_their_bundle(real: Real, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(onnx_samples.write(tmp_path / "second.onnx", seed=2)), providers=["CPUExecutionProvider"])
    preprocess = Preprocess(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1), height=8, width=8)
    images = np.random.default_rng(1).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    logits = np.concatenate([session.run(None, {"x": preprocess(image[None])})[0] for image in images])
    data = tmp_path / "images.npz"
    np.savez(data, images=images, labels=logits.argmax(axis=1).astype(np.int64))
    reference = Reference(logits, "0" * 64, open_data(f"npz:{data}").sha256)
    real.bench = dataclasses.replace(real.bench, preprocess=preprocess.to_dict(), data=f"npz:{data}", reference=lambda: reference)
    assert real.record()["builds"][1]["accuracy"] == {"top1": 100.0, "top1_reference": 100.0, "n_flips": 0, "n_test": 8, "reason": ""}


def test_an_export_hands_its_bundles_preprocessing_to_its_builds(
    tiny: Path, rewritten: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "torchscript", dataclasses.replace(FORMATS["torchscript"], options=("builds",)))
    preprocess = Preprocess(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1), height=8, width=8).to_dict()
    rewritten(tiny, preprocess=preprocess)
    seen: list[builds.Bench] = []

    def best_of(format: str, request: ExportRequest, parity: builds.Parity, bench: builds.Bench) -> EngineEntry:
        seen.append(bench)
        raise ParityError("none is right")

    monkeypatch.setattr(builds, "best_of", best_of)
    with pytest.raises(ParityError):
        export(tiny, "torchscript", options=BuildOptions(builds=2), device="cpu", force=True, trusted=True)
    assert seen[0].preprocess == preprocess
