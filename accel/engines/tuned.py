"""`tuned.json`: what `accel tune` tried on each machine, and the engine that it found fastest there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accel.engines import commit, paths, strict
from accel.engines.manifest import TUNED_FILE
from accel.files import write_text

_FILE = {"schema_version": strict.is_schema_version_1, "tunings": strict.is_object}
_TUNING = {
    "machine": strict.is_text,
    "device": strict.is_text,
    "plan": strict.is_object,
    "gates": strict.is_object,
    "environment": strict.is_object,
    "command": strict.is_any_text,
    "rows": strict.is_list,
    "best": strict.or_null(strict.is_object),
    "finished": strict.is_bool,
    "updated_utc": strict.is_text,
}
_BEST = {"variant": strict.is_text, "identity": strict.is_sha256}


def read(bundle_path: Path) -> dict[str, dict[str, Any]]:
    """Tunings by their key (machine, plan, gates and data), the one that was written last at the end; empty before the first.

    A tuning: `machine` (the GPU's name, or the CPU's model), `device`, `plan`, `gates`, `environment`, `command`, `rows` (of the table),
    `best` (`variant` and `identity`; None while nothing passed), `finished`, `updated_utc`.

    Raises:
        CorruptArtifact: the file is there and cannot be read.
    """
    file = bundle_path / TUNED_FILE
    if not file.is_file():
        return {}
    remedy = f"delete {file} and run accel tune again"
    paths.demand_inside(file, bundle_path, remedy)
    tunings = strict.check_keys(strict.read_object(file, remedy), _FILE, str(file), remedy)["tunings"]
    for key, tuning in tunings.items():
        where = f"{file}: tunings[{key[:8]!r}]"
        strict.check_keys(tuning, _TUNING, where, remedy)
        if tuning["best"] is not None:
            strict.check_keys(tuning["best"], _BEST, f"{where}: best", remedy)
        for number, row in enumerate(tuning["rows"]):
            strict.check_keys({"row": row}, {"row": strict.is_object}, f"{where}: rows[{number}]", remedy)
    return dict(tunings)


def record(bundle_path: Path, key: str, tuning: Mapping[str, Any]) -> None:
    """Write `tuning` under `key`, after the others.

    Raises:
        DiskFull: the disk filled up; the file is as it was.
    """
    with commit.locked(bundle_path):
        others = {name: other for name, other in read(bundle_path).items() if name != key}
        write_text(bundle_path / TUNED_FILE, strict.pretty({"schema_version": 1, "tunings": {**others, key: dict(tuning)}}))


def latest(bundle_path: Path, machine: str) -> dict[str, Any] | None:
    """The tuning that was written last of those on `machine` that found something; None where there is none.

    Raises:
        CorruptArtifact: as `read`.
    """
    found = [tuning for tuning in read(bundle_path).values() if tuning["machine"] == machine and tuning["best"] is not None]
    return found[-1] if found else None
