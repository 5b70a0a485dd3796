"""`verified.json`: what verification found, by the identity of the variant (`identity.variant_identity`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accel.engines import commit, paths, strict
from accel.engines.manifest import VERIFIED_FILE
from accel.files import write_text

_KEYS = {"schema_version": strict.is_schema_version_1, "results": strict.is_object}
_CHOSEN_BY = {"passed": strict.is_bool, "metric": strict.is_text, "top1": strict.or_null(strict.is_number)}
"""Of a result: what an engine is chosen by, where it is there."""


def read(bundle_path: Path) -> dict[str, dict[str, Any]]:
    """Results by identity; empty before the first verification.

    Raises:
        CorruptArtifact: the file is there and cannot be read.
    """
    file = bundle_path / VERIFIED_FILE
    if not file.is_file():
        return {}
    remedy = f"delete {file} and run accel verify again"
    paths.demand_inside(file, bundle_path, remedy)
    results = strict.check_keys(strict.read_object(file, remedy), _KEYS, str(file), remedy)["results"]
    for identity, result in results.items():
        where = f"{file}: results[{identity[:8]!r}]"
        strict.check_keys({"result": result}, {"result": strict.is_object}, where, remedy)
        there = {key: kind for key, kind in _CHOSEN_BY.items() if key in result or (key == "metric" and result.get("passed"))}
        strict.check_keys({key: value for key, value in result.items() if key in there}, there, where, remedy)
    return dict(results)


def record(bundle_path: Path, identity: str, result: Mapping[str, Any]) -> None:
    """Write `result` for `identity`, keeping the others; two processes may record at once.

    Raises:
        DiskFull: the disk filled up; the file is as it was.
    """
    with commit.locked(bundle_path):
        results = {**read(bundle_path), identity: dict(result)}
        write_text(bundle_path / VERIFIED_FILE, strict.pretty({"schema_version": 1, "results": results}))
