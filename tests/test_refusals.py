"""What must not be run is refused before a runtime sees it: a row a case and format, each with what was asked, found and mends it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from resealed import reseal

from accel import engines
from accel.engines import Bundle, compat, processor, trust
from accel.errors import ArtifactError, CorruptArtifact, IncompatibleArtifact, UntrustedArtifact
from accel.files import sha256_file
from accel.runtimes import session, sources
from accel.runtimes.loaded import open_cached
from accel.types import EngineEntry, TensorSpec, Variant

Damage = Callable[[Path], object]

FILES = {
    "onnx": "onnx-fp32/model.onnx",
    "torchscript": "torchscript-fp32/model.ts",
    "aoti": "aoti-fp32/model.pt2",
    "tensorrt": "tensorrt-fp32/model.plan",
}
RUNTIMES = {"onnx": "onnxruntime", "torchscript": "torchscript", "aoti": "aoti", "tensorrt": "tensorrt"}
DEVICES = {"tensorrt": "cuda:0"}
AGAIN = {"onnx": "--to onnx", "torchscript": "--to torchscript", "aoti": "--to aoti", "tensorrt": "--to trt"}
PLAN = b"ftrt" + bytes(20) + bytes([10, 13, 0, 35]) + bytes(range(256))
TARGETS: dict[str, dict[str, Any]] = {
    "aoti": {"device": "cpu", "torch_minor": "2.15", "isa": "x86_64", "simd": "avx2"},
    "tensorrt": {"gpu": "NVIDIA H200", "compute_capability": "9.0", "device": "cuda", "tensorrt": "10.13.0.35"},
}
HERE = compat.Machine("NVIDIA H200", "9.0", {"tensorrt": "10.13.0.35"})


@pytest.fixture(scope="module")
def four(tiny_exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with an engine of each format; the package and the plan are bytes that nothing will open."""
    path = Path(shutil.copytree(tiny_exported, tmp_path_factory.mktemp("four") / "tiny.accel"))
    example = Bundle.open(path).entry("onnx", "fp32")
    for format, target in TARGETS.items():
        made = tmp_path_factory.mktemp(format)
        file = made / Path(FILES[format]).name
        if format == "aoti":
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("model.so", b"compiled" * 100)
        else:
            file.write_bytes(PLAN)
        entry = dataclasses.replace(
            example, name=f"{format}-fp32", format=format, files={FILES[format]: sha256_file(file)}, target=target, opset=None
        )
        engines.add(path, entry, made)
    return path


@pytest.fixture
def bundle(four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `four` that this user exported, on a machine that all of its engines fit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compat, "version_of", lambda name: "2.15.0")
    monkeypatch.setattr(processor, "machine", lambda: "x86_64")
    monkeypatch.setattr(processor, "instructions", lambda: ("avx2", "fma"))
    monkeypatch.setattr(sources, "machine", lambda device: HERE)
    path = Path(shutil.copytree(four, tmp_path / "engines" / "tiny.accel"))
    trust.record(Bundle.open(path))
    return path


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that a runtime was made for."""
    seen: list[Path] = []

    def create(source: Any) -> Any:
        seen.append(source.file)
        raise RuntimeError("a runtime saw the file")

    monkeypatch.setattr(session, "create", create)
    return seen


def load(path: Path, format: str, trusted: bool = False) -> None:
    """As accel.load does: trust, hash, compatibility, contents, and only then the runtime."""
    bundle = Bundle.open(path)
    trust.demand_engine(bundle, bundle.entry(format, "fp32"), trusted)
    open_cached(path, Variant(RUNTIMES[format], "fp32"), DEVICES.get(format, "cpu"))


@pytest.mark.parametrize("format", FILES)
def test_what_is_whole_and_fits_reaches_the_runtime(bundle: Path, opened: list[Path], format: str) -> None:
    with pytest.raises(RuntimeError, match="a runtime saw the file"):
        load(bundle, format)
    assert opened == [bundle / FILES[format]]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:150])


def edit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def link_out(path: Path) -> None:
    outside = path.parents[2] / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def swap(path: Path) -> None:
    other = next(file for format, name in FILES.items() if (file := path.parents[1] / name) != path and format != "tensorrt")
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def empty(path: Path) -> None:
    path.write_bytes(b"")


FILE_DAMAGE: dict[str, tuple[Damage, dict[str, str]]] = {
    # what was done → what the message says beside both hashes, by format where they differ
    "truncated": (cut, {"": "(150 bytes) has SHA-256", "tensorrt": "edited, damaged or cut short", "*": "cut short"}),
    "emptied": (empty, {"": "(0 bytes) has SHA-256", "*": "cut short"}),
    "edited": (edit, {"": "it was edited", "*": "edited"}),
    "swapped": (swap, {"": "these are the bytes of", "*": "so files were swapped"}),
    "missing": (Path.unlink, {"": "is missing; accel.json names it", "*": "missing"}),
    "linked": (link_out, {"": "is a link that leaves the bundle", "*": "link"}),
}


@pytest.mark.parametrize("format", FILES)
@pytest.mark.parametrize("case", FILE_DAMAGE)
def test_a_damaged_file_is_refused_with_its_own_words(
    bundle: Path, opened: list[Path], accel_cli: Callable[..., Any], case: str, format: str
) -> None:
    damage, said = FILE_DAMAGE[case]
    file = bundle / FILES[format]
    damage(file)
    with pytest.raises(CorruptArtifact) as caught:
        load(bundle, format)
    error = caught.value
    assert opened == []
    assert error.exit_code == 5
    assert str(file) in error.message  # asked
    assert said[""] in error.message  # found
    assert said.get(format, said["*"]) in error.message
    assert error.remedy is not None
    assert "copy the whole folder again" in error.remedy
    if case != "linked":
        assert f"accel export {bundle} {AGAIN[format]}" in error.remedy
    ran = accel_cli("bundle", "verify", bundle)
    assert ran.code == 5, ran.err
    assert FILES[format] in ran.err
    assert "to mend it" in ran.err
    assert "Traceback" not in ran.err


def newer_schema(path: Path) -> None:
    reseal(path, lambda data: data.update(schema_version=3))


def edited_label(path: Path) -> None:
    data = json.loads(path.read_text())
    data["labels"] = ["cat"]
    path.write_text(json.dumps(data))


def unknown_key(path: Path) -> None:
    reseal(path, lambda data: data.update(post_install="rm -rf /"))


def path_out(path: Path) -> None:
    reseal(path, lambda data: data["engines"][0].update(files={"onnx-fp32/../../../secret": "0" * 64}))


MANIFEST_DAMAGE: dict[str, tuple[Damage, type[ArtifactError], str, str]] = {
    "truncated": (cut, CorruptArtifact, "cannot be read", "copy the whole folder again"),
    "emptied": (empty, CorruptArtifact, "cannot be read", "copy the whole folder again"),
    "edited": (edited_label, CorruptArtifact, "was changed since accel wrote it: its contents have SHA-256", "export it again"),
    "missing": (Path.unlink, CorruptArtifact, "is missing; golden.npz of a bundle is there", "copy the whole folder again"),
    "linked": (link_out, CorruptArtifact, "is a link that leaves the bundle", "copy the whole folder again"),
    "newer schema": (
        newer_schema,
        IncompatibleArtifact,
        "has schema_version 3; this accel reads up to 2",
        "pip install --upgrade accel-engines",
    ),
    "unknown key": (unknown_key, CorruptArtifact, "has an unknown key 'post_install'", "copy the whole folder again"),
    "path out": (path_out, CorruptArtifact, "'onnx-fp32/../../../secret', which is not inside onnx-fp32/", "export it again"),
}


@pytest.mark.parametrize("case", MANIFEST_DAMAGE)
def test_a_damaged_accel_json_is_refused_with_its_own_words(
    bundle: Path, opened: list[Path], accel_cli: Callable[..., Any], case: str
) -> None:
    damage, kind, found, mend = MANIFEST_DAMAGE[case]
    damage(bundle / "accel.json")
    for format in FILES:
        with pytest.raises(kind) as caught:
            load(bundle, format, trusted=True)
        assert str(bundle / "accel.json") in caught.value.message
        assert found in caught.value.message
        assert mend in str(caught.value.remedy)
        assert caught.value.exit_code == 5
    assert opened == []
    commands = [["bundle", "verify", "tiny"], ["inspect", "tiny"]]
    if case in ("edited", "newer schema"):  # the others differ in what the same reader says
        commands += [["verify", "tiny", "--trusted"], ["bench", "tiny", "--trusted"]]
    for command in commands:
        ran = accel_cli(*command)
        assert (ran.code, found in ran.err, "Traceback" in ran.err) == (5, True, False), (command, ran.err)


MISFITS: dict[str, tuple[str, dict[str, Any], str, str, str]] = {
    # what it is from → format, its target, asked, found, the command
    "a newer torch": ("torchscript", {"torch": "99.1.0"}, "torch 99.1.0", "torch 2.15.0, which is older", "torch>=99.1"),
    "another torch, compiled": ("aoti", {**TARGETS["aoti"], "torch_minor": "2.11"}, "torch 2.11", "torch 2.15.0", "torch==2.11.*"),
    "another ISA": ("aoti", {**TARGETS["aoti"], "isa": "aarch64"}, "aarch64", "x86_64", "--to aoti"),
    "a processor with more": ("aoti", {**TARGETS["aoti"], "simd": "avx2 avx512f"}, "avx512f", "lacks", "--to aoti"),
    "another kind of device": ("aoti", {**TARGETS["aoti"], "device": "cuda"}, "made for cuda", "cpu", "--device cuda"),
    "another GPU": ("tensorrt", {**TARGETS["tensorrt"], "gpu": "NVIDIA A100"}, "NVIDIA A100", "NVIDIA H200", "--to trt"),
    "another capability": ("tensorrt", {**TARGETS["tensorrt"], "compute_capability": "8.0"}, "8.0", "cuda:0 has 9.0", "--to trt"),
    "another TensorRT": ("tensorrt", {**TARGETS["tensorrt"], "tensorrt": "8.6.1"}, "TensorRT 8.6.1", "has 10.13.0.35", "--to trt"),
    "a thing unknown": ("onnx", {"quantum": "1"}, "a certain quantum (1)", "cannot judge", "--upgrade accel-engines"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_an_engine_from_elsewhere_is_refused_with_its_own_words(bundle: Path, opened: list[Path], case: str) -> None:
    format, target, asked, found, command = MISFITS[case]
    tie(bundle, format, target)
    with pytest.raises(IncompatibleArtifact) as caught:
        load(bundle, format)
    assert opened == []
    assert caught.value.exit_code == 5
    assert f"{format}-fp32" in caught.value.message
    assert asked in caught.value.message
    assert found in caught.value.message
    assert command in str(caught.value.remedy)
    assert "export" in str(caught.value.remedy) or "--to" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("format", "target"),
    [
        ("torchscript", {"torch": 2.15}),
        ("torchscript", {"torch": "9" * 5000}),
        ("aoti", {**TARGETS["aoti"], "simd": ["avx2"]}),
        ("aoti", {**TARGETS["aoti"], "torch_minor": "²"}),
        ("tensorrt", {**TARGETS["tensorrt"], "hardware_compatible": []}),
        ("tensorrt", {**TARGETS["tensorrt"], "compute_capabilities": "9.0"}),
        ("tensorrt", {**TARGETS["tensorrt"], "version_compatible": "no"}),
    ],
)
def test_a_target_that_no_exporter_writes_is_corrupt(bundle: Path, opened: list[Path], format: str, target: dict[str, Any]) -> None:
    tie(bundle, format, target)
    with pytest.raises(CorruptArtifact, match="says that it was made for the"):
        load(bundle, format)
    assert opened == []


def test_the_commands_end_with_5_for_an_engine_from_elsewhere(bundle: Path, accel_cli: Callable[..., Any], tiny_data: str) -> None:
    tie(bundle, "torchscript", {"torch": "99.0"})
    variant = ["tiny", "--device", "cpu"]
    for command in (
        ["verify", *variant, "--variant", "torchscript:fp32", "--data", tiny_data],
        ["bench", *variant, "--runtime", "torchscript:fp32", "--no-baseline", "--no-verify"],
    ):
        ran = accel_cli(*command)
        assert (ran.code, "made with torch 99.0" in ran.err, "Traceback" in ran.err) == (5, True, False), ran.err


def tie(path: Path, format: str, target: dict[str, Any]) -> None:
    """Say that the engine was made for `target`, as its exporter would have, and vouch for the bundle."""

    def change(data: dict[str, Any]) -> None:
        next(entry for entry in data["engines"] if entry["name"] == f"{format}-fp32")["target"] = target

    reseal(path / "accel.json", change)
    trust.record(Bundle.open(path))


@pytest.mark.parametrize("format", [format for format in FILES if format not in trust.DATA_FORMATS])
def test_code_of_a_stranger_is_refused_before_a_runtime_sees_it(
    bundle: Path, opened: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "another user"))
    with pytest.raises(UntrustedArtifact, match=rf"not exported by this user, it is not signed, and {format}-fp32 is code") as caught:
        load(bundle, format)
    assert "trusted=True (--trusted)" in str(caught.value.remedy)
    assert "ACCEL_TRUSTED_KEYS" in str(caught.value.remedy)
    assert opened == []


def test_an_entry_that_says_otherwise_than_its_onnx_file_is_corrupt(bundle: Path, opened: list[Path]) -> None:
    (spec,) = Bundle.open(bundle).entry("onnx", "fp32").inputs
    for wrong in (
        dataclasses.replace(spec, shape=(1000, *spec.shape[1:])),
        dataclasses.replace(spec, dtype="float16"),
        TensorSpec("x", (1,)),
    ):

        def change(data: dict[str, Any], wrong: TensorSpec = wrong) -> None:
            next(entry for entry in data["engines"] if entry["name"] == "onnx-fp32")["inputs"] = [wrong.to_dict()]

        reseal(bundle / "accel.json", change)
        entry: EngineEntry = next(entry for entry in Bundle.open(bundle).entries if entry.name == "onnx-fp32")
        with pytest.raises(CorruptArtifact, match=r"has the inputs input float32 \(1, 3, 8, 8\); accel\.json says"):
            trust.checked_file(Bundle.open(bundle), entry)
    assert opened == []
