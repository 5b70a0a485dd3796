"""`verified.json`: what verification found, by the identity of the variant (`identity.variant_identity`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accel.engines import commit, strict
from accel.engines.manifest import VERIFIED_FILE
from accel.files import write_text

_KEYS = {"schema_version": strict.is_schema_version_1, "results": strict.is_object}


def read(bundle_path: Path) -> dict[str, dict[str, Any]]:
    """Results by identity; empty before the first verification.

    Raises:
        CorruptArtifact: the file is there and cannot be read.
    """
    file = bundle_path / VERIFIED_FILE
    if not file.is_file():
        return {}
    remedy = f"delete {file} and run accel verify again"
    results = strict.check_keys(strict.read_object(file, remedy), _KEYS, str(file), remedy)["results"]
    for identity, result in results.items():
        strict.check_keys({identity: result}, {identity: strict.is_object}, f"{file}: results", remedy)
    return dict(results)


def record(bundle_path: Path, identity: str, result: Mapping[str, Any]) -> None:
    """Write `result` for `identity`, keeping the others; two processes may record at once.

    Raises:
        DiskFull: the disk filled up; the file is as it was.
    """
    with commit.locked(bundle_path):
        results = {**read(bundle_path), identity: dict(result)}
        write_text(bundle_path / VERIFIED_FILE, strict.pretty({"schema_version": 1, "results": results}))
