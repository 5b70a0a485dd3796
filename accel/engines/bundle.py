"""A bundle opened for reading: the folder `NAME.accel`, its engines, golden samples and reference."""

from __future__ import annotations

import dataclasses
import errno
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accel.checkpoint import read_checkpoint
from accel.engines import commit, compat, damage, paths
from accel.engines.compat import batch_of
from accel.engines.golden import Golden, Reference
from accel.engines.manifest import (
    CHECKPOINT_FOLDER,
    GOLDEN_FILE,
    MANIFEST_FILE,
    REFERENCE_FILE,
    REMEDY,
    Manifest,
    parse_manifest,
    read_manifest,
)
from accel.engines.strict import read_bytes
from accel.errors import BundleMissing, CorruptArtifact
from accel.files import sha256_bytes, sha256_file
from accel.types import Checkpoint, EngineEntry, TensorSpec

ARCHIVE_SUFFIX = ".accel.zip"
_WHOLE_COPY = "copy the whole folder again from where it came, or export it again"
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclasses.dataclass(frozen=True)
class Bundle:
    """One reading of a bundle; a later change of the folder is not seen, and `file` refuses bytes that do not match.

    Attributes:
        manifest_sha256: of the bytes of `accel.json`, which names the SHA-256 of all else that is executed.
    """

    path: Path
    manifest: Manifest
    manifest_sha256: str

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Read `accel.json`; a replacement that was killed half-way is finished or undone first.

        Raises:
            BundleMissing: there is no such folder, or it is no bundle.
            CorruptArtifact: accel.json cannot be used, or is gone. IncompatibleArtifact: it is of a newer accel.
        """
        path = Path(path)
        if path.name.endswith(ARCHIVE_SUFFIX) and path.is_file():
            raise BundleMissing(f"{path} is a packed bundle, and a folder is needed", remedy=f"accel bundle unpack {path}")
        recover(path)
        file = path / MANIFEST_FILE
        if not file.is_file():
            if (path / GOLDEN_FILE).is_file():
                raise CorruptArtifact(f"{file} is missing; {GOLDEN_FILE} of a bundle is there", remedy=_WHOLE_COPY)
            found = "a folder without accel.json" if path.is_dir() else "a file" if path.exists() else "nothing"
            raise BundleMissing(f"{path} is no bundle: found {found}", remedy=f"accel export {path.stem or 'MODEL'} --to onnx")
        paths.demand_inside(file, path, REMEDY)
        text = read_bytes(file, REMEDY)
        return cls(path, parse_manifest(text, str(file)), sha256_bytes(text))

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.manifest.outputs

    @property
    def preprocess(self) -> Mapping[str, Any]:
        return self.manifest.preprocess

    @property
    def labels(self) -> tuple[str, ...]:
        return self.manifest.labels

    @property
    def entries(self) -> tuple[EngineEntry, ...]:
        return self.manifest.engines

    @property
    def has_checkpoint(self) -> bool:
        return self.manifest.checkpoint is not None

    @functools.cached_property
    def checkpoint(self) -> Checkpoint:
        """The FP32 checkpoint, its files held against accel.json.

        Raises:
            BundleMissing: the bundle was made from a bare engine file. CorruptArtifact: a file is missing or edited.
        """
        if self.manifest.checkpoint is None:
            raise BundleMissing(f"{self.path} has no checkpoint, so no eager or compiled model", remedy="export it from its PyTorch model")
        self._check_files(self.manifest.checkpoint.files, _WHOLE_COPY)
        return read_checkpoint(self.path / CHECKPOINT_FOLDER)

    def entry(self, format: str, precision: str, batch: int = 1, fits: Callable[[EngineEntry], bool] | None = None) -> EngineEntry:
        """The engine of `format` and `precision` for `batch`: one of exactly that batch size, else a dynamic one.

        Args:
            fits: where there are several, as for different GPUs, the first that this says yes to; without a yes the first of all.

        Raises:
            BundleMissing: it was not exported.
        """
        of_kind = [item for item in self.entries if (item.format, item.precision) == (format, precision)]
        usable = [item for wanted in (batch, "dynamic") for item in of_kind if batch_of(item) == wanted]
        if usable:
            return usable[0] if fits is None or len(usable) == 1 else next(filter(fits, usable), usable[0])
        flags = ("" if precision == "fp32" else f" --{precision}") + ("" if batch == 1 else f" --batch {batch}")
        have = ", ".join(item.name for item in self.entries) or "no engines"
        raise BundleMissing(
            f"{self.path} has no {format} engine in {precision} for batch {batch}; it has {have}",
            remedy=f"accel export {self.name} --to {format}{flags}",
        )

    def file(self, entry: EngineEntry) -> Path:
        """The file of `entry` that a runtime opens, after holding all of its files against their SHA-256.

        Raises:
            CorruptArtifact: one is missing, edited, truncated, or a link out of the bundle.
        """
        self._check_files(entry.files, f"copy the whole folder again from where it came, or make it anew: {compat.again(entry, self.path)}")
        return self.path / next(iter(entry.files))

    def golden(self) -> Golden:
        """The golden samples; raises CorruptArtifact if they are not those that accel.json names."""
        path = self.path / GOLDEN_FILE
        paths.demand_inside(path, self.path, REMEDY)
        if not path.is_file():
            raise CorruptArtifact(f"{path} is missing; accel.json names its samples", remedy=_WHOLE_COPY)
        golden = Golden.read(path)
        if golden.sha256 != self.manifest.golden_sha256:
            raise CorruptArtifact(
                f"{path} holds samples of SHA-256 {golden.sha256}; accel.json says {self.manifest.golden_sha256}", remedy=_WHOLE_COPY
            )
        return golden

    def reference(self) -> Reference | None:
        """The reference logits, None before the first verification; raises CorruptArtifact if they are of another checkpoint."""
        path = self.path / REFERENCE_FILE
        if not path.is_file():
            return None
        paths.demand_inside(path, self.path, REMEDY)
        reference = Reference.read(path)
        if self.has_checkpoint and reference.checkpoint_sha256 != self.checkpoint.sha256:
            raise CorruptArtifact(
                f"{path} belongs to the weights {reference.checkpoint_sha256}; the bundle has {self.checkpoint.sha256}",
                remedy="delete it and run accel verify again",
            )
        return reference

    def _check_files(self, files: Mapping[str, str], remedy: str) -> None:
        for name, expected in files.items():
            path = self.path / name
            paths.demand_inside(path, self.path, REMEDY)
            if not path.is_file():
                raise CorruptArtifact(f"{path} is missing; accel.json names it", remedy=remedy)
            found = sha256_file(path)
            if found != expected:
                changed = sha256_file(self.path / MANIFEST_FILE) != self.manifest_sha256
                happened = self._what_happened(path, found)
                raise CorruptArtifact(
                    f"{path} ({path.stat().st_size} bytes) has SHA-256 {found}; accel.json says {expected}: {happened}",
                    remedy="the bundle was exported anew meanwhile: open it again" if changed else remedy,
                )

    def _what_happened(self, path: Path, found: str) -> str:
        other = next((name for name, known in self.manifest.files.items() if known == found), None)
        if other is not None:
            return f"these are the bytes of {other}, so files were swapped"
        return damage.described(path)


def recover(path: Path) -> None:
    """Finish or undo replacements that were killed; waits for one that is going on. The bundle may be on a read-only disk."""
    if not commit.was_moved(path) and not commit.leftovers(path):
        return
    try:
        with commit.locked(path):
            settle_entries(path)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise


def settle_entries(path: Path) -> None:
    """Settle every engine folder by what accel.json says; the caller holds the lock."""
    commit.remove_parts(path)
    for name in commit.leftovers(path):
        files = {entry.name: entry.files for entry in read_manifest(path / MANIFEST_FILE).engines}.get(name)
        commit.settle(path / name, functools.partial(_is_committed, path, files))


def entry_name(format: str, precision: str, batch: int | str = 1, tag: str = "") -> str:
    """The folder of an engine: `onnx-fp16`, `onnx-fp16-b8`, `onnx-fp16-dynamic`.

    Args:
        tag: what tells one of several of the same kind from the others, as `NVIDIA H200 8.6.0` → `tensorrt-fp16-nvidia-h200-8-6-0`.
    """
    size = "" if batch == 1 else "-dynamic" if batch == "dynamic" else f"-b{batch}"
    slug = re.sub(r"[^a-z0-9]+", "-", tag.lower()).strip("-")
    return f"{format}-{precision}{size}" + (f"-{slug}" if slug else "")


def _is_committed(root: Path, files: Mapping[str, str] | None) -> bool:
    return files is not None and commit.holds(root, files)
