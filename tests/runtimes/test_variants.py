"""From what is typed to the variants that it means for a bundle."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from accel import runtimes
from accel.engines import Bundle, compat
from accel.errors import BundleMissing, IncompatibleArtifact, RuntimeUnavailable, UnknownName, UsageError
from accel.types import EngineEntry, TensorSpec, Variant

SPEC = (TensorSpec("x", ("batch", 3)),)


@dataclasses.dataclass
class Shelf:
    """A bundle's face, as far as variants and sources look at it."""

    stored: tuple[str, ...]
    has_checkpoint: bool = True
    path: Path = Path("engines/net.accel")
    name: str = "net"
    inputs: tuple[TensorSpec, ...] = SPEC
    outputs: tuple[TensorSpec, ...] = SPEC

    @property
    def entries(self) -> tuple[EngineEntry, ...]:
        return tuple(
            EngineEntry(name, *name.rsplit("-", 1), {f"{name}/file": ""}, SPEC, SPEC, {}, 0.0)  # type: ignore[arg-type]
            for name in self.stored
        )

    @property
    def checkpoint(self) -> Any:
        if not self.has_checkpoint:
            raise BundleMissing("no checkpoint")
        return "the checkpoint"

    def entry(self, format: str, precision: str, batch: int = 1, fits: Any = None) -> EngineEntry:
        return Bundle.entry(self, format, precision, batch, fits)  # type: ignore[arg-type]

    def file(self, entry: EngineEntry) -> Path:
        return self.path / next(iter(entry.files))


FULL = Shelf(("torchscript-fp32", "torchscript-fp16", "onnx-fp32", "onnx-fp16"))


def expand(shelf: Shelf, names: list[str], device: str) -> list[str]:
    return [str(variant) for variant in runtimes.variants(shelf, names, device)]  # type: ignore[arg-type]


def test_all_on_a_cpu_is_every_runtime_in_fp32_and_the_fp16_files_that_will_be_refused() -> None:
    found = expand(FULL, ["all"], "cpu")
    assert found == [
        "eager:fp32",
        "compile:fp32",
        *("torchscript:fp32", "torchscript:fp16"),
        *("onnxruntime:fp32", "onnxruntime:fp16"),
    ]
    assert [v for v in found if runtimes.refusal(Variant.parse(v), "cpu")] == ["torchscript:fp16", "onnxruntime:fp16"]


EAGER_ON_A_GPU = ("", "+fold", "+graph", "+fold+graph", "+channels_last+fold+graph")
ORT_ON_A_GPU = ("", "+graph", "+nhwc", "+graph+nhwc", "+trt-ep", "+rtx-ep")
COMPILE_ON_A_GPU = ("", "+reduce-overhead", "+max-autotune", "+freezing+reduce-overhead")


def test_all_on_a_gpu_has_every_way_of_every_runtime_in_fp32_and_fp16() -> None:
    stored = Shelf((*FULL.stored, "aoti-fp32", "aoti-fp16"))
    assert expand(stored, ["all"], "cuda:0") == [
        *(f"eager:{precision}{options}" for precision in ("fp32", "fp16") for options in EAGER_ON_A_GPU),
        *(f"compile:{precision}{options}" for precision in ("fp32", "fp16") for options in COMPILE_ON_A_GPU),
        *("torchscript:fp32", "torchscript:fp16"),
        *(f"onnxruntime:{precision}{options}" for precision in ("fp32", "fp16") for options in ORT_ON_A_GPU),
        *("aoti:fp32", "aoti:fp32+graph", "aoti:fp16", "aoti:fp16+graph"),
    ]


def test_a_foreign_onnx_file_has_only_its_own_runtimes() -> None:
    assert expand(Shelf(("onnx-fp32",), has_checkpoint=False), ["all"], "cpu") == ["onnxruntime:fp32"]


def test_a_runtimes_name_is_every_precision_of_it_and_nothing_comes_twice() -> None:
    assert expand(FULL, ["ort", "onnxruntime:fp16", "eager:fp32"], "cpu") == ["onnxruntime:fp32", "onnxruntime:fp16", "eager:fp32"]


def test_a_variant_by_name_needs_not_be_in_the_bundle() -> None:
    assert expand(Shelf(()), ["onnxruntime:tf32"], "cpu") == ["onnxruntime:tf32"]


def test_a_runtime_that_the_bundle_has_nothing_for_names_the_export() -> None:
    with pytest.raises(BundleMissing, match="accel export net --to onnx"):
        expand(Shelf(("torchscript-fp32",)), ["onnxruntime"], "cpu")
    with pytest.raises(BundleMissing, match="no checkpoint"):
        expand(Shelf((), has_checkpoint=False), ["eager"], "cpu")


def test_names_and_precisions_outside_the_table_are_errors() -> None:
    with pytest.raises(UnknownName, match="runtime"):
        expand(FULL, ["caffe"], "cpu")
    with pytest.raises(UsageError, match="cannot run bf16"):
        expand(FULL, ["onnxruntime:bf16"], "cpu")


def test_a_source_of_tf32_runs_the_fp32_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accel.runtimes.sources.trust.checked_file", lambda bundle, entry: bundle.file(entry))  # no such file is there
    source = runtimes.engine_source(FULL, Variant.parse("onnxruntime:tf32"), "cuda:0")  # type: ignore[arg-type]
    assert source.entry is not None
    assert (source.entry.name, source.file, source.module) == ("onnx-fp32", Path("engines/net.accel/onnx-fp32/file"), None)


def test_a_source_of_eager_builds_its_module_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    monkeypatch.setattr("accel.runtimes.sources.build_module", built.append)
    source = runtimes.engine_source(FULL, Variant.parse("eager:fp32"), "cpu", batch=4, threads=2)  # type: ignore[arg-type]
    assert (source.entry, source.file, source.batch, source.threads, built) == (None, None, 4, 2, [])
    assert source.module is not None
    source.module()
    assert built == ["the checkpoint"]


def test_a_missing_entry_names_the_export() -> None:
    with pytest.raises(BundleMissing, match="accel export net --to onnx --fp16"):
        runtimes.engine_source(Shelf(("onnx-fp32",)), Variant.parse("ort:fp16"), "cpu")  # type: ignore[arg-type]


def test_compatibility_is_asked_before_the_file_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(compat, "check", lambda entry, device, machine, bundle: order.append(f"{entry.name} on {device} of {bundle}"))
    monkeypatch.setattr(Shelf, "file", lambda self, entry: order.append("file"))
    runtimes.engine_source(FULL, Variant.parse("torchscript:fp32"), "cpu")  # type: ignore[arg-type]
    assert order == ["torchscript-fp32 on cpu of engines/net.accel", "file"]


def test_all_with_plans_is_both_ways_of_running_them_on_a_gpu_and_a_refusal_on_a_cpu() -> None:
    shelf = Shelf(("onnx-fp32", "tensorrt-fp32", "tensorrt-fp16"), has_checkpoint=False)
    assert expand(shelf, ["all"], "cuda:0") == [
        *(f"onnxruntime:fp32{options}" for options in ORT_ON_A_GPU),
        *("tensorrt:fp32", "tensorrt:fp32-graph", "tensorrt:fp16", "tensorrt:fp16-graph"),
    ]
    on_cpu = expand(shelf, ["all"], "cpu")
    assert on_cpu == ["onnxruntime:fp32", "tensorrt:fp32", "tensorrt:fp16"]
    refused = [runtimes.refusal(Variant.parse(variant), "cpu") for variant in on_cpu]
    assert refused == [None, *["TensorRT runs on NVIDIA GPUs only"] * 2]


def test_all_with_rtx_plans_is_both_ways_of_running_them_and_the_gpu_is_asked_whether_it_is_one_of_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shelf = Shelf(("tensorrt-rtx-fp32", "tensorrt-rtx-fp16"), has_checkpoint=False)
    assert expand(shelf, ["all"], "cuda:0") == [f"tensorrt-rtx:{how}" for how in ("fp32", "fp32-graph", "fp16", "fp16-graph")]
    refused = [runtimes.refusal(Variant.parse(variant), "cpu") for variant in expand(shelf, ["all"], "cpu")]
    assert refused == ["TensorRT-RTX runs on NVIDIA GPUs only"] * 2
    h200 = compat.Machine("NVIDIA H200", "9.0", {"tensorrt-rtx": "1.7.1"})
    (entry,) = (dataclasses.replace(item, target={"compute_capabilities": ["8.9", "12.0"]}) for item in shelf.entries[:1])
    monkeypatch.setattr("accel.runtimes.sources.machine", lambda device: h200)
    monkeypatch.setattr(Shelf, "entry", lambda *given, **named: entry)
    with pytest.raises(IncompatibleArtifact, match=r"compute capabilities 8\.9, 12\.0; cuda:0 has 9\.0"):
        runtimes.engine_source(shelf, Variant.parse("tensorrt-rtx:fp32"), "cuda:0")  # type: ignore[arg-type]


def test_without_a_plan_tensorrt_has_no_row() -> None:
    assert not [variant for variant in expand(FULL, ["all"], "cuda:0") if variant.startswith("tensorrt")]
    with pytest.raises(BundleMissing, match="accel export net --to tensorrt"):
        expand(FULL, ["trt"], "cuda:0")


def test_a_plan_on_a_cpu_is_refused_as_such_before_its_target_is_looked_at() -> None:
    with pytest.raises(RuntimeUnavailable, match="TensorRT runs on NVIDIA GPUs only") as caught:
        runtimes.engine_source(Shelf(("tensorrt-fp16",)), Variant.parse("trt:fp16"), "cpu", parity_only=True)  # type: ignore[arg-type]
    assert caught.value.exit_code == 4


def test_what_a_runtime_that_was_named_lacks_is_asked_for_in_a_precision_that_it_has() -> None:
    with pytest.raises(BundleMissing) as caught:
        runtimes.variants(Shelf(("onnx-fp16",)), ["fused"], "cuda:0")  # type: ignore[arg-type]
    assert caught.value.remedy == "accel export net --to fused --fp16"
