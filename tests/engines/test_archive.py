"""A bundle as one file: the same bytes for the same bundle, nothing taken that is not plainly a bundle, whole or not at all."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import stat
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_samples import checkpoint_of, entry_of, golden_of

from accel import engines
from accel.engines import Bundle, archive, commit, verified
from accel.errors import BundleMissing, CorruptArtifact, DiskFull, IncompatibleArtifact, UsageError
from accel.files import sha256_file

NAMES = ["accel.json", "checkpoint/checkpoint.json", "checkpoint/weights.safetensors", "golden.npz", "onnx-fp32/model.onnx"]


@pytest.fixture
def packed(bundle: Bundle, tmp_path: Path) -> Path:
    return archive.pack(bundle, tmp_path / "tiny.accel.zip")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_unpacked_is_what_was_packed_without_what_nobody_named(bundle: Bundle, tmp_path: Path) -> None:
    verified.record(bundle.path, "a", {"top1": 95.1})
    before = tree(bundle.path)
    (bundle.path / "settings.json").write_text("{}")
    (bundle.path / "onnx-fp32/notes.txt").write_text("mine")
    path = archive.pack(bundle, tmp_path / "x.accel.zip")
    found = archive.unpack(path, tmp_path / "out" / "x.accel")
    assert found.manifest == bundle.manifest
    assert tree(found.path) == before
    assert sorted(before) == [*NAMES, "verified.json"]


def test_the_same_bundle_packs_to_the_same_bytes_wherever_and_whenever(bundle: Bundle, packed: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle.path, tmp_path / "elsewhere" / "another name.accel"))
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    before = os.umask(0o077)
    try:
        again = archive.pack(Bundle.open(copy), tmp_path / "again.accel.zip")
    finally:
        os.umask(before)
    assert again.read_bytes() == packed.read_bytes()
    unpacked = archive.unpack(packed, tmp_path / "unpacked.accel")
    assert sha256_file(archive.pack(unpacked, tmp_path / "third.accel.zip")) == sha256_file(packed)


def test_a_file_can_be_mapped_from_within_the_archive(bundle: Bundle, packed: Path) -> None:
    members = archive.members(packed)
    assert list(members) == NAMES
    with open(packed, "rb") as stream:
        for name, member in members.items():
            assert member.offset % mmap.PAGESIZE == 0
            with mmap.mmap(stream.fileno(), member.size, access=mmap.ACCESS_READ, offset=member.offset) as mapped:
                assert mapped[:] == (bundle.path / name).read_bytes()
    with zipfile.ZipFile(packed) as found:
        assert found.testzip() is None
        assert {(info.compress_type, info.date_time, info.external_attr >> 16) for info in found.infolist()} == {
            (zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0), stat.S_IFREG | 0o644)
        }


def test_large_files_are_aligned_and_read_too(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 2 GiB on a header has 20 bytes more; here from 100 bytes on."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    path = archive.pack(bundle, tmp_path / "x.accel.zip")
    assert {member.offset % archive.ALIGNMENT for member in archive.members(path).values()} == {0}
    assert tree(archive.unpack(path, tmp_path / "x.accel").path) == tree(bundle.path)


def test_a_damaged_bundle_is_not_packed_and_a_file_is_not_overwritten(bundle: Bundle, packed: Path, tmp_path: Path) -> None:
    before = packed.read_bytes()
    with pytest.raises(UsageError, match="exists"):
        archive.pack(bundle, packed)
    (bundle.path / "onnx-fp32/model.onnx").write_bytes(b"new")
    with pytest.raises(CorruptArtifact, match=r"model\.onnx has SHA-256 .*; accel\.json says"):
        archive.pack(bundle, packed, force=True)
    (bundle.path / "onnx-fp32/model.onnx").unlink()
    (bundle.path / "onnx-fp32/model.onnx").symlink_to(tmp_path / "old/model.onnx")
    with pytest.raises(CorruptArtifact, match="a link that leaves the bundle"):
        archive.pack(bundle, packed, force=True)
    assert packed.read_bytes() == before
    assert not list(tmp_path.glob(".*.part"))


def test_a_folder_that_is_there_is_replaced_only_if_told_and_only_if_it_is_a_bundle(bundle: Bundle, packed: Path, tmp_path: Path) -> None:
    other = engines.create(tmp_path / "other.accel", checkpoint_of(tmp_path / "other", seed=1), golden_of())
    with pytest.raises(UsageError, match=r"other\.accel exists\n.*--force"):
        archive.unpack(packed, other.path)
    assert Bundle.open(other.path) == other
    assert archive.unpack(packed, other.path, force=True).manifest == bundle.manifest
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").write_bytes(b"cat")
    with pytest.raises(UsageError, match="is no bundle"):
        archive.unpack(packed, tmp_path / "photos", force=True)
    assert (tmp_path / "photos/cat.png").read_bytes() == b"cat"
    (other.path / "accel.json").write_text("damaged")
    assert archive.unpack(packed, other.path, force=True).manifest == bundle.manifest


KILLED = """
import os, sys
from pathlib import Path
from accel.engines import archive, commit
def die(*args): os._exit(9)
read = archive._chunks
if sys.argv[1] == "while it writes":
    archive._chunks = lambda stream, member: die() if member.size == 3 else read(stream, member)
else:
    commit.swap_in = die
archive.unpack(Path(sys.argv[2]), Path(sys.argv[3]), force=True)
"""


@pytest.mark.parametrize("step", ["while it writes", "before it is put in place"])
@pytest.mark.parametrize("there", [False, True])
def test_a_killed_unpack_leaves_what_was_there_and_the_next_one_tidies_up(
    bundle: Bundle, packed: Path, tmp_path: Path, step: str, there: bool
) -> None:
    target = tmp_path / "target.accel"
    if there:
        engines.create(target, checkpoint_of(tmp_path / "other", seed=1), golden_of())
    before = tree(target)
    path = f"{Path(engines.__file__).parents[2]}"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, step, str(packed), str(target)], env={**os.environ, "PYTHONPATH": path}, timeout=60, check=False
    )
    assert done.returncode == 9
    assert target.exists() is there
    assert tree(target) == before
    assert list(tmp_path.glob(".target.accel.*.part"))
    assert archive.unpack(packed, target, force=True).manifest == bundle.manifest
    assert not list(tmp_path.glob(".target.accel.*.part"))


def test_a_full_disk_leaves_nothing(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(commit, "sync_tree", full)
    with pytest.raises(DiskFull):
        archive.unpack(packed, tmp_path / "target.accel")
    assert [path.name for path in tmp_path.iterdir() if "target" in path.name] == [".target.accel.lock"]


def test_an_archive_is_unpacked_into_the_cache_once(bundle: Bundle, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert archive.folder_of(bundle.path) == bundle.path
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(archive.folder_of(packed))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(found) == {tmp_path / "cache" / "bundles" / f"{sha256_file(packed)}.accel"}
    assert len(found) == 4
    assert Bundle.open(found[0]).manifest == bundle.manifest
    monkeypatch.setattr(archive, "_extract", lambda *args: pytest.fail("it was unpacked again"))
    assert archive.folder_of(packed) == found[0]


def test_a_changed_copy_in_the_cache_is_made_anew(bundle: Bundle, packed: Path, tmp_path: Path) -> None:
    folder = archive.folder_of(packed)
    engines.add(folder, entry_of(tmp_path / "new", b"new", name="onnx-fp16"), tmp_path / "new")
    assert Bundle.open(archive.folder_of(packed)).manifest == bundle.manifest


def rebuilt(packed: Path, change: Callable[[dict[str, bytes], zipfile.ZipFile], None]) -> Path:
    """Write the archive anew with zipfile: `change` takes the files and adds them, or others."""
    with zipfile.ZipFile(packed) as source:
        files = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(packed, "w") as target:
        change(files, target)
    return packed


def plainly(files: dict[str, bytes], target: zipfile.ZipFile) -> None:
    for name, data in files.items():
        target.writestr(zipfile.ZipInfo(name), data)


def adding(name: str, data: bytes = b"x", mode: int = stat.S_IFREG | 0o644, method: int = zipfile.ZIP_STORED) -> Callable[..., None]:
    def change(files: dict[str, bytes], target: zipfile.ZipFile) -> None:
        plainly(files, target)
        info = zipfile.ZipInfo(name)
        info.external_attr, info.compress_type = mode << 16, method
        target.writestr(info, data)

    return change


def replacing(name: str, data: bytes) -> Callable[..., None]:
    return lambda files, target: plainly({**files, name: data}, target)


HOSTILE: dict[str, tuple[Callable[..., None], str]] = {
    "climbs out": (adding("../evil"), "is absolute, or has an empty part"),
    "climbs out later": (adding("onnx-fp32/../../evil"), "is absolute, or has an empty part"),
    "absolute": (adding("/etc/evil"), "is absolute, or has an empty part"),
    "a drive": (adding("C:evil"), "some system reads as more than a name"),
    "backslashes": (adding("..\\evil"), "some system reads as more than a name"),
    "a device": (adding("onnx-fp32/NUL.onnx"), "is a device"),
    "a dot at the end": (adding("accel.json."), "ends in a dot"),
    "another case": (adding("ACCEL.json"), "are not two files on every system"),
    "a decomposed name": (adding("onnx-fp32/e\u0301"), "composed form"),
    "a link": (adding("onnx-fp32/link", b"/etc/passwd", stat.S_IFLNK | 0o777), "is a link, a folder or a device"),
    "a pipe": (adding("onnx-fp32/pipe", b"", stat.S_IFIFO | 0o644), "is a link, a folder or a device"),
    "a folder": (adding("extra/", b"", stat.S_IFDIR | 0o755), "is absolute, or has an empty part"),
    "compressed": (adding("onnx-fp32/model.bin", bytes(10_000), method=zipfile.ZIP_DEFLATED), "is compressed"),
    "not named": (adding("run.sh"), "has run.sh, which accel.json does not name"),
    "incomplete": (
        lambda files, target: plainly({k: v for k, v in files.items() if "onnx" not in k}, target),
        "lacks onnx-fp32/model.onnx",
    ),
    "no accel.json": (lambda files, target: plainly({"a": b"b"}, target), "has no accel.json"),
    "an edited engine": (replacing("onnx-fp32/model.onnx", b"evil"), "onnx-fp32/model.onnx in .* is damaged"),
    "an edited accel.json": (replacing("accel.json", b"{}"), "lacks the key"),
    "other samples": (replacing("golden.npz", b"PK"), "cannot be read"),
    "too many files": (lambda files, target: plainly({f"a{n}": b"" for n in range(1001)}, target), "says that it has 1001 files; 1000"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_an_archive_that_is_not_plainly_a_bundle_is_refused(packed: Path, tmp_path: Path, case: str) -> None:
    change, said = HOSTILE[case]
    rebuilt(packed, change)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(CorruptArtifact, match=said) as caught:
        archive.unpack(packed, tmp_path / "target.accel")
    assert caught.value.remedy
    assert {path.name for path in tmp_path.iterdir()} - before <= {".target.accel.lock"}


def twice(data: bytearray) -> None:
    """Two entries of the table of contents for one file: each unpacked, and nothing compressed, it would grow."""
    first = contents_of(data)
    second = data.index(b"PK\1\2", first + 4)
    data[second : data.index(b"PK\1\2", second + 4)] = data[first:second]


def end_of(data: bytearray) -> int:
    return data.rindex(b"PK\5\6")


def contents_of(data: bytearray) -> int:
    return int.from_bytes(data[end_of(data) + 16 : end_of(data) + 20], "little")


def poke(offset: int, value: bytes, *, header: bool = False) -> Callable[[bytearray], None]:
    """Write `value` at `offset` of the first record of the table of contents, or of the first file's own header."""

    def change(data: bytearray) -> None:
        start = (0 if header else contents_of(data)) + offset
        data[start : start + len(value)] = value

    return change


RAW: dict[str, tuple[Callable[[bytearray], Any], str]] = {
    "something before it": (lambda data: data.__setitem__(slice(0, 0), b"#!/bin/sh\n"), "between its table of contents and its end|begin"),
    "something after it": (lambda data: data.extend(b"more"), "does not end as a zip file"),
    "a comment": (lambda data: (data.extend(b"hello"), data.__setitem__(slice(end_of(data) + 20, end_of(data) + 22), b"\5\0")), "comment"),
    "cut short": (lambda data: data.__delitem__(slice(len(data) // 2, None)), "does not end as a zip file"),
    "empty": (lambda data: data.clear(), "does not end as a zip file"),
    "encrypted": (poke(8, b"\1\0"), "is encrypted"),
    "its size afterwards": (poke(8, b"\10\0"), "is encrypted, or its size is not told"),
    "another name in its header": (poke(30, b"b", header=True), "says otherwise than the table of contents"),
    "another size in its header": (poke(22, b"\1\0\0\0", header=True), "says otherwise than the table of contents"),
    "another checksum": (poke(16, b"\1\2\3\4"), "says otherwise than the table of contents"),
    "one file twice": (twice, "twice|begin|table of contents"),
    "a huge table of contents": (lambda data: struct.pack_into("<L", data, end_of(data) + 12, 2**31), "says that it has|no packed bundle"),
}


@pytest.mark.parametrize("case", RAW)
def test_an_archive_with_bytes_that_are_accounted_for_twice_or_not_at_all_is_refused(packed: Path, tmp_path: Path, case: str) -> None:
    change, said = RAW[case]
    data = bytearray(packed.read_bytes())
    change(data)
    packed.write_bytes(data)
    with pytest.raises(CorruptArtifact, match=said) as caught:
        archive.unpack(packed, tmp_path / "target.accel")
    assert "accel bundle pack" in str(caught.value.remedy)
    assert not (tmp_path / "target.accel").exists()


def test_a_checksum_that_was_made_anew_does_not_hide_an_edit(packed: Path, tmp_path: Path) -> None:
    data, member = bytearray(packed.read_bytes()), archive.members(packed)["onnx-fp32/model.onnx"]
    data[member.offset] ^= 1
    fresh = struct.pack("<L", zlib.crc32(data[member.offset : member.offset + member.size]))
    assert data.count(struct.pack("<L", member.crc)) == 2
    packed.write_bytes(data.replace(struct.pack("<L", member.crc), fresh))
    with pytest.raises(CorruptArtifact, match=r"model\.onnx in .* is damaged: it has SHA-256 .*; accel\.json says"):
        archive.unpack(packed, tmp_path / "target.accel")


def test_other_ends_are_told_apart(bundle: Bundle, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleMissing, match="there is no archive"):
        archive.unpack(tmp_path / "none.accel.zip", tmp_path / "x.accel")
    with pytest.raises(BundleMissing, match=r"is a packed bundle, and a folder is needed\n.*accel bundle unpack .*tiny\.accel\.zip"):
        Bundle.open(packed)
    monkeypatch.setattr(archive, "LARGEST", 1000)
    with pytest.raises(CorruptArtifact, match="1000 are the most"):
        archive.members(packed)
    monkeypatch.undo()
    newer = bundle.manifest.to_text().replace('"schema_version": 2', '"schema_version": 9')
    rebuilt(packed, replacing("accel.json", newer.encode()))
    with pytest.raises(IncompatibleArtifact, match="schema_version 9"):
        archive.unpack(packed, tmp_path / "x.accel")
