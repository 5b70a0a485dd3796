"""One central settings file, and where each value came from: flags > `ACCEL_*` > `accel.toml` > defaults.

The file is the nearest `accel.toml`, or `pyproject.toml` with a `[tool.accel]` table, found upward from the working folder.
The environment variable of a key is `ACCEL_` + the key in capitals with dots as underscores: `bench.iterations` is
`ACCEL_BENCH_ITERATIONS`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from accel.config.schema import BY_KEY, PREFIXES, SCHEMA, Setting
from accel.config.source import find_file, line_of, read_settings
from accel.errors import ConfigError
from accel.files import write_text

__all__ = ["BY_KEY", "SCHEMA", "Resolved", "Settings", "apply_environment", "resolve"]

NOT_SETTINGS = ("ACCEL_DEBUG", "ACCEL_TRUSTED_KEYS")
"""Variables of ours that no file can set."""


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A value and where it came from: `flag`, `ACCEL_…`, `FILE:LINE` or `default`."""

    value: Any
    source: str


class Settings(Mapping[str, Any]):
    """Resolved settings by dotted key, as `settings["bench.iterations"]`; read-only.

    >>> resolve({"bench.rounds": 1}, environ={}, folder=Path("/"))["bench.rounds"]
    1
    """

    def __init__(self, resolved: Mapping[str, Resolved]) -> None:
        self._resolved = dict(resolved)

    def __getitem__(self, key: str) -> Any:
        return self._resolved[key].value

    def __iter__(self) -> Iterator[str]:
        return iter(self._resolved)

    def __len__(self) -> int:
        return len(self._resolved)

    def source(self, key: str) -> str:
        return self._resolved[key].source

    def table(self, prefix: str) -> dict[str, Any]:
        """Every value under `prefix.`, as `table("bench.python")` → `{"tensorrt": "/opt/py310/bin/python"}`."""
        return {key.removeprefix(prefix + "."): self[key] for key in self if key.startswith(prefix + ".")}

    def rows(self) -> list[dict[str, Any]]:
        """`{key, value, source, help}` of every setting, in the schema's order."""
        return [{"key": key, "value": self[key], "source": self.source(key), "help": _known(key).help} for key in self]

    def to_dict(self) -> dict[str, Any]:
        """Key → `{value, source}`, for the record."""
        return {key: dataclasses.asdict(self._resolved[key]) for key in self}

    def save(self, folder: Path) -> Path:
        """Write `settings.json` beside a run's results."""
        path = folder / "settings.json"
        write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")
        return path


def resolve(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None, folder: Path | None = None) -> Settings:
    """Resolve every setting of the schema.

    Args:
        flags: dotted key → value as typed on the command line; None means "not given".
        environ: where `ACCEL_*` is read; default `os.environ`.
        folder: where the search for the file begins; default the working folder.

    Raises:
        ConfigError: an unknown key or a wrong type; names the key, and the line where it stands in a file.
    """
    resolved = {setting.key: Resolved(setting.default, "default") for setting in SCHEMA}
    path = find_file(folder or Path.cwd())
    if path is not None:
        resolved.update(_from_file(path))
    resolved.update(_from_environment(os.environ if environ is None else environ))
    for key, value in (flags or {}).items():
        if value is not None:
            resolved[key] = Resolved(_known(key).check(value, f"the flag for {key}"), "flag")
    return Settings(resolved)


def apply_environment(settings: Settings) -> None:
    """Let `cache_dir` and `offline` of a file reach what reads them from the environment, workers included."""
    if settings["cache_dir"]:
        os.environ["ACCEL_CACHE_DIR"] = settings["cache_dir"]
    if settings["offline"]:
        os.environ["ACCEL_OFFLINE"] = "1"


def _from_file(path: Path) -> dict[str, Resolved]:
    found = {}
    for key, value in read_settings(path).items():
        line = line_of(path, key)
        setting = _find(key)
        if setting is None:
            raise ConfigError(f"{path}, line {line}: there is no setting {key!r}", remedy=_suggest(key))
        found[key] = Resolved(_anchor(path.parent, setting, setting.check(value, f"{path}, line {line}: {key}")), f"{path.name}:{line}")
    return found


def _anchor(folder: Path, setting: Setting, value: Any) -> Any:
    # A path in a file means the same wherever below it the command is typed; a bare command name (python3.10) stays one.
    if setting.kind != "path" or not value:
        return value
    path = Path(value).expanduser()
    bare = setting.key not in BY_KEY and len(path.parts) == 1
    return value if bare else str(folder / path)


def _from_environment(environ: Mapping[str, str]) -> dict[str, Resolved]:
    names = {"ACCEL_" + key.upper().replace(".", "_"): key for key in BY_KEY}
    found = {}
    for name in sorted(environ):
        key = names.get(name) or _prefixed(name)
        if key is not None:
            found[key] = Resolved(_known(key).parse(environ[name], name), name)
        elif name.startswith("ACCEL_") and name not in NOT_SETTINGS:
            # Another program's ACCEL_ variable is none of ours; a slip in one of ours must not pass in silence.
            close = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
            if close:
                raise ConfigError(f"the environment variable {name} is no setting", remedy=f"did you mean {close[0]}?")
    return found


def _prefixed(name: str) -> str | None:
    for prefix in PREFIXES:
        stem = "ACCEL_" + prefix.upper().replace(".", "_") + "_"
        if name.startswith(stem) and len(name) > len(stem):
            return f"{prefix}.{name.removeprefix(stem).lower()}"
    return None


def _find(key: str) -> Setting | None:
    if key in BY_KEY:
        return BY_KEY[key]
    prefix, _, rest = key.rpartition(".")
    return dataclasses.replace(PREFIXES[prefix], key=key) if prefix in PREFIXES and rest else None


def _known(key: str) -> Setting:
    setting = _find(key)
    if setting is None:
        raise ConfigError(f"there is no setting {key!r}", remedy=_suggest(key))
    return setting


def _suggest(key: str) -> str:
    close = [full for full in BY_KEY if full.rpartition(".")[2] == key] or difflib.get_close_matches(key, BY_KEY, n=1)
    return f"did you mean {close[0]}?" if close else "accel config lists every setting"
