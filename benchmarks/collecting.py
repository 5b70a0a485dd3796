"""Pack finished trainings into a few files of limited size, as some hosts let nothing else out; unpack them again."""

from __future__ import annotations

import fnmatch
import json
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from accel.checkpoint import read_checkpoint
from accel.errors import CorruptArtifact
from accel.files import sha256_file, write_text
from benchmarks.trainings import Job

PART_MIB, TOTAL_MIB = 15.5, 61.5
"""Of one file, and of all: four files and the list of them, below 16 MiB each and 64 MiB together."""

MOST_PARTS = 7
SMALL = ("recipe.toml", "log.csv", "log.partial.csv", "run.json", "checkpoint.json")
"""What is carried of every job's folder, finished or not, as far as it is there."""

LOG_BYTES = 64 * 1024
"""Of what a training said, the end."""

TAR_END = 10240
"""Bytes, at most, after the last member of a tar."""

PART, LIST = "trainings.tar.{:02}", "collected.json"
MIB = 2**20


def ranked(jobs: Sequence[Job], carry: Sequence[str]) -> list[str]:
    """The names of `jobs`, those whose weights travel first in front: by the patterns of `carry`, then as in the table."""

    def place(name: str) -> int:
        return next((number for number, pattern in enumerate(carry) if fnmatch.fnmatchcase(name, pattern)), len(carry))

    return sorted((job.name for job in jobs), key=place)


def collect(out: Path, to: Path, ranks: Sequence[str], *, part_mib: float = PART_MIB, total_mib: float = TOTAL_MIB) -> list[str]:
    """Write `trainings.tar.00`, `.01`, … (one tar, cut) and `collected.json` into `to`; returns whose weights were left out.

    The small files of every job come first, then weights in the order of `ranks` as long as they fit; what does not fit is passed over.

    Args:
        part_mib: most of one file. total_mib: most of all of them; no more than MOST_PARTS parts are written.
    """
    budget = int(min(total_mib, MOST_PARTS * part_mib) * MIB)
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".collect.") as scratch:
        members = _small(out, Path(scratch))
        used = TAR_END + sum(_size(path) for _, path in members)
        left_out: list[str] = []
        carried: list[str] = []
        for name in ranks:
            weights = out / name / "weights.safetensors"
            if not (out / name / "checkpoint.json").is_file() or not weights.is_file():
                continue
            if used + _size(weights) > budget:
                left_out.append(name)
                continue
            used += _size(weights)
            carried.append(name)
            members.append((f"{name}/{weights.name}", weights))
        parts = _write(members, Path(scratch), int(part_mib * MIB))
        for old in to.glob("trainings.tar.*"):
            old.unlink()
        listed = {}
        for part in parts:
            shutil.move(part, to / part.name)
            listed[part.name] = sha256_file(to / part.name)
    write_text(to / LIST, json.dumps({"parts": listed, "weights": carried, "left_out": left_out}, indent=1) + "\n")
    return left_out


def unpack(parts: Path, to: Path) -> list[Path]:
    """Put together what `collect` wrote, and hold every checkpoint that has its weights against their hash.

    Returns:
        The folders of whole checkpoints.

    Raises:
        CorruptArtifact: a part is missing or damaged, or weights are not those of their checkpoint.
    """
    remedy = "fetch the parts again"
    try:
        listed: dict[str, str] = json.loads((parts / LIST).read_text(encoding="utf-8"))["parts"]
    except (OSError, ValueError, KeyError) as error:
        raise CorruptArtifact(f"{parts / LIST} cannot be read ({error!r})", remedy=remedy) from error
    for name, sha256 in listed.items():
        if not (parts / name).is_file() or sha256_file(parts / name) != sha256:
            raise CorruptArtifact(f"{parts / name} is missing or damaged", remedy=remedy)
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as whole:
        for name in sorted(listed):
            with open(parts / name, "rb") as part:
                shutil.copyfileobj(part, whole)
        whole.seek(0)
        with tarfile.open(fileobj=whole) as archive:
            archive.extractall(to, filter="data")
            found = sorted({to / Path(name).parent for name in archive.getnames() if name.endswith("/weights.safetensors")})
    return [read_checkpoint(folder).path for folder in found]


def _small(out: Path, scratch: Path) -> list[tuple[str, Path]]:
    """Names in the tar and copies: a run under way writes to its own files while they are packed."""
    named = [path for pattern in ("*.json", "*.log") for path in sorted(out.glob(pattern))]
    folders = sorted(path for path in out.iterdir() if path.is_dir() and not path.name.startswith("."))
    named += [folder / name for folder in folders for name in SMALL if (folder / name).is_file()]
    found = []
    for path in named:
        copy = scratch / str(len(found))
        copy.write_bytes(path.read_bytes()[-LOG_BYTES:] if path.suffix == ".log" else path.read_bytes())
        found.append((str(path.relative_to(out)), copy))
    return found


def _size(path: Path) -> int:
    """In a tar: a header of 512 bytes, and the file filled up to as many."""
    return 512 + (path.stat().st_size + 511) // 512 * 512


def _write(members: Sequence[tuple[str, Path]], scratch: Path, part_bytes: int) -> list[Path]:
    """One tar of `members` in files of at most `part_bytes`."""
    whole = scratch / "whole.tar"
    with tarfile.open(whole, "w") as archive:
        for name, path in members:
            archive.add(path, name, recursive=False, filter=_plain)
    parts = []
    with open(whole, "rb") as stream:
        while data := stream.read(part_bytes):
            parts.append(scratch / PART.format(len(parts)))
            parts[-1].write_bytes(data)
    return parts


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the user, group and time of the machine."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    return member
