"""One file for a bundle, `NAME.accel.zip`: stored, so that a file in it can be memory-mapped; equal bundles have equal bytes.

The reader takes less than a zip file may be. Every byte belongs to a header, a file or the table of contents, nothing is compressed or
encrypted, the names are those that accel.json names and lie inside the bundle, and what is written was held against its hash.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from accel.engines import commit, measured, paths, strict, tuned, verified
from accel.engines.bundle import ARCHIVE_SUFFIX, Bundle
from accel.engines.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    MEASURED_FILE,
    REFERENCE_FILE,
    REMEDY,
    SIGNATURE_FILE,
    TUNED_FILE,
    VERIFIED_FILE,
    Manifest,
    parse_manifest,
)
from accel.engines.writing import replace_folder
from accel.errors import ArtifactError, BundleMissing, CorruptArtifact, UsageError
from accel.files import cache_dir, replacing, sha256_bytes, sha256_file

ALIGNMENT = 4096
"""Each file begins at a multiple of this many bytes: a page, and more than any tensor asks for."""

MOST_FILES, LARGEST = 1000, 64 << 30
"""Of an archive that is read: files, and bytes altogether (as nothing is compressed, no file is larger than the archive)."""

OPTIONAL = (MEASURED_FILE, REFERENCE_FILE, SIGNATURE_FILE, TUNED_FILE, VERIFIED_FILE)
"""What a bundle may have beside accel.json, the golden samples and the files that accel.json names."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip file can say."""

_PADDING = 0xD935
"""Number of the extra field that zipalign pads with: the alignment (2 bytes), then zeros."""

_LOCAL, _END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s4H2LH")
_END64, _LOCATOR = struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_ZIP64, _ZIP64_FIELD = 0xFFFFFFFF, 20
_LARGEST_CONTENTS = 4 << 20
_COPY = "copy it again from where it came, or pack it again: accel bundle pack BUNDLE"
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Member:
    """One file of an archive: `size` bytes from `offset` on, as they are."""

    offset: int
    size: int
    crc: int


def pack(bundle: Bundle, path: Path, *, force: bool = False) -> Path:
    """Write `bundle` to the file `path`, whole or not at all; what accel.json does not name is left out, except for its records.

    Raises:
        UsageError: `path` exists, and not `force`. CorruptArtifact: a file of the bundle is not what accel.json says. DiskFull.
    """
    if path.exists() and not force:
        raise UsageError(f"{path} exists", remedy="--force replaces it; --out writes elsewhere")
    # Records that could not be read again are not handed on.
    for read in (
        bundle.golden,
        bundle.reference,
        lambda: verified.read(bundle.path),
        lambda: tuned.read(bundle.path),
        lambda: measured.read(bundle.path),
    ):
        read()
    known = {**bundle.manifest.files, MANIFEST_FILE: bundle.manifest_sha256}
    names = sorted({*known, GOLDEN_FILE, *(name for name in OPTIONAL if (bundle.path / name).is_file())})
    with replacing(path) as temporary, open(temporary, "wb") as stream, zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            found = _add(archive, stream, bundle.path / name, name)
            if found != known.get(name, found):
                raise CorruptArtifact(
                    f"{bundle.path / name} has SHA-256 {found}; accel.json says {known[name]}", remedy=f"accel inspect {bundle.path}"
                )
        for info in archive.infolist():
            info.extra = b""  # the padding is needed before the files only, not in the table of contents
    return path


def unpack(path: Path, target: Path, *, force: bool = False) -> Bundle:
    """Make the bundle `target` from the archive `path`, whole or not at all.

    Raises:
        UsageError: `target` exists, and not `force`; or it is no bundle. BundleMissing: there is no archive.
        CorruptArtifact: the archive is damaged, hostile, or no bundle. IncompatibleArtifact: it is of a newer accel. DiskFull.
    """
    with commit.locked(target):
        commit.remove_parts_of(target)
        if target.exists():
            _demand_replaceable(target, force)
        replace_folder(target, functools.partial(_extract, path))
        return Bundle.open(target)


def folder_of(path: Path) -> Path:
    """`path` itself; for an archive the folder in the cache that has its contents, named by the archive's SHA-256 and made if need be.

    Raises:
        CorruptArtifact, IncompatibleArtifact, DiskFull: as `unpack`.
    """
    if not (path.name.endswith(ARCHIVE_SUFFIX) and path.is_file()):
        return path
    target = cache_dir() / "bundles" / f"{sha256_file(path)}.accel"
    if not _is_of(target, path):
        unpack(path, target, force=True)
    return target


def members(path: Path) -> dict[str, Member]:
    """Where each file lies in the archive `path`, by name; their contents are not looked at.

    Raises:
        BundleMissing: there is no such file. CorruptArtifact: it is no archive of the kind that is read here, and why.
    """
    if not path.is_file():
        raise BundleMissing(f"there is no archive at {path}", remedy="accel bundle pack BUNDLE")
    try:
        with open(path, "rb") as stream:
            return _members(stream, path.stat().st_size)
    except (ValueError, OSError, EOFError, NotImplementedError, zipfile.BadZipFile, struct.error, RuntimeError) as error:
        raise CorruptArtifact(f"{path} is no packed bundle, or it is damaged: {error}", remedy=_COPY) from error


def _add(archive: zipfile.ZipFile, stream: BinaryIO, source: Path, name: str) -> str:
    """Append the file `source` as `name`; returns its SHA-256."""
    paths.demand_inside(source, source.parents[name.count("/")], REMEDY)
    if not source.is_file():
        raise CorruptArtifact(f"{source} is missing; accel.json names it", remedy=REMEDY)
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16  # as on Unix, whoever packs
    info.file_size = source.stat().st_size
    large = info.file_size * 1.05 > zipfile.ZIP64_LIMIT  # zipfile's own rule
    begins = stream.tell() + _LOCAL.size + len(name.encode()) + (_ZIP64_FIELD if large else 0) + 6
    padding = -begins % ALIGNMENT
    info.extra = struct.pack("<3H", _PADDING, 2 + padding, ALIGNMENT) + bytes(padding)
    digest = hashlib.sha256()
    with open(source, "rb") as given, archive.open(info, "w") as taken:
        while chunk := given.read(_CHUNK):
            digest.update(chunk)
            taken.write(chunk)
    return digest.hexdigest()


def _members(stream: BinaryIO, size: int) -> dict[str, Member]:
    _check_end(stream, size)
    with zipfile.ZipFile(stream) as archive:
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        contents = archive.start_dir
    if len(infos) > MOST_FILES:
        raise ValueError(f"it has {len(infos)} files; {MOST_FILES} are the most")
    found: dict[str, Member] = {}
    ends = 0
    for info in infos:
        _check_plain(info)
        if info.filename in found:
            raise ValueError(f"it has {info.filename!r} twice")
        if info.header_offset != ends:
            raise ValueError(f"{info.filename!r} does not begin where the file before it ends")
        found[info.filename] = member = _member(stream, info)
        ends = member.offset + member.size
    if ends != contents:
        raise ValueError("its table of contents does not begin where the last file ends")
    if (two := paths.clash(found)) is not None:
        raise ValueError(f"{two[0]!r} and {two[1]!r} are not two files on every system")
    return found


def _check_end(stream: BinaryIO, size: int) -> None:
    """Before zipfile reads the table of contents: how large it is, and that the archive ends with it."""
    if size > LARGEST:
        raise ValueError(f"it has {size} bytes; {LARGEST} are the most")
    tail = _END64.size + _LOCATOR.size + _END.size
    stream.seek(-min(size, tail), os.SEEK_END)
    end = stream.read()
    if size < _END.size or not end[-_END.size :].startswith(b"PK\5\6"):
        raise ValueError("it does not end as a zip file without a comment does")
    files, length, offset, after = *_END.unpack(end[-_END.size :])[4:7], _END.size
    if len(end) == tail and end[_END64.size :].startswith(b"PK\6\7"):
        # From 2 GiB on there is a longer record before the end, which counts.
        told = _END64.unpack(end[: _END64.size])[7:]
        if any(
            short not in (long, limit) for short, long, limit in zip((files, length, offset), told, (0xFFFF, _ZIP64, _ZIP64), strict=True)
        ):
            raise ValueError("its two ends do not say the same")
        files, length, offset, after = *told, tail
    if files > MOST_FILES or length > _LARGEST_CONTENTS:
        raise ValueError(f"it says that it has {files} files; {MOST_FILES} are the most")
    if offset + length + after != size:
        raise ValueError("there are bytes between its table of contents and its end")


def _check_plain(info: zipfile.ZipInfo) -> None:
    why = paths.problem(info.filename)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if why is not None:
        raise ValueError(f"{info.filename!r} {why}")
    if info.orig_filename != info.filename:
        raise ValueError(f"{info.orig_filename!r} has a character that ends it")
    if kind not in (0, stat.S_IFREG):
        raise ValueError(f"{info.filename!r} is a link, a folder or a device")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise ValueError(f"{info.filename!r} is compressed; only stored files are taken")
    if info.flag_bits & ~0x800:  # encrypted, patched, or its size follows; 0x800 is UTF-8
        raise ValueError(f"{info.filename!r} is encrypted, or its size is not told before it")


def _member(stream: BinaryIO, info: zipfile.ZipInfo) -> Member:
    """Where the file begins; its own header must say what the table of contents says."""
    stream.seek(info.header_offset)
    head = stream.read(_LOCAL.size)
    if len(head) < _LOCAL.size:
        raise ValueError(f"{info.filename!r} breaks off")
    mark, _, flags, method, _, _, crc, packed, size, name, extra = _LOCAL.unpack(head)
    told = (b"PK\3\4", info.flag_bits, zipfile.ZIP_STORED, info.CRC)
    sizes = {packed, size} - ({_ZIP64} if info.file_size > zipfile.ZIP64_LIMIT // 2 else set())
    if (mark, flags, method, crc) != told or sizes - {info.file_size} or stream.read(name) != info.filename.encode():
        raise ValueError(f"the header of {info.filename!r} says otherwise than the table of contents")
    return Member(info.header_offset + _LOCAL.size + name + extra, info.file_size, info.CRC)


def _extract(path: Path, folder: Path) -> None:
    """Write the files of the archive `path` into `folder`, each held against what accel.json says."""
    found = members(path)
    with open(path, "rb") as stream:
        manifest, text = _manifest(stream, path, found)
        expected = {**manifest.files, MANIFEST_FILE: sha256_bytes(text)}
        _check_names(path, found, expected)
        for name, member in found.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            digest, crc = hashlib.sha256(), 0
            with open(target, "wb") as written:
                for chunk in _chunks(stream, member):
                    digest.update(chunk)
                    crc = zlib.crc32(chunk, crc)
                    written.write(chunk)
            if crc != member.crc or digest.hexdigest() != expected.get(name, digest.hexdigest()):
                says = f"; accel.json says {expected[name]}" if name in expected else ""
                raise CorruptArtifact(f"{name} in {path} is damaged: it has SHA-256 {digest.hexdigest()}{says}", remedy=_COPY)
    Bundle.open(folder).golden()


def _manifest(stream: BinaryIO, path: Path, found: Mapping[str, Member]) -> tuple[Manifest, bytes]:
    member = found.get(MANIFEST_FILE)
    if member is None or member.size > strict.LARGEST:
        raise CorruptArtifact(f"{path} has no {MANIFEST_FILE}, so it is no packed bundle", remedy=_COPY)
    text = b"".join(_chunks(stream, member))
    return parse_manifest(text, f"{MANIFEST_FILE} in {path}"), text


def _check_names(path: Path, found: Mapping[str, Member], named: Mapping[str, str]) -> None:
    missing = sorted({*named, GOLDEN_FILE} - found.keys())
    strange = sorted(found.keys() - {*named, GOLDEN_FILE, *OPTIONAL})
    if missing or strange:
        what = f"lacks {missing[0]}, which accel.json names" if missing else f"has {strange[0]}, which accel.json does not name"
        raise CorruptArtifact(f"{path} {what}", remedy=_COPY)


def _chunks(stream: BinaryIO, member: Member) -> Iterator[bytes]:
    stream.seek(member.offset)
    left = member.size
    while left and (chunk := stream.read(min(left, _CHUNK))):
        left -= len(chunk)
        yield chunk


def _is_of(folder: Path, path: Path) -> bool:
    """Whether `folder` has the accel.json of the archive `path` still; its files are held against it by whoever opens them."""
    if not folder.is_dir():
        return False
    with open(path, "rb") as stream:
        _, text = _manifest(stream, path, members(path))
    return (folder / MANIFEST_FILE).is_file() and sha256_file(folder / MANIFEST_FILE) == sha256_bytes(text)


def _demand_replaceable(target: Path, force: bool) -> None:
    try:
        Bundle.open(target)
    except BundleMissing as error:
        raise UsageError(f"{target} exists and is no bundle", remedy="choose another folder with --out, or remove this one") from error
    except ArtifactError:
        pass  # a damaged bundle is what --force is for
    if not force:
        raise UsageError(f"{target} exists", remedy="--force replaces it, records and all; --out unpacks elsewhere")
