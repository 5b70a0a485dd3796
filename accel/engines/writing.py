"""Make a bundle, add an engine to it, write its reference: each whole or not at all, one writer at a time."""

from __future__ import annotations

import dataclasses
import functools
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accel.checkpoint import write_checkpoint
from accel.engines import commit
from accel.engines.bundle import Bundle, settle_entries
from accel.engines.golden import Golden, Reference
from accel.engines.manifest import (
    CHECKPOINT_FOLDER,
    GOLDEN_FILE,
    MANIFEST_FILE,
    REFERENCE_FILE,
    SIGNATURE_FILE,
    CheckpointRecord,
    Manifest,
    check_entry,
    read_manifest,
)
from accel.engines.module import source_sha256
from accel.engines.weights import read_weights
from accel.errors import BundleMissing, CorruptArtifact, UsageError
from accel.files import scratch_folder, sha256_file, write_text
from accel.types import Checkpoint, EngineEntry, TensorSpec

logger = logging.getLogger(__name__)


def create(path: Path, checkpoint: Checkpoint, golden: Golden, *, replace: bool = False) -> Bundle:
    """Make the bundle `path` of `checkpoint`, its weights upcast to FP32; one that exists for the same model is opened as it is.

    Args:
        golden: the samples for a new bundle; an existing one keeps its own, because its engines were held against them.
        replace: whether a bundle of another model may be replaced, engines, results and all.

    Raises:
        UsageError: `path` holds another model, or something that is no bundle.
        DiskFull: the disk filled up; what was at `path` is as it was.
    """
    path = Path(path)
    with commit.locked(path):
        if path.exists():
            known = _open_known(path, replace)
            if known is not None and holds(known, checkpoint):
                return known
            if not replace:
                raise UsageError(
                    f"{path} holds another model than {checkpoint.name} with these weights",
                    remedy="choose another folder with --out, or remove this one",
                )
        replace_folder(path, functools.partial(_write_new, checkpoint=checkpoint, golden=golden))
        return Bundle.open(path)


def create_bare(
    path: Path,
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    golden: Golden,
    *,
    preprocess: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> Bundle:
    """Make the bundle `path` of a model that has no checkpoint, only engine files; one that is there is opened as it is.

    Args:
        inputs, outputs: public specs, batch first and dynamic.
        golden: its outputs may be empty, where nothing could answer.
        preprocess: what makes the input of uint8 images, as `accel.preprocess.Preprocess.to_dict` wrote it; None if nothing does.
        replace: whether a bundle of another model may be replaced, engines, results and all.

    Raises:
        UsageError: `path` holds something that is no bundle. DiskFull: the disk filled up; what was at `path` is as it was.
    """
    path = Path(path)
    manifest = Manifest(name, None, inputs, outputs, preprocess=dict(preprocess or {}), labels=(), golden_sha256=golden.sha256)
    with commit.locked(path):
        known = _open_known(path, replace) if path.exists() else None
        if known is not None and not replace:
            return known
        replace_folder(path, functools.partial(_write_bare, manifest=manifest, golden=golden))
        return Bundle.open(path)


def add(path: Path, entry: EngineEntry, files_folder: Path) -> Bundle:
    """Add `entry` to the bundle `path`, in the place of one of the same name.

    Args:
        files_folder: holds the entry's files, each at its path in `entry.files` without the leading `<entry.name>/`.

    Raises:
        BundleMissing: no bundle is at `path`. CorruptArtifact: the files are not those that the entry names.
        DiskFull: the disk filled up; the bundle is as it was.
    """
    check_entry(entry)
    path = Path(path)
    with commit.locked(path):
        if not (path / MANIFEST_FILE).is_file():
            raise BundleMissing(
                f"{path} is no bundle that {entry.name} could be added to", remedy=f"accel export {path.stem} --to {entry.format}"
            )
        settle_entries(path)
        manifest = read_manifest(path / MANIFEST_FILE).with_entry(entry)
        with scratch_folder(path, entry.name) as scratch:
            _copy(entry.files, entry.name, Path(files_folder), scratch)
            commit.sync_tree(scratch)
            try:
                commit.swap_in(scratch, path / entry.name)
                write_text(path / MANIFEST_FILE, manifest.to_text())
            finally:
                settle_entries(path)
        _drop_signature(path)
        return Bundle.open(path)


def write_reference(path: Path, reference: Reference) -> None:
    """Write the reference logits of the bundle `path`."""
    with commit.locked(path):
        reference.write(path / REFERENCE_FILE)


def holds(bundle: Bundle, checkpoint: Checkpoint) -> bool:
    """Whether `bundle` was made from `checkpoint`, or carries it: same weights before or after upcasting, same description."""
    record = bundle.manifest.checkpoint
    if record is None or checkpoint.sha256 not in (record.origin_sha256, bundle.checkpoint.sha256):
        return False
    return dataclasses.replace(bundle.checkpoint, path=checkpoint.path, sha256=checkpoint.sha256) == checkpoint


def _open_known(path: Path, replace: bool) -> Bundle | None:
    """The bundle at `path`; None if it may be replaced and cannot be read."""
    try:
        return Bundle.open(path)
    except CorruptArtifact:
        if replace:
            return None
        raise
    except BundleMissing as error:
        raise UsageError(f"{path} exists and is no bundle", remedy="choose another folder with --out, or remove this one") from error


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Put what `write` makes in a scratch folder at `path`, whole or not at all; the caller holds the lock of `path`."""
    # A link to a bundle stays a link: what it points at is replaced.
    target = path.resolve()
    with scratch_folder(target.parent, target.name) as scratch:
        write(scratch)
        commit.sync_tree(scratch)
        try:
            commit.swap_in(scratch, target)
        finally:
            commit.settle(target, target.is_dir)


def _drop_signature(path: Path) -> None:
    """A signature is of one accel.json, and it has just been replaced."""
    if (path / SIGNATURE_FILE).is_file():
        (path / SIGNATURE_FILE).unlink()
        logger.warning("%s has changed and is no longer signed; to sign it again: accel bundle sign %s --key FILE", path, path)


def _write_bare(folder: Path, manifest: Manifest, golden: Golden) -> None:
    golden.write(folder / GOLDEN_FILE)
    write_text(folder / MANIFEST_FILE, manifest.to_text())


def _write_new(folder: Path, checkpoint: Checkpoint, golden: Golden) -> None:
    written = write_checkpoint(dataclasses.replace(checkpoint, path=folder / CHECKPOINT_FOLDER), read_weights(checkpoint.weights))
    golden.write(folder / GOLDEN_FILE)
    names = [f"{CHECKPOINT_FOLDER}/{name}" for name in (written.weights.name, "checkpoint.json")]
    manifest = Manifest(
        name=checkpoint.name,
        checkpoint=CheckpointRecord(
            files={name: sha256_file(folder / name) for name in names},
            origin_sha256=checkpoint.sha256,
            source_sha256=source_sha256(checkpoint.factory),
        ),
        inputs=(checkpoint.input,),
        outputs=(checkpoint.output,),
        preprocess=checkpoint.preprocess,
        labels=checkpoint.labels,
        golden_sha256=golden.sha256,
    )
    write_text(folder / MANIFEST_FILE, manifest.to_text())


def _copy(files: Mapping[str, str], prefix: str, source: Path, target: Path) -> None:
    for name, expected in files.items():
        inner = name.removeprefix(f"{prefix}/")
        (target / inner).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source / inner, target / inner)
        except FileNotFoundError as error:
            raise CorruptArtifact(f"{source / inner} is missing; {prefix} names it", remedy="export it again") from error
        found = sha256_file(target / inner)
        if found != expected:
            raise CorruptArtifact(f"{source / inner} has SHA-256 {found}; {prefix} says {expected}", remedy="export it again")
