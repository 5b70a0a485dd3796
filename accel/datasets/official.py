"""The official archive, over HTTPS, resumed where an earlier try stopped."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from accel.datasets.archive import read_cifar
from accel.datasets.arrays import Arrays
from accel.datasets.catalog import DatasetInfo
from accel.errors import CorruptArtifact, DatasetMissing
from accel.files import disk_errors
from accel.progress import Progress

TIMEOUT_S = 5.0
"""To connect, and between two chunks. Short: when the site cannot be reached, the next source should have its turn soon."""

RESUMES = 5
"""How often a download that broke off is taken up again, as long as each try brought some bytes."""

_CHUNK = 1 << 18


def read(info: DatasetInfo, downloads: Path, progress: Progress) -> dict[str, Arrays]:
    """Download the archive into `downloads`, check its MD5 and decode it; the file stays for the caller to remove.

    Raises:
        DatasetMissing: the site cannot be reached or broke off; what arrived is kept for the next try.
        CorruptArtifact: the archive is not the published one; it was removed.
    """
    archive = downloads / info.archive
    if not (archive.is_file() and _md5(archive) == info.md5):
        _download(info, archive, progress)
    return read_cifar(archive, info, progress)


def _download(info: DatasetInfo, archive: Path, progress: Progress) -> None:
    part = archive.with_name(archive.name + ".part")
    # A try that was killed after its last byte has left a part that no server would resume.
    if not (part.is_file() and _md5(part) == info.md5):
        for _ in range(1 + RESUMES):
            before = _size(part)
            reason = _receive(info.url, part, f"download {info.archive}", progress)
            if reason is None:
                break
            if _size(part) <= before:
                raise DatasetMissing(f"{info.url} cannot be had: {reason}")
        else:
            raise DatasetMissing(f"{info.url} broke off {1 + RESUMES} times; {_size(part)} bytes are kept for the next try")
        found = _md5(part)
        if found != info.md5:
            part.unlink()
            raise CorruptArtifact(f"{info.url} gave an archive with MD5 {found}; expected {info.md5}")
    part.replace(archive)


def _receive(url: str, part: Path, step: str, progress: Progress) -> str | None:
    """Append to `part` what it lacks; the reason why it is still not whole, or None."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "accel-engines", **({"Range": f"bytes={have}-"} if have else {})})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if have and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # as long as the archive, and not the archive: begin anew
            return _receive(url, part, step, progress)
        return f"HTTP {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    with response, disk_errors(part):
        resumed = response.status == http.client.PARTIAL_CONTENT and str(response.headers.get("Content-Range")).startswith(f"bytes {have}-")
        done = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        with open(part, "ab" if resumed else "wb") as stream:
            while True:
                progress(step, done, total)
                try:
                    chunk = response.read(_CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    return f"the connection broke off: {str(error) or type(error).__name__}"
                if not chunk:
                    break
                stream.write(chunk)
                done += len(chunk)
    return f"the connection broke off after {done} of {total} bytes" if total is not None and done < total else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
