"""Weights that are kept packed: a checkpoint folder with `weights.safetensors.xz`, unpacked once into the user's cache."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from accel.errors import CorruptArtifact, MissingError
from accel.files import cache_dir, replacing, sha256_bytes, sha256_file
from accel.locking import held

logger = logging.getLogger(__name__)

WEIGHTS, PACKED = "weights.safetensors", "weights.safetensors.xz"

LARGEST = 2**30
"""Bytes of weights; a file that unpacks to more is refused before it fills the memory."""

MEMORY = 2**28
"""Bytes that unpacking may take beside them, most of it the dictionary: ours has 2^25."""

REMEDY = f"install accel-engines again, or copy {PACKED} again from where it came"


def unpacked(folder: Path) -> Path:
    """The checkpoint `folder`; where its weights are packed, a folder of the same name in the cache, with its files and plain weights.

    That one is found by the contents of the small files, of which checkpoint.json names the weights: no other accel's copy is taken for
    it. On every call it is held against them (13 ms for 22 MB), and what differs is written anew.

    Raises:
        CorruptArtifact: checkpoint.json or the packed weights are damaged, or the two do not belong together.
        MissingError: the cache cannot be written, or this Python has no lzma. DiskFull.
    """
    if not _is_packed(folder):
        return folder
    # A name with a dot in front is of a file that is being written.
    own = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name != PACKED and not path.name.startswith("."))
    small = {path.name: path.read_bytes() for path in own}
    sha256 = _recorded(folder, small)
    key = sha256_bytes(json.dumps({name: sha256_bytes(content) for name, content in small.items()}).encode())[:32]
    target = cache_dir().absolute() / "weights" / key / folder.resolve().name
    if _is_whole(target, small, sha256):
        return target
    try:
        with held(target.parents[1] / f"{key}.lock", f"unpacking the weights of {target.name}"):
            if not _is_whole(target, small, sha256):
                _write(target, small, _demanded(folder, sha256))
                logger.info("unpacked %s into %s", folder / PACKED, target)
    except OSError as error:
        raise MissingError(
            f"{folder / PACKED} cannot be unpacked into {target} ({error})", remedy="let ACCEL_CACHE_DIR name a folder that can be written"
        ) from error
    return target


def read(folder: Path) -> bytes | None:
    """What weights.safetensors of `folder` holds, from the packed file where it is packed; None without either. No cache is used.

    Raises:
        CorruptArtifact: the packed weights are damaged. MissingError: this Python has no lzma.
    """
    if _is_packed(folder):
        return _content(folder / PACKED)
    return (folder / WEIGHTS).read_bytes() if (folder / WEIGHTS).is_file() else None


def _is_packed(folder: Path) -> bool:
    return not (folder / WEIGHTS).is_file() and (folder / PACKED).is_file()


def _recorded(folder: Path, small: Mapping[str, bytes]) -> str:
    """The SHA-256 of the weights that checkpoint.json names."""
    try:
        return str(json.loads(small["checkpoint.json"])["sha256"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        what = f"{folder} is not a checkpoint: checkpoint.json cannot be read ({error!r})"
        raise CorruptArtifact(what, remedy=REMEDY) from error


def _is_whole(target: Path, small: Mapping[str, bytes], sha256: str) -> bool:
    try:
        same = all((target / name).read_bytes() == content for name, content in small.items())
        return same and sha256_file(target / WEIGHTS) == sha256
    except OSError:
        return False


def _demanded(folder: Path, sha256: str) -> bytes:
    weights = _content(folder / PACKED)
    if (found := sha256_bytes(weights)) != sha256:
        what = f"{folder / PACKED} unpacks to weights of SHA-256 {found}; checkpoint.json says {sha256}"
        raise CorruptArtifact(what, remedy=REMEDY)
    return weights


def _content(path: Path) -> bytes:
    try:
        import lzma  # here: there are builds of Python without it, which need it for nothing else
    except ImportError as error:
        what = f"{path} cannot be unpacked: this Python was built without lzma"
        raise MissingError(what, remedy="use a Python that has it; python -c 'import lzma' shows it") from error
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY)
    try:
        weights = decompressor.decompress(path.read_bytes(), max_length=LARGEST)
    except (OSError, lzma.LZMAError) as error:
        raise CorruptArtifact(f"{path} cannot be unpacked ({error})", remedy=REMEDY) from error
    if not decompressor.eof or decompressor.unused_data:
        how = "bytes follow its end" if decompressor.eof else "its end is missing" if decompressor.needs_input else f"over {LARGEST} bytes"
        raise CorruptArtifact(f"{path} cannot be unpacked ({how})", remedy=REMEDY)
    return weights


def _write(target: Path, small: Mapping[str, bytes], weights: bytes) -> None:
    """Each file whole or not at all; the lock is held."""
    if target.is_dir():
        for left in target.glob(".*.part"):  # by a process that was killed
            left.unlink()
    for name, content in {**small, WEIGHTS: weights}.items():
        with replacing(target / name) as temporary:
            temporary.write_bytes(content)
