"""Read named members of a .tar.gz in memory. Nothing is extracted, and an archive that could only want to escape is refused."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator, Set
from pathlib import Path, PurePosixPath

from accel.datasets.arrays import Arrays
from accel.datasets.catalog import DatasetInfo
from accel.datasets.pickles import read_batch
from accel.errors import CorruptArtifact
from accel.progress import Progress

LARGEST_MEMBER = 512 << 20
"""Bytes; the largest honest member (CIFAR-100's `train`) has 156 MB."""

_REMEDY = "fetch it again, or pass another copy with --from"


def read_members(path: Path, wanted: Set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of every member in `wanted`, in the archive's order.

    Raises:
        CorruptArtifact: not a whole .tar.gz, a wanted member is missing or oversized, or some member has an absolute path,
            climbs out with `..`, or is neither a file nor a folder.
    """
    missing = set(wanted)
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                _refuse_hostile(path, member)
                if member.name not in missing:
                    continue
                stream = archive.extractfile(member)
                if stream is None or member.size > LARGEST_MEMBER:
                    raise CorruptArtifact(f"{member.name} in {path} is no file of at most {LARGEST_MEMBER} bytes", remedy=_REMEDY)
                missing.remove(member.name)
                yield member.name, stream.read()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorruptArtifact(f"{path} is not a whole .tar.gz: {error}", remedy=_REMEDY) from error
    if missing:
        raise CorruptArtifact(f"{path} does not have {', '.join(sorted(missing))}", remedy=_REMEDY)


def read_cifar(path: Path, info: DatasetInfo, progress: Progress) -> dict[str, Arrays]:
    """Decode the official archive.

    Raises:
        CorruptArtifact: see `read_members` and `read_batch`.
    """
    names = {f"{info.folder}/{member}" for split in info.splits.values() for member in split.members}
    batches: dict[str, Arrays] = {}
    for name, data in read_members(path, names):
        progress("decode", len(batches), len(names))
        batches[PurePosixPath(name).name] = read_batch(data, info.label_key, f"{path}:{name}")
    progress("decode", len(names), len(names))
    return {split: Arrays.joined(batches[member] for member in part.members) for split, part in info.splits.items()}


def _refuse_hostile(path: Path, member: tarfile.TarInfo) -> None:
    name = PurePosixPath(member.name.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or not (member.isfile() or member.isdir()):
        raise CorruptArtifact(
            f"{path} has the member {member.name!r}, which leaves the folder or is no plain file: the archive was refused", remedy=_REMEDY
        )
