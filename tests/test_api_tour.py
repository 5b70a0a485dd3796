"""The demo: a row for everything, whatever is missing; the exit code says what could not be shown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accel import runtimes, trainers
from accel.api import tour
from accel.checkpoint import write_checkpoint
from accel.engines import Bundle
from accel.engines.weights import read_weights
from accel.errors import MissingExtra

CLASSES = tuple(f"class {number}" for number in range(10))


@pytest.fixture
def shipped(tiny_exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One shipped model, tiny, trained on CIFAR-10 as far as its checkpoint says; no images, two quick runtimes, a small plan."""
    checkpoint = Bundle.open(tiny_exported).checkpoint
    described = dataclasses.replace(checkpoint, path=tmp_path / "weights" / "tiny", name="tiny", dataset="cifar10", labels=CLASSES)
    write_checkpoint(described, read_weights(checkpoint.weights))
    monkeypatch.setattr(trainers, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(trainers, "MODELS", {"tiny": "nets:build"})
    monkeypatch.setattr(tour, "MODELS", ("tiny",))
    for name in ("compile", "torchscript"):
        monkeypatch.delitem(runtimes.RUNTIMES, name)
    monkeypatch.setattr(tour, "FORMATS", ("onnx",))
    for name, value in {"ITERATIONS": "20", "ROUNDS": "1", "WARMUP": "1"}.items():
        monkeypatch.setenv(f"ACCEL_BENCH_{name}", value)
    monkeypatch.setenv("ACCEL_OFFLINE", "1")
    monkeypatch.setenv("ACCEL_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_the_images_every_row_is_unverified_and_the_code_is_4(shipped: Path, accel_cli: Callable[..., Any]) -> None:
    ran = accel_cli("demo")
    assert ran.code == 4, ran.err
    assert "accel data fetch cifar10" in ran.err
    folder = shipped / "results" / "local" / "demo"
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    verdicts = {row["variant"]: row["verdict"] for row in rows}
    assert verdicts == {"eager:fp32": "UNVERIFIED", "onnxruntime:fp32": "UNVERIFIED", "onnxruntime:fp16": "REFUSED"}
    assert all(row["p50_us"] > 0 for row in rows if row["verdict"] == "UNVERIFIED")
    assert "UNVERIFIED" in ran.out
    assert "| variant |" in (folder / "table.md").read_text()
    assert (folder / "results.csv").read_text().count("\n") == 1 + len(rows)


def test_the_tour_shows_two_models_that_are_shipped() -> None:
    assert tour.MODELS == ("mobilenetv3_small", "resnet18")
    assert set(tour.MODELS) <= set(trainers.with_weights())


def test_the_tour_leaves_out_what_is_built_for_one_device() -> None:
    assert tour.FORMATS == ("onnx", "torchscript")
    assert {spelling.partition(":")[0] for spelling in tour._file_variants("cpu")} == {"onnxruntime", "torchscript"}


def test_a_shipped_model_that_was_never_exported_is_exported_for_what_is_named(shipped: Path) -> None:
    from accel.api import bundles
    from accel.errors import BundleMissing

    opened = bundles.open_or_export("tiny", ["onnxruntime"], engines_dir="engines", device="cpu")
    assert [entry.name for entry in opened.entries] == ["onnx-fp32"]
    with pytest.raises(BundleMissing, match=r"engines/other\.accel is no bundle.*engines has engines/tiny\.accel"):
        bundles.open_or_export("other", ["onnxruntime"], engines_dir="engines", device="cpu")


def test_a_format_is_exported_in_the_precisions_that_it_has_and_left_out_where_it_cannot_express_the_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from accel.api import bundles
    from accel.errors import BundleMissing, UnsupportedOperator

    asked: list[tuple[str, str]] = []

    def export(model: str, format: str, *, precision: str, **_: object) -> None:
        asked.append((format, precision))
        if format == "fused":
            raise UnsupportedOperator("layer 'x' cannot be exported to fused")

    monkeypatch.setattr(bundles, "export", export)
    monkeypatch.setattr(runtimes, "version", lambda name: "13" if name == "fused" else None)
    where = {"engines_dir": tmp_path, "device": "cuda:0"}
    with pytest.raises(BundleMissing):  # nothing was written
        bundles.open_or_export("resnet18", ["all"], **where)
    assert [precision for format, precision in asked if format == "fused"] == ["fp16"]
    assert [precision for format, precision in asked if format == "onnx"] == ["fp32", "fp16"]
    with pytest.raises(UnsupportedOperator):
        bundles.open_or_export("resnet18", ["fused"], **where)


def test_what_is_optional_and_missing_becomes_a_row(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*given: object, **named: object) -> None:
        raise MissingExtra("onnx", "onnx")

    tour.export("tiny", "torchscript" if "torchscript" in runtimes.RUNTIMES else "onnx", batch=3, device="cpu")
    monkeypatch.setattr(tour, "export", absent)
    found = tour.demo()
    rows = {row["variant"]: row for row in found.sets[0].rows}
    assert rows["onnxruntime:fp32"]["verdict"] == "MISSING"
    assert "accel export tiny --to onnx" in rows["onnxruntime:fp32"]["remedy"]
    assert found.problem is not None
    assert found.problem.exit_code == 4


def test_the_demo_names_tensorrt_where_it_could_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "version", lambda name: "8.6.0" if name == "tensorrt" else None)
    named = ["torchscript:fp32", "torchscript:fp16", "onnxruntime:fp32", "onnxruntime:fp16"]
    assert tour._file_variants("cpu") == named
    assert tour._file_variants("cuda:0") == [*named, "tensorrt:fp32", "tensorrt:fp16"]


def test_all_exports_for_tensorrt_where_it_is_installed_and_can_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    from accel.api import bundles

    monkeypatch.setattr(runtimes, "version", lambda name: "8.6.0" if name == "tensorrt" else None)
    always = {"onnx": True, "torchscript": True, "aoti": False}
    assert bundles._formats(["all"], "cpu") == always
    assert bundles._formats(["all"], "cuda:0") == {**always, "tensorrt": False}
    assert bundles._formats(["all", "trt:fp16"], "cuda:0") == {**always, "tensorrt": True}
    assert bundles._formats(["eager"], "cuda:0") == {"onnx": True}
