"""Golden samples and references as files, verified.json, identities, and the check of an engine's target."""

import dataclasses
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_samples import INPUT, OUTPUT, checkpoint_of, entry_of, golden_of

from accel.engines import Bundle, Golden, Reference, compat, entry_name, verified
from accel.engines.identity import variant_identity
from accel.errors import CorruptArtifact, IncompatibleArtifact, MissingExtra, UsageError
from accel.types import EngineSource, Variant


def test_a_file_of_text_in_the_place_of_golden_samples_gets_no_advice_to_unpickle_it(tmp_path: Path) -> None:
    (tmp_path / "golden.npz").write_text("no archive")
    with pytest.raises(CorruptArtifact, match=r"golden\.npz cannot be read: it is no \.npz file") as caught:
        Golden.read(tmp_path / "golden.npz")
    assert "allow_pickle" not in str(caught.value)


def test_golden_samples_survive_the_file(tmp_path: Path) -> None:
    golden = golden_of()
    golden.write(tmp_path / "golden.npz")
    found = Golden.read(tmp_path / "golden.npz")
    assert found.sha256 == golden.sha256
    assert len(found) == 4
    assert found.images is not None
    np.testing.assert_array_equal(found.images, golden.images)
    without = dataclasses.replace(golden, images=None)
    without.write(tmp_path / "golden.npz")
    assert Golden.read(tmp_path / "golden.npz").images is None


def _pickled() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **{"input.x": np.array([{}], dtype=object)})
    return stream.getvalue()


def _zip_of(name: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, data)
    return stream.getvalue()


def _npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04junk", _pickled(), _zip_of("input.x", b"text"), _zip_of("a.npy", b"\x93NUMPY"), _npy()])
def test_what_is_no_golden_file_is_corrupt(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "golden.npz").write_bytes(data)
    for kind in (Golden, Reference):
        with pytest.raises(CorruptArtifact):
            kind.read(tmp_path / "golden.npz")


def test_a_truncated_golden_file_is_corrupt(tmp_path: Path) -> None:
    golden_of().write(tmp_path / "golden.npz")
    data = (tmp_path / "golden.npz").read_bytes()
    for size in range(0, len(data), 97):
        (tmp_path / "golden.npz").write_bytes(data[:size])
        with pytest.raises(CorruptArtifact):
            Golden.read(tmp_path / "golden.npz")


def test_results_are_kept_by_identity(bundle: Bundle) -> None:
    assert verified.read(bundle.path) == {}
    verified.record(bundle.path, "a", {"top1": 95.1})
    verified.record(bundle.path, "b", {"top1": 92.0})
    verified.record(bundle.path, "a", {"top1": 95.2})
    assert verified.read(bundle.path) == {"a": {"top1": 95.2}, "b": {"top1": 92.0}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"schema_version": 2, "results": {}}',
        '{"schema_version": 1, "results": {"a": 3}}',
        '{"schema_version": 1, "results": {"a": {"passed": true, "top1": 9}}}',
        '{"schema_version": 1, "results": {"a": {"passed": 1}}}',
    ],
)
def test_a_damaged_record_of_results_says_what_to_do(bundle: Bundle, text: str) -> None:
    (bundle.path / "verified.json").write_text(text)
    with pytest.raises(CorruptArtifact, match=r"delete .*verified\.json and run accel verify again"):
        verified.read(bundle.path)


def source(bundle: Bundle, **fields: Any) -> EngineSource:
    values = {"variant": Variant.parse("ort:fp32"), "device": "cpu", "inputs": (INPUT,), "outputs": (OUTPUT,), "entry": bundle.entries[0]}
    return EngineSource(**{**values, **fields})


def test_an_identity_changes_with_all_that_changes_the_answer(bundle: Bundle, tmp_path: Path) -> None:
    plain = source(bundle)
    other = dataclasses.replace(bundle.entries[0], files={"onnx-fp32/model.onnx": "1" * 64})
    retrained = checkpoint_of(tmp_path / "other", seed=1)
    eager = source(bundle, variant=Variant.parse("eager:fp32"), entry=None)
    asked = [
        (plain, None, "1.31.1", "cpu"),
        (source(bundle, entry=other), None, "1.31.1", "cpu"),
        (source(bundle, batch=8), None, "1.31.1", "cpu"),
        (source(bundle, variant=Variant.parse("ort:tf32")), None, "1.31.1", "cpu"),
        (source(bundle, variant=Variant.parse("ort:fp32+nhwc")), None, "1.31.1", "cpu"),
        (plain, None, "1.32.0", "cpu"),
        (plain, None, "1.31.1", "NVIDIA H200"),
        (eager, bundle.checkpoint, "2.15.0", "cpu"),
        (eager, retrained, "2.15.0", "cpu"),
        (eager, dataclasses.replace(retrained, factory_args={"num_classes": 5}), "2.15.0", "cpu"),
        (eager, dataclasses.replace(retrained, factory="engine_samples:build_number"), "2.15.0", "cpu"),
    ]
    identities = [variant_identity(*item) for item in asked]
    assert len(set(identities)) == len(asked)
    assert all(len(identity) == 64 for identity in identities)
    assert variant_identity(source(bundle, threads=2), None, "1.31.1", "cpu") == identities[0]
    with pytest.raises(UsageError, match="neither an engine file nor a checkpoint"):
        variant_identity(eager, None, "2.15.0", "cpu")


@pytest.mark.parametrize(
    ("made", "installed", "fits"), [("2.15.0", "2.15.1+cu132", True), ("2.11.0", "2.15.0", True), ("2.15.0", "2.11.0", False)]
)
def test_torchscript_needs_a_torch_that_is_not_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str, installed: str, fits: bool
) -> None:
    monkeypatch.setattr(compat, "version_of", lambda name: installed)
    entry = entry_of(tmp_path / "x", name="torchscript-fp16", target={"torch": made})
    if fits:
        compat.check(entry, "cpu")
    else:
        with pytest.raises(IncompatibleArtifact, match=r"made with torch 2\.15\.0; .* torch 2\.11\.0, .*\n.*torch>=2\.15.*--fp16"):
            compat.check(entry, "cpu")


def test_other_targets_are_judged_before_a_runtime_sees_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "version_of", lambda name: None)
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    entry = entry_of(tmp_path / "x")
    compat.check(entry, "cpu")
    compat.check(dataclasses.replace(entry, target={"isa": "x86_64", "device": "cuda"}), "cuda:0")
    refusals = {
        "isa": ("aarch64", "made for aarch64"),
        "device": ("cpu", "made for cpu; it was to run on cuda:0"),
        "new": (1, "judge"),
    }
    for key, (value, said) in refusals.items():
        with pytest.raises(IncompatibleArtifact, match=said):
            compat.check(dataclasses.replace(entry, target={key: value}), "cuda:0")
    with pytest.raises(MissingExtra, match="torch is not installed"):
        compat.check(dataclasses.replace(entry, target={"torch": "2.15.0"}), "cpu")


H200 = compat.Machine("NVIDIA H200", "9.0", {"tensorrt": "8.6.0", "tensorrt-rtx": "1.7.1.116"})
PLAN = {"tensorrt": "8.6.0", "gpu": "NVIDIA H200", "compute_capability": "9.0", "device": "cuda"}
RTX = {"tensorrt-rtx": "1.7.1", "compute_capabilities": ["8.9", "9.0"], "device": "cuda"}


@pytest.mark.parametrize(
    ("target", "machine"),
    [
        (PLAN, H200),
        ({**PLAN, "tensorrt": "8.6.0.12"}, H200),
        (RTX, H200),
        ({**PLAN, "version_compatible": True}, dataclasses.replace(H200, libraries={"tensorrt": "8.6.1"})),
        ({**PLAN, "version_compatible": True}, dataclasses.replace(H200, libraries={"tensorrt": "10.13.0.35"})),
        ({**PLAN, "hardware_compatible": "AMPERE_PLUS"}, compat.Machine("NVIDIA L4", "8.9", H200.libraries)),
        ({**PLAN, "hardware_compatible": "AMPERE_PLUS"}, compat.Machine("NVIDIA B200", "10.0", H200.libraries)),
        ({**PLAN, "hardware_compatible": "SAME_COMPUTE_CAPABILITY"}, compat.Machine("NVIDIA H100", "9.0", H200.libraries)),
        ({"tensorrt": "8.6.0", "hardware_compatible": "AMPERE_PLUS"}, H200),
    ],
)
def test_a_plan_that_fits(tmp_path: Path, target: dict[str, Any], machine: compat.Machine) -> None:
    entry = entry_of(tmp_path / "x", name="tensorrt-fp16", target=target)
    compat.check(entry, "cuda:0", lambda: machine)
    assert compat.fits(entry, "cuda:0", lambda: machine)


def test_what_needs_a_newer_gpu_is_refused_and_a_newer_one_takes_it(tmp_path: Path) -> None:
    entry = entry_of(tmp_path / "x", name="tensorrt-fp16", target={"device": "cuda", "least_compute_capability": "9.0"})
    for capability in ("9.0", "10.0", "12.0"):
        compat.check(entry, "cuda:0", lambda capability=capability: compat.Machine("GPU", capability))
    for capability, found in (("8.9", "8.9"), ("", "none")):
        with pytest.raises(IncompatibleArtifact, match=rf"needs compute capability 9\.0 or newer; cuda:0 has {found}"):
            compat.check(entry, "cuda:0", lambda capability=capability: compat.Machine("GPU", capability))


@pytest.mark.parametrize(
    ("target", "machine", "said"),
    [
        ({**PLAN, "tensorrt": "8.6.1"}, H200, r"made with TensorRT 8\.6\.1 and needs exactly 8\.6\.1; this environment has 8\.6\.0"),
        ({**PLAN, "tensorrt": "10.0", "version_compatible": True}, H200, r"needs 10 or newer; this environment has 8\.6\.0"),
        (PLAN, compat.Machine("NVIDIA H100", "9.0", H200.libraries), "made for NVIDIA H200; cuda:0 is NVIDIA H100"),
        ({**PLAN, "gpu": "NVIDIA H200", "compute_capability": "8.9"}, H200, "compute capability 8.9; cuda:0 has 9.0"),
        (
            {**PLAN, "hardware_compatible": "AMPERE_PLUS"},
            compat.Machine("Tesla T4", "7.5", H200.libraries),
            "compute capability 8.0 or newer; cuda:0 has 7.5",
        ),
        (
            {**PLAN, "hardware_compatible": "SAME_COMPUTE_CAPABILITY"},
            compat.Machine("NVIDIA L4", "8.9", H200.libraries),
            "9.0, any GPU of it; cuda:0 has 8.9",
        ),
        ({**PLAN, "hardware_compatible": "TOMORROW"}, H200, "TOMORROW, which this accel cannot judge"),
        (
            {"tensorrt": "8.6.0", "hardware_compatible": "AMPERE_PLUS"},
            compat.Machine("Tesla T4", "7.5", H200.libraries),
            "8.0 or newer; cuda:0 has 7.5",
        ),
        ({**RTX, "compute_capabilities": ["8.6", "12.0"]}, H200, "compute capabilities 8.6, 12.0; cuda:0 has 9.0"),
    ],
)
def test_a_plan_that_does_not_fit_names_both_sides_and_the_command(
    tmp_path: Path, target: dict[str, Any], machine: compat.Machine, said: str
) -> None:
    entry = entry_of(tmp_path / "x", name="tensorrt-fp16", target=target)
    with pytest.raises(IncompatibleArtifact, match=said) as caught:
        compat.check(entry, "cuda:0", lambda: machine, Path("engines/net.accel"))
    if "TOMORROW" not in said:
        assert "accel export engines/net.accel --to trt --fp16" in str(caught.value)
    assert caught.value.exit_code == 5
    assert not compat.fits(entry, "cuda:0", lambda: machine)


def test_a_plan_without_its_library_names_the_extra(tmp_path: Path) -> None:
    nothing = compat.Machine("NVIDIA H200", "9.0", {"tensorrt": None, "tensorrt-rtx": None})
    for name, target, extra in (("tensorrt-fp16", PLAN, "trt"), ("tensorrt-fp32", RTX, "rtx")):
        with pytest.raises(MissingExtra, match=rf"accel-engines\[{extra}\]"):
            compat.check(entry_of(tmp_path / name, name=name, target=target), "cuda:0", lambda: nothing)


def test_the_command_for_an_rtx_plan_says_so(tmp_path: Path) -> None:
    entry = dataclasses.replace(entry_of(tmp_path / "x"), format="tensorrt-rtx", precision="fp16")
    assert compat.again(entry) == "accel export MODEL --to trt --flavor rtx --fp16"


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ('{"workspace": 1024, "version_compatible": true, "allow_mixed": true}', " --workspace 1024 --version-compatible --allow-mixed"),
        ('{"builds": 5, "timing_cache": "mine.cache", "compute_capabilities": ["8.6"], "hardware_compatible": false}', ""),
        ('{"tactic_sources": ["jit; rm -rf ~"], "min_batch": "1; reboot", "max_batch": [], "optimization_level": 1.5}', ""),
        ("[1]", ""),
        ("{", ""),
    ],
)
def test_the_command_has_the_batch_and_the_options_and_nothing_that_no_exporter_writes(tmp_path: Path, options: str, flags: str) -> None:
    entry = entry_of(tmp_path / "x", name="tensorrt-fp32", toolchain={"options": options})
    assert compat.again(entry) == f"accel export MODEL --to trt{flags}"
    of_eight = dataclasses.replace(entry, inputs=(dataclasses.replace(entry.inputs[0], shape=(8, 3, 8, 8)),))
    assert compat.again(of_eight) == f"accel export MODEL --to trt --batch 8{flags}"


def test_the_machine_is_looked_at_once_and_only_for_what_is_tied_to_it(tmp_path: Path) -> None:
    looks: list[str] = []

    def look() -> compat.Machine:
        looks.append("looked")
        return H200

    compat.check(entry_of(tmp_path / "x"), "cuda:0", look)
    assert looks == []
    compat.check(entry_of(tmp_path / "y", name="tensorrt-fp16", target=PLAN), "cuda:0", look)
    assert looks == ["looked"]


def test_of_several_of_a_kind_the_one_that_fits_is_taken(bundle: Bundle) -> None:
    (first,) = bundle.entries
    others = [dataclasses.replace(first, name=f"onnx-fp32-{gpu}") for gpu in ("a100", "h200")]
    several = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, engines=(first, *others)))
    assert several.entry("onnx", "fp32", fits=lambda entry: entry.name.endswith("h200")).name == "onnx-fp32-h200"
    assert several.entry("onnx", "fp32", fits=lambda entry: False).name == first.name
    assert several.entry("onnx", "fp32").name == first.name


def test_a_tag_becomes_part_of_the_entrys_name() -> None:
    assert entry_name("tensorrt", "fp16", 1, "NVIDIA H200 8.6.0") == "tensorrt-fp16-nvidia-h200-8-6-0"
    assert entry_name("tensorrt", "fp16", "dynamic", "") == "tensorrt-fp16-dynamic"
