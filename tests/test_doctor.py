"""accel doctor: what it proves, what it warns of, what it fails on."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accel import device, doctor
from accel.doctor import FAIL, OK, WARN
from accel.errors import MissingExtra, RuntimeUnavailable


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "gpu_available", lambda: (False, "no NVIDIA driver was found on this machine"))


def only(check: Callable[[], Any]) -> doctor.Check:
    (line,) = check()
    return line


def versions(monkeypatch: pytest.MonkeyPatch, **known: str) -> None:
    found = {name.replace("_", "-"): version for name, version in known.items()}
    monkeypatch.setattr(doctor, "version_of", lambda *names: next((found[name] for name in names if name in found), None))


def test_a_cpu_machine_with_all_else_right_is_healthy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("torch", "torchvision", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    from accel.cli import main

    monkeypatch.setattr(Path, "exists", lambda self: not str(self).startswith("/proc/driver/nvidia") and original(self))
    assert main(["doctor", "--format", "json"]) == 0
    lines = {line["name"]: line for line in json.loads(capsys.readouterr().out)}
    assert lines["onnxruntime on cpu"]["status"] == OK
    assert lines["gpu"]["status"] == WARN
    assert {line["status"] for line in lines.values()} <= {OK, WARN}
    assert all(line["fix"] for line in lines.values() if line["status"] != OK)


original = Path.exists


def test_a_failure_is_exit_code_4(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from accel.cli import main

    monkeypatch.setattr(doctor, "CHECKS", (lambda: iter([doctor.Check("disk", FAIL, "full", "free some space")]),))
    assert main(["doctor"]) == 4
    assert "free some space" in capsys.readouterr().out


@pytest.mark.parametrize(("version", "status"), [((3, 10), WARN), ((3, 11), OK), ((3, 13), OK), ((3, 14), WARN)])
def test_python(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], status: str) -> None:
    monkeypatch.setattr(sys, "version_info", (*version, 0, "final", 0))
    monkeypatch.setattr(platform, "python_version", lambda: ".".join(map(str, version)))
    assert only(doctor.python).status == status


@pytest.mark.parametrize(
    ("owners", "status"),
    [(["accel-engines"], OK), (["accel_engines"], OK), ([], OK), (["accel"], FAIL), (["accel-engines", "accel"], FAIL)],
)
def test_a_foreign_accel_is_a_failure(monkeypatch: pytest.MonkeyPatch, owners: list[str], status: str) -> None:
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"accel": owners})
    line = only(doctor.distribution)
    assert line.status == status
    if status == FAIL:
        assert line.fix.startswith("pip uninstall accel;")


def test_both_onnxruntime_packages_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, onnxruntime="1.32.0", onnxruntime_gpu="1.31.1")
    line = only(doctor.onnxruntime_packages)
    assert line.status == FAIL
    assert "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1" in line.found


def test_one_onnxruntime_package_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, onnxruntime_gpu="1.31.1")
    assert only(doctor.onnxruntime_packages).status == OK


def test_a_provider_is_proven_by_running_not_by_its_list(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")

    def run(place: str) -> None:
        if place != "cpu":
            raise RuntimeUnavailable("libcurand.so.10 cannot be loaded", remedy="pip install 'accel-engines[ort]'")

    monkeypatch.setattr(device, "gpu_available", lambda: (True, ""))
    monkeypatch.setattr(doctor, "run_one_node", run)
    lines = {line.name: line for line in doctor.onnxruntime_providers()}
    assert lines["onnxruntime on cpu"].status == OK
    assert lines["onnxruntime on cuda:0"].status == FAIL
    assert lines["onnxruntime on cuda:0"].found == "libcurand.so.10 cannot be loaded"


def test_the_one_node_model_is_valid_onnx() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(doctor.one_node_model())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Add"]


@pytest.mark.parametrize("check", [doctor.torch, doctor.onnxruntime_providers])
@pytest.mark.parametrize(("installed", "status"), [(False, WARN), (True, FAIL)])
def test_a_package_that_is_absent_is_a_warning_and_a_broken_one_a_failure(
    monkeypatch: pytest.MonkeyPatch, check: Callable[[], Any], installed: bool, status: str
) -> None:
    def broken(module: str, extra: str) -> None:
        raise MissingExtra(module, extra)

    monkeypatch.setattr(doctor, "require", broken)
    versions(monkeypatch, **({"torch": "2.15.0", "torchvision": "0.29.2", "onnxruntime": "1.32.0"} if installed else {}))
    line = only(check)
    assert line.status == status
    assert line.fix.startswith("pip install 'accel-engines[")


def test_without_a_compiler_the_fallback_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    line = only(doctor.compiler)
    assert (line.status, "torch.compile falls back to eager" in line.found) == (WARN, True)


def test_a_missing_dataset_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path))
    line = only(doctor.dataset)
    assert (line.status, line.fix) == (WARN, "accel data fetch cifar10")


@pytest.mark.parametrize(("free", "status"), [(50e9, OK), (2e9, WARN), (1e8, FAIL)])
def test_disk(monkeypatch: pytest.MonkeyPatch, free: float, status: str) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free})())
    assert {line.status for line in doctor.disk()} == {status}


def test_a_cache_below_a_file_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "file" / "cache"))
    line = next(iter(doctor.disk()))
    assert (line.status, line.found) == (FAIL, f"{tmp_path / 'file'} cannot be written")


def test_tensorrt_is_optional_and_a_broken_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from accel import trt
    from accel.trt import library

    library._load.cache_clear()
    for flavor in trt.FLAVORS.values():
        for name in flavor.modules:
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(doctor, "version_of", lambda *names: None)
    lines = {line.name: line for line in doctor.tensorrt()}
    assert {name: line.status for name, line in lines.items()} == {"tensorrt": WARN, "tensorrt-rtx": WARN}
    assert lines["tensorrt"].fix == "pip install 'accel-engines[trt]'"
    monkeypatch.setattr(doctor, "version_of", lambda *names: "8.6.0" if "tensorrt" in names else None)
    assert {line.name: line.status for line in doctor.tensorrt()} == {"tensorrt": FAIL, "tensorrt-rtx": WARN}


def test_a_tensorrt_that_cannot_be_imported_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from accel.trt import library

    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.8: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    library._load.cache_clear()
    line = next(iter(doctor.tensorrt()))
    assert "is installed but cannot be imported (libnvinfer.so.8" in line.found
