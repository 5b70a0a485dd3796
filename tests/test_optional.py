"""What is installed: found on sys.path without importing it, remembered while nothing changes, and never longer."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import accel
from accel import device, optional, runtimes, trt
from accel.device.select import Gpu
from accel.engines import compat
from accel.optional import version_of
from accel.types import EngineEntry

Count = Callable[[], list[str]]


def install(folder: Path, version: str, name: str = "accel_test_package") -> Path:
    """As pip would; the folder of what it leaves."""
    made = folder / f"{name}-{version}.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n\nVersion: of the description\n")
    return made


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two folders at the front of sys.path, the first one first."""
    made = tmp_path / "one", tmp_path / "two"
    for folder in made:
        folder.mkdir()
    monkeypatch.setattr(sys, "path", [*map(str, made), *sys.path])
    return made


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Count:
    """What was listed since the last question, by whatever way, and lies on sys.path."""
    seen: list[str] = []
    for name in ("listdir", "scandir"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda folder=".", real=real: (seen.append(os.fspath(folder)), real(folder))[1])

    def since() -> list[str]:
        found = [folder for folder in seen if folder in sys.path]
        seen.clear()
        return found

    return since


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """importlib.metadata, which is asked for what is found nowhere, makes nothing good."""

    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders that a test has just made count as being at rest."""
    monkeypatch.setattr(optional, "_SETTLED_NS", -(10**18))


def test_the_first_on_sys_path_is_the_one_that_an_import_would_take(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = folders
    install(two, "2.0", "Accel.Test_Package")
    assert version_of("accel-test-package") == "2.0"
    install(one, "1.0")
    assert version_of("accel-test-package") == "1.0"
    monkeypatch.setattr(sys, "path", [str(two), *sys.path])
    assert version_of("accel-test-package") == "2.0"
    assert version_of("accel-no-such-package", "accel_test_package") == "2.0"
    assert "accel_test_package" not in sys.modules


def wait_for_tick(folder: Path) -> None:
    """Until the file system's clock has gone on, so that the next change of `folder` has another time than the last one."""
    probe, last = folder.parent / "probe", folder.stat().st_ctime_ns
    probe.touch()
    while probe.stat().st_ctime_ns <= last:
        probe.touch()


@pytest.mark.usefixtures("settled", "alone")
def test_what_is_installed_upgraded_and_removed_meanwhile_is_seen(folders: tuple[Path, Path]) -> None:
    one, _ = folders
    assert version_of("accel-test-package") is None
    wait_for_tick(one)
    first = install(one, "1.0")
    assert version_of("accel-test-package") == "1.0"
    wait_for_tick(one)
    shutil.rmtree(first)
    second = install(one, "1.1")
    assert version_of("accel-test-package") == "1.1"
    # In place, as nobody should: the folder of sys.path does not change.
    (second / "METADATA").write_text("Version: 1.2\n")
    assert version_of("accel-test-package") == "1.2"
    wait_for_tick(one)
    shutil.rmtree(second)
    assert version_of("accel-test-package") is None


@pytest.mark.usefixtures("settled", "alone")
def test_a_folder_whose_time_was_set_back_has_changed_all_the_same(folders: tuple[Path, Path]) -> None:
    one, _ = folders
    before = one.stat()
    assert version_of("accel-test-package") is None
    wait_for_tick(one)
    install(one, "1.0")
    os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert one.stat().st_mtime_ns == before.st_mtime_ns
    assert version_of("accel-test-package") == "1.0"


@pytest.mark.usefixtures("settled", "alone")
def test_a_relative_folder_is_another_one_after_chdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    for version in ("1.0", "2.0"):
        install(tmp_path / version, version)
        monkeypatch.chdir(tmp_path / version)
        assert version_of("accel-test-package") == version


def test_a_listing_is_remembered_once_the_folder_is_at_rest(
    folders: tuple[Path, Path], listed: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = folders
    install(one, "1.0")
    monkeypatch.setattr(sys, "path", [str(one)])
    for _ in range(2):
        # Changed a moment ago: a second change might have the same time.
        assert version_of("accel-test-package") == "1.0"
        assert listed() == [str(one)]
    now = one.stat().st_mtime_ns + 3_000_000_000
    monkeypatch.setattr(optional.time, "time_ns", lambda: now)
    for expected in ([str(one)], []):
        assert version_of("accel-test-package") == "1.0"
        assert listed() == expected


def test_what_is_no_folder_or_has_no_metadata_shows_nothing(folders: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = folders
    shutil.rmtree(one)
    with zipfile.ZipFile(one, "w") as archive:
        archive.writestr("something.py", "")
    sys.path.insert(0, str(tmp_path / "nowhere"))
    (two / "accel_test_package-1.0.dist-info").mkdir()
    assert version_of("accel-test-package") is None
    install(tmp_path / "three", "3.0")
    sys.path.insert(3, str(tmp_path / "three"))
    assert version_of("accel-test-package") == "3.0"


@pytest.mark.usefixtures("settled")
def test_a_second_load_lists_no_folder_of_sys_path(tiny: Path, listed: Count) -> None:
    def load() -> list[str]:
        listed()
        with accel.load(tiny, "torchscript:fp32", "cpu"):
            return listed()

    optional._listed.clear()
    assert str(Path(sys.modules["torch"].__file__ or "").parents[1]) in load()
    assert load() == []


def test_versions_that_an_engine_is_not_tied_to_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(runtimes.sources, "version", lambda name: asked.append(name) or "10.13.0")
    monkeypatch.setattr(device, "describe", lambda place: Gpu("NVIDIA H200", "9.0", "13.0"))
    kernels = EngineEntry("fused-fp16", "fused", "fp16", {}, (), (), {}, 0.0, target={"least_compute_capability": "8.0"})
    compat.check(kernels, "cuda:0", lambda: runtimes.machine("cuda:0"))
    assert asked == []
    plan = EngineEntry("tensorrt-fp16", "tensorrt", "fp16", {}, (), (), {}, 0.0, target={"tensorrt": "10.13.0"})
    compat.check(plan, "cuda:0", lambda: runtimes.machine("cuda:0"))
    assert asked == ["tensorrt"]
    assert set(runtimes.machine("cpu").libraries) == set(trt.FLAVORS)
    assert runtimes.machine("cpu").libraries.get("onnxruntime") is None
