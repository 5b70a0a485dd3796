"""accel.load: which engine is chosen, who may run code, and what a caller gets."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

import accel
from accel.engines import Bundle, trust, verified
from accel.errors import (
    BundleMissing,
    CorruptArtifact,
    IncompatibleArtifact,
    RuntimeUnavailable,
    UnknownName,
    UntrustedArtifact,
    UsageError,
)
from accel.runtimes import cache


@pytest.fixture
def foreign(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny bundle as another user sees it."""
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "another user"))
    return tiny


def test_numpy_in_numpy_out_as_the_golden_samples_say(tiny: Path) -> None:
    golden = Bundle.open(tiny).golden()
    with accel.load(tiny, device="cpu") as engine:
        assert str(engine.variant) == "onnxruntime:fp32"
        answer = engine(golden.inputs["input"])
    np.testing.assert_allclose(answer, golden.outputs["output"], atol=1e-5)


def test_a_second_load_shares_the_engine_and_a_changed_bundle_is_loaded_anew(tiny: Path) -> None:
    first = accel.load(tiny, device="cpu")
    second = accel.load(tiny, device="cpu")
    assert cache.count() == 1
    (tiny / "accel.json").write_bytes((tiny / "accel.json").read_bytes())
    with accel.load(tiny, device="cpu"):
        assert cache.count() == 2
    first.close()
    second.close()
    assert cache.count() == 0


def test_a_verified_engine_comes_before_one_that_only_passed_parity(tiny: Path) -> None:
    from accel.api import choosing

    bundle = Bundle.open(tiny)
    assert [str(choice.variant) for choice in choosing.choices(bundle, "auto", "cpu")] == [
        "onnxruntime:fp32",
        "torchscript:fp32",
        "eager:fp32",
    ]
    variant = accel.types.Variant("torchscript", "fp32")
    identity = choosing.identify(bundle, variant, 1, bundle.entry("torchscript", "fp32"), "cpu")
    verified.record(tiny, identity, {"passed": True, "metric": "top1", "top1": 91.5})
    choices = list(choosing.choices(bundle, "auto", "cpu"))
    assert str(choices[0].variant) == "torchscript:fp32"
    assert "91.50 %" in choices[0].why


def test_an_engine_that_failed_parity_is_never_chosen(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accel.api import choosing

    bundle = Bundle.open(tiny)
    for entry in bundle.entries:
        if entry.format == "onnx":
            monkeypatch.setitem(entry.parity, "status", "not run")
    assert [str(choice.variant) for choice in choosing.choices(bundle, "auto", "cpu")] == ["torchscript:fp32", "eager:fp32"]


def test_onnx_of_a_stranger_is_data_and_runs(foreign: Path) -> None:
    with accel.load(foreign, device="cpu") as engine:
        assert engine(np.zeros((1, 3, 8, 8), np.float32)).shape == (1, 10)


@pytest.mark.parametrize("runtime", ["torchscript:fp32", "eager:fp32"])
def test_code_of_a_stranger_needs_trust(foreign: Path, runtime: str) -> None:
    with pytest.raises(UntrustedArtifact) as caught:
        accel.load(foreign, runtime=runtime, device="cpu")
    assert caught.value.exit_code == 5
    with accel.load(foreign, runtime=runtime, device="cpu", trusted=True) as engine:
        assert str(engine.variant) == runtime


def test_a_runtime_name_without_a_loadable_engine_says_why(foreign: Path) -> None:
    for strict in (False, True):
        with pytest.raises(UntrustedArtifact, match="not exported by this user"):
            accel.load(foreign, runtime="torchscript", device="cpu", strict=strict)


def test_without_exported_engines_the_checkpoint_itself_runs(tiny: Path) -> None:
    for name in ("onnx", "torchscript"):
        for precision in ("fp32", "fp16"):
            shutil.rmtree(tiny / f"{name}-{precision}")
    with pytest.raises(CorruptArtifact, match="missing"):
        accel.load(tiny, device="cpu")
    with accel.load(tiny, runtime="eager", device="cpu") as engine:
        assert str(engine.variant) == "eager:fp32"


def test_fp16_on_a_cpu_is_refused(tiny: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="no FP16 kernels") as caught:
        accel.load(tiny, runtime="ort:fp16", device="cpu")
    assert caught.value.exit_code == 4


def test_a_bundle_that_is_not_there_names_those_that_are(tiny: Path) -> None:
    with pytest.raises(BundleMissing, match=r"tiny\.accel"):
        accel.load("resnet18.accel", device="cpu")


def test_an_unknown_runtime_lists_the_known_ones(tiny: Path) -> None:
    with pytest.raises(UnknownName, match="no runtime called 'caffe'"):
        accel.load(tiny, runtime="caffe", device="cpu")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((1, 3, 9, 8), np.float32), "(1, 3, 9, 8)"),
        (np.zeros((3, 8, 8), np.float32), "(3, 8, 8)"),
        (np.zeros((1, 3, 8, 8), np.float64), "float64"),
        (np.zeros((1, 3, 8, 8), np.uint8), "uint8"),
    ],
)
def test_a_wrong_shape_or_dtype_is_refused_with_what_was_expected(tiny: Path, array: np.ndarray, said: str) -> None:
    with accel.load(tiny, device="cpu") as engine, pytest.raises(UsageError) as caught:
        engine(array)
    assert "input" in caught.value.message
    assert said in caught.value.message
    assert caught.value.exit_code == 2


def test_a_truncated_engine_is_refused_before_a_runtime_sees_it(tiny: Path) -> None:
    file = tiny / "onnx-fp32" / "model.onnx"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CorruptArtifact, match="100 bytes") as caught:
        accel.load(tiny, device="cpu")
    assert caught.value.exit_code == 5


def of_another_machine(bundle: Path, name: str) -> str:
    """Rewrite the entry as one of a newer torch, and vouch for the bundle again; returns the file's hash."""
    opened = Bundle.open(bundle)
    entry = next(entry for entry in opened.entries if entry.name == name)
    foreign = dataclasses.replace(entry, target={**entry.target, "torch": "99.0"})
    (bundle / "accel.json").write_text(opened.manifest.with_entry(foreign).to_text())
    trust.record(Bundle.open(bundle))
    return next(iter(entry.files.values()))


def test_what_does_not_fit_is_rebuilt_checked_and_kept_beside_the_old(tiny: Path) -> None:
    before = of_another_machine(tiny, "torchscript-fp32")
    with pytest.raises(IncompatibleArtifact, match=r"made with torch 99\.0") as caught:
        accel.load(tiny, "torchscript:fp32", device="cpu")
    assert f"accel export {tiny} --to torchscript" in str(caught.value)
    golden = Bundle.open(tiny).golden()
    with accel.load(tiny, "torchscript:fp32", device="cpu", rebuild=True) as engine:
        np.testing.assert_allclose(engine(golden.inputs["input"]), golden.outputs["output"], atol=1e-5)
        used = engine.explain()["engine"]
    entries = {entry.name: entry for entry in Bundle.open(tiny).entries}
    assert used.startswith("torchscript-fp32-")
    assert entries[used].parity["status"] == "passed"
    assert entries["torchscript-fp32"].files == {"torchscript-fp32/model.ts": before}
    assert trust.is_trusted(Bundle.open(tiny))
    # From now on the one that fits is found without a rebuild, by name and by itself.
    with accel.load(tiny, "torchscript:fp32", device="cpu") as engine:
        assert engine.explain()["engine"] == used
    assert sorted(path.name for path in tiny.parent.iterdir() if not path.name.startswith(".")) == ["tiny.accel"]


def test_a_rebuilt_engine_that_could_not_be_run_is_not_kept(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accel.api import rebuilding

    of_another_machine(tiny, "torchscript-fp32")
    made = Bundle.open(tiny).entry("torchscript", "fp32")
    monkeypatch.setattr(rebuilding, "_export", lambda *_: dataclasses.replace(made, parity={"status": "not run", "reason": "no GPU"}))
    with pytest.raises(RuntimeUnavailable, match="could not be held against the golden samples: no GPU"):
        accel.load(tiny, "torchscript:fp32", device="cpu", rebuild=True)
    assert [entry.name for entry in Bundle.open(tiny).entries if entry.format == "torchscript"] == ["torchscript-fp32", "torchscript-fp16"]


def test_a_plan_is_refused_on_a_cpu(tiny: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="TensorRT runs on NVIDIA GPUs only") as caught:
        accel.load(tiny, "trt:fp16", device="cpu", trusted=True)
    assert caught.value.exit_code == 4
