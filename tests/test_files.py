"""Files that are replaced whole or not at all."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from accel.errors import DiskFull
from accel.files import cache_dir, offline, replacing, scratch_folder, sha256_bytes, sha256_file, write_text


def test_a_file_is_replaced_only_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError, match="killed"), replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("killed")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_our_error_with_exit_code_4_and_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(DiskFull, match="no space left") as caught, replacing(target) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.exit_code == 4
    assert target.read_text() == "old"


def test_a_disk_that_fills_up_while_a_folder_is_copied_is_our_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "model.onnx").write_text("x")

    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", source)

    with pytest.raises(DiskFull, match="no space left"), scratch_folder(tmp_path, "package") as folder:
        shutil.copytree(tmp_path / "bundle", folder / "copy", copy_function=full)


def test_another_os_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), replacing(tmp_path / "a"):
        raise PermissionError("no")


def test_a_scratch_folder_is_gone_afterwards_even_if_the_block_failed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path, "export") as folder:
        (folder / "x").write_text("x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"accel")
    assert sha256_file(tmp_path / "x") == sha256_bytes(b"accel")


def test_the_cache_folder_follows_its_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path))
    assert cache_dir() == tmp_path


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("true", True), ("0", False), ("", False), ("no", False)])
def test_offline_reads_the_usual_spellings(monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
    monkeypatch.setenv("ACCEL_OFFLINE", value)
    assert offline() is expected
