"""Find the settings file, read it, and say on which line a key stands."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accel.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT_TABLE = ("tool", "accel")
_HEADER = re.compile(r"^\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?$")
_ASSIGNMENT = re.compile(r"""^\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")


def find_file(folder: Path) -> Path | None:
    """The nearest `accel.toml`, or `pyproject.toml` with a `[tool.accel]` table, in `folder` or above."""
    for place in (folder, *folder.parents):
        own, project = place / "accel.toml", place / "pyproject.toml"
        if own.is_file():
            return own
        if project.is_file() and "accel" in _parse(project).get("tool", {}):
            return project
    return None


def read_settings(path: Path) -> dict[str, Any]:
    """The file's settings by dotted key, unchecked.

    Raises:
        ConfigError: the file is no TOML; names the line.
    """
    tables: Any = _parse(path)
    for name in _table(path):
        tables = tables.get(name, {})
    if not isinstance(tables, dict):
        raise ConfigError(f"{path}, line {line_of(path, '')}: tool.accel must be a table, not {tables!r}", remedy="write [tool.accel]")
    return dict(_flatten(tables, ""))


def line_of(path: Path, key: str) -> int:
    """The 1-based line of `path` on which `key` is set; the header of its table, or 1, if it stands inside another value."""
    wanted = (*_table(path), *filter(None, key.split(".")))
    table: tuple[str, ...] = ()
    best, best_depth = 1, 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if header := _HEADER.match(line):
            here = table = _parts(header[1])
        elif assignment := _ASSIGNMENT.match(line):
            here = (*table, *_parts(assignment[1]))
        else:
            continue
        if wanted[: len(here)] == here and len(here) > best_depth:
            best, best_depth = number, len(here)
    return best


def _table(path: Path) -> tuple[str, ...]:
    return PYPROJECT_TABLE if path.name == "pyproject.toml" else ()


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", remedy="mend the file, or remove it") from error


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _flatten(table: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in table.items():
        if isinstance(value, dict):
            rows += _flatten(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, value))
    return rows
