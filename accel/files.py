"""Where files live, and how one is written so that a killed process leaves nothing half done."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from accel.errors import DiskFull


def cache_dir() -> Path:
    """`ACCEL_CACHE_DIR`, else the user's cache folder of the platform."""
    chosen = os.environ.get("ACCEL_CACHE_DIR")
    # A worker in a foreign environment (TensorRT 8.6's) has numpy and its runtime, and gets ACCEL_CACHE_DIR from whoever starts it.
    if not chosen:
        import platformdirs

        chosen = platformdirs.user_cache_dir("accel-engines", appauthor=False)
    return Path(chosen).expanduser()


def offline() -> bool:
    """Whether `ACCEL_OFFLINE` forbids every connection."""
    return os.environ.get("ACCEL_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


def sha256_bytes(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn "no space left" (or "quota exceeded") while writing `path` into DiskFull."""
    try:
        yield
    except OSError as error:
        if _is_full(error):
            raise DiskFull(
                f"no space left on the disk while writing {path}; nothing was changed",
                remedy="free some space, or choose another folder with --out or ACCEL_CACHE_DIR",
            ) from error
        raise


def _is_full(error: OSError) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT)
    # shutil.copytree gathers what went wrong with each file, as text and without a number of its own.
    gathered = str(error) if isinstance(error, shutil.Error) else ""
    return error.errno in full or any(f"[Errno {number}]" in gathered for number in full)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path` atomically, on failure it is removed.

    Raises:
        DiskFull: the disk filled up; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            # Without the flush a crash of the machine could leave the new name on an empty file.
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8) atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def scratch_folder(beside: Path, label: str) -> Iterator[Path]:
    """A new folder in `beside`, on the same file system as what will be renamed out of it; always removed."""
    folder = beside / f".{label}.{os.getpid()}.part"
    with disk_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
