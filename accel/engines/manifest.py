"""`accel.json`: what a bundle says about itself, read strictly and written in one way."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accel.engines import paths, strict
from accel.engines.commit import ENTRY_NAME
from accel.errors import CorruptArtifact, IncompatibleArtifact
from accel.files import sha256_bytes
from accel.types import ITEMSIZE, EngineEntry, TensorSpec

SCHEMA_VERSION = 2
"""1, which had no `self_sha256`, is read as well."""

MANIFEST_FILE = "accel.json"
CHECKPOINT_FOLDER = "checkpoint"
GOLDEN_FILE = "golden.npz"
REFERENCE_FILE = "reference.npz"
VERIFIED_FILE = "verified.json"
TUNED_FILE = "tuned.json"
SIGNATURE_FILE = "accel.sig"
MEASURED_FILE = "measured.json"
REMEDY = "export it again into a new folder (accel export), or copy the whole folder again from where it came"

_MANIFEST = {
    "schema_version": strict.is_whole,
    "name": strict.is_text,
    "checkpoint": strict.or_null(strict.is_object),
    "inputs": strict.is_list,
    "outputs": strict.is_list,
    "preprocess": strict.is_object,
    "labels": strict.is_texts,
    "golden_sha256": strict.is_sha256,
    "engines": strict.is_list,
}
_SELF = "self_sha256"
_CHECKPOINT = {"files": strict.is_sha256_map, "origin_sha256": strict.is_sha256, "source_sha256": strict.is_sha256}
_SPEC = {"name": strict.is_text, "shape": strict.is_list, "dtype": strict.is_text, "layout": strict.is_any_text}
_ENTRY = {
    "name": strict.is_text,
    "format": strict.is_text,
    "precision": strict.is_text,
    "files": strict.is_sha256_map,
    "inputs": strict.is_list,
    "outputs": strict.is_list,
    "toolchain": strict.is_text_map,
    "built_s": strict.is_seconds,
    "target": strict.is_object,
    "opset": strict.or_null(strict.is_whole),
    "precision_proof": strict.is_object,
    "parity": strict.is_object,
}
_MOST_ELEMENTS, _MOST_DIMENSIONS = 2**31 - 1, 16
"""Of one tensor: what the runtimes can index."""


@dataclasses.dataclass(frozen=True)
class CheckpointRecord:
    """The checkpoint inside a bundle.

    Attributes:
        files: path relative to the bundle → SHA-256.
        origin_sha256: of the weights that were exported, before they were upcast to FP32.
        source_sha256: of the factory's source file at the export.
    """

    files: Mapping[str, str]
    origin_sha256: str
    source_sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of `accel.json`.

    Attributes:
        checkpoint: None for a bundle that was made from a bare engine file.
        inputs, outputs: public specs, with a dynamic batch dimension.
        golden_sha256: `Golden.sha256` of `golden.npz`.
    """

    name: str
    checkpoint: CheckpointRecord | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: Mapping[str, Any]
    labels: tuple[str, ...]
    golden_sha256: str
    engines: tuple[EngineEntry, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def files(self) -> dict[str, str]:
        """Every file that is named, of the checkpoint and the engines: path relative to the bundle → SHA-256."""
        maps = [*([] if self.checkpoint is None else [self.checkpoint.files]), *(entry.files for entry in self.engines)]
        return {name: digest for files in maps for name, digest in files.items()}

    def to_text(self) -> str:
        """The file's text; equal manifests have equal texts."""
        data: dict[str, Any] = {
            "schema_version": self.schema_version,
            "name": self.name,
            "checkpoint": None if self.checkpoint is None else dataclasses.asdict(self.checkpoint),
            "inputs": [spec.to_dict() for spec in self.inputs],
            "outputs": [spec.to_dict() for spec in self.outputs],
            "preprocess": dict(self.preprocess),
            "labels": list(self.labels),
            "golden_sha256": self.golden_sha256,
            "engines": [entry.to_dict() for entry in self.engines],
        }
        return strict.pretty({**data, _SELF: self_sha256(data)})

    def with_entry(self, entry: EngineEntry) -> Manifest:
        """This manifest with `entry` in the place of the one of the same name, or at the end."""
        kept = {known.name: known for known in self.engines}
        kept[entry.name] = entry
        return dataclasses.replace(self, engines=tuple(kept.values()))


def read_manifest(path: Path) -> Manifest:
    """Read the file `path`; raises as parse_manifest does."""
    return parse_manifest(strict.read_bytes(path, REMEDY), str(path))


def parse_manifest(text: bytes, where: str) -> Manifest:
    """Read the bytes of an `accel.json`; `where` names the file in messages.

    Raises:
        CorruptArtifact: unreadable, or a key is missing, unknown or wrong; the message names it. Or it was changed since it was written.
        IncompatibleArtifact: written by a newer accel.
    """
    data = strict.parse_object(text, where, REMEDY)
    version: Any = data.get("schema_version")
    if strict.is_whole(version) and version > SCHEMA_VERSION:
        raise IncompatibleArtifact(
            f"{where} has schema_version {version}; this accel reads up to {SCHEMA_VERSION}", remedy="pip install --upgrade accel-engines"
        )
    sealed = not strict.is_schema_version_1(version)
    strict.check_keys(data, {**_MANIFEST, _SELF: strict.is_sha256} if sealed else _MANIFEST, where, REMEDY)
    if not 1 <= version <= SCHEMA_VERSION:
        raise CorruptArtifact(f"{where}: the key 'schema_version' has the value {version}, which never existed", remedy=REMEDY)
    if not data["name"].isprintable():
        raise CorruptArtifact(f"{where}: the key 'name' has the value {strict.short(data['name'])}, which cannot be printed", remedy=REMEDY)
    engines = tuple(_entry(item, f"{where}: engines[{index}]") for index, item in enumerate(data["engines"]))
    names = [entry.name for entry in engines]
    if len(set(names)) != len(names):
        raise CorruptArtifact(f"{where}: the key 'engines' names {strict.short(max(names, key=names.count))} twice", remedy=REMEDY)
    manifest = Manifest(
        name=data["name"],
        checkpoint=None if data["checkpoint"] is None else _checkpoint(data["checkpoint"], f"{where}: checkpoint"),
        inputs=_specs(data["inputs"], f"{where}: inputs"),
        outputs=_specs(data["outputs"], f"{where}: outputs"),
        preprocess=data["preprocess"],
        labels=tuple(data["labels"]),
        golden_sha256=data["golden_sha256"],
        engines=engines,
    )
    if (two := paths.clash(manifest.files)) is not None:
        raise CorruptArtifact(
            f"{where} names {strict.short(two[0])} and {strict.short(two[1])}, which are not two files on every system", remedy=REMEDY
        )
    if sealed and data[_SELF] != (found := self_sha256(data)):
        raise CorruptArtifact(
            f"{where} was changed since accel wrote it: its contents have SHA-256 {found}; it says {data[_SELF]}", remedy=REMEDY
        )
    return manifest


def self_sha256(data: Mapping[str, Any]) -> str:
    """SHA-256 of the contents of an `accel.json`, in their order, the key that holds it left out; spaces and escapes do not count.

    It finds what was damaged or edited, not who did it: whoever edits on purpose can write it anew. That is what signatures are for.
    """
    return sha256_bytes(strict.compact({key: value for key, value in data.items() if key != _SELF}))


def check_entry(entry: EngineEntry) -> None:
    """Hold an entry that is about to be written against what `read_manifest` will accept.

    Raises:
        CorruptArtifact: which key is wrong.
    """
    _entry(entry.to_dict(), f"entry {entry.name}")


def _checkpoint(data: dict[str, Any], where: str) -> CheckpointRecord:
    strict.check_keys(data, _CHECKPOINT, where, REMEDY)
    _check_paths(data["files"], CHECKPOINT_FOLDER, where)
    return CheckpointRecord(**data)


def _entry(data: Any, where: str) -> EngineEntry:
    strict.check_keys(data, _ENTRY, where, REMEDY)
    name = data["name"]
    if not ENTRY_NAME.fullmatch(name):
        raise CorruptArtifact(f"{where}: the key 'name' has the value {strict.short(name)}, which is no entry name", remedy=REMEDY)
    _check_paths(data["files"], name, where)
    specs = {key: _specs(data[key], f"{where}: {key}") for key in ("inputs", "outputs")}
    return EngineEntry(**{**data, **specs})


def _specs(items: list[Any], where: str) -> tuple[TensorSpec, ...]:
    for index, item in enumerate(items):
        strict.check_keys(item, _SPEC, f"{where}[{index}]", REMEDY)
        if item["dtype"] not in ITEMSIZE:
            raise CorruptArtifact(
                f"{where}[{index}]: the key 'dtype' has the value {strict.short(item['dtype'])}, which is no dtype", remedy=REMEDY
            )
        if not _is_shape(item["shape"]):
            raise CorruptArtifact(
                f"{where}[{index}]: the key 'shape' has the value {strict.short(item['shape'])}, which is no shape", remedy=REMEDY
            )
    if not items or len({item["name"] for item in items}) != len(items):
        raise CorruptArtifact(f"{where}: there must be one or more tensors, each with its own name", remedy=REMEDY)
    return tuple(map(TensorSpec.from_dict, items))


def _is_shape(sizes: list[Any]) -> bool:
    if len(sizes) > _MOST_DIMENSIONS or not all(strict.is_text(size) or (strict.is_whole(size) and size >= 1) for size in sizes):
        return False
    return math.prod([size for size in sizes if isinstance(size, int)]) <= _MOST_ELEMENTS


def _check_paths(files: Mapping[str, str], folder: str, where: str) -> None:
    """Every path must be spelled plainly and lie in `folder`, so that none leaves the bundle."""
    for name in files:
        why = paths.problem(name) if name.startswith(f"{folder}/") else "is elsewhere"
        if why is not None:
            raise CorruptArtifact(
                f"{where}: the key 'files' names {strict.short(name)}, which is not inside {folder}/: it {why}", remedy=REMEDY
            )
