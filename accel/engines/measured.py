"""`measured.json`: how fast the engines of a bundle were in the last set of `accel bench` on each machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accel.engines import commit, paths, strict
from accel.engines.manifest import MEASURED_FILE
from accel.files import write_text

_FILE = {"schema_version": strict.is_schema_version_1, "sets": strict.is_object}
_SET = {
    "machine": strict.is_text,
    "batch": strict.is_whole,
    "latency": strict.is_text,
    "set_id": strict.is_text,
    "command": strict.is_any_text,
    "measured_utc": strict.is_text,
    "rows": strict.is_list,
}
_ROW = {"variant": strict.is_text, "identity": strict.is_sha256, "runtime_version": strict.is_text, "p50_us": strict.is_seconds}


def read(bundle_path: Path) -> dict[str, dict[str, Any]]:
    """Sets by their key, one for each machine and batch size; empty before the first.

    A set: `machine` (the GPU's name, or the CPU's model), `batch`, `latency` (the kind of the medians), `set_id`, `command`,
    `measured_utc`, and `rows`, fastest first: `variant`, `identity`, `runtime_version`, `p50_us`. All rows were verified.

    Raises:
        CorruptArtifact: the file is there and cannot be read.
    """
    file = bundle_path / MEASURED_FILE
    remedy = f"delete {file} and run accel bench again"
    paths.demand_inside(file, bundle_path, remedy)
    if not file.is_file():
        return {}
    sets = strict.check_keys(strict.read_object(file, remedy), _FILE, str(file), remedy)["sets"]
    for key, found in sets.items():
        where = f"{file}: sets[{key!r}]"
        strict.check_keys(found, _SET, where, remedy)
        for number, row in enumerate(found["rows"]):
            strict.check_keys(row, _ROW, f"{where}: rows[{number}]", remedy)
    return dict(sets)


def record(bundle_path: Path, machine: str, batch: int, rows: Sequence[Mapping[str, Any]], **about: str) -> None:
    """Write a set in the place of the last one of the same machine and batch.

    Args:
        rows: as `read` returns them, in any order.
        about: `latency`, `set_id`, `command`, `measured_utc`.

    Raises:
        DiskFull: the disk filled up; the file is as it was.
    """
    found = {"machine": machine, "batch": batch, **about, "rows": sorted(map(dict, rows), key=lambda row: row["p50_us"])}
    with commit.locked(bundle_path):
        sets = {**read(bundle_path), _key(machine, batch): found}
        write_text(bundle_path / MEASURED_FILE, strict.pretty({"schema_version": 1, "sets": sets}))


def latest(bundle_path: Path, machine: str, batch: int = 1) -> dict[str, Any] | None:
    """The set of `machine` at `batch`; None where there is none. Raises CorruptArtifact as `read`."""
    return read(bundle_path).get(_key(machine, batch))


def _key(machine: str, batch: int) -> str:
    return f"{machine}, batch {batch}"
