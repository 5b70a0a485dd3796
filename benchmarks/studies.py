"""What the two studies (training_ablation.py, alexnet_study.py) have in common: a record that is continued, processes, tables.

A record is one JSON file. It is written after every part; the same command again leaves out what is in it, and refuses to add to what was
measured by other settings, on another kind of machine or with other versions.
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accel import locking
from accel.bench.clock import utc_now
from accel.bench.coordinate import device_lock
from accel.bench.environment import snapshot
from accel.errors import AccelError, ConfigError, UsageError
from accel.files import write_text
from benchmarks import records

SAME = ("gpu_name", "driver", "cpu_model", "python", "versions", "git_sha")
"""What of the machine must not change within a record."""

ABSENT = "–"

Request = Mapping[str, Any]
Measure = Callable[[Request], dict[str, Any]]
"""From a request to what was found, both plain data."""


class Record:
    """One study on disk.

    Attributes:
        rows: part → what was found of it, with the time and the GPU; a part that could not be measured has `not_run` instead, and is
            tried again.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], device: str | None) -> None:
        """Open or begin the record.

        Args:
            device: where parts are measured. None: nowhere; a record that is there is opened whatever machine it is of.

        Raises:
            ConfigError: there is one by other settings or of another machine; names what differs. Without a device: there is none.
        """
        self.path = path
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        if device is None and not path.is_file():
            raise ConfigError(f"{path} is not there", remedy="measure on a machine of its own kind first")
        here = None if device is None else snapshot(device)
        self.machine: dict[str, Any] = here or {}
        self.rows: dict[str, dict[str, Any]] = {}
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            _demand_same(path, found["settings"], self.settings)
            if here is not None:
                _demand_same(path, *({key: machine.get(key) for key in SAME} for machine in (found["machine"], here)))
            self.rows, self.machine = found["rows"], found["machine"]
        self._here = here

    def done(self, part: str) -> bool:
        return part in self.rows and "not_run" not in self.rows[part]

    def measured(self, part: str) -> dict[str, Any] | None:
        """What was found of a part; None where nothing was."""
        return self.rows[part] if self.done(part) else None

    def why_not(self, part: str) -> str:
        return str(self.rows.get(part, {}).get("not_run", "not measured"))

    def take(self, part: str, measure: Callable[[], dict[str, Any]], summarise: Callable[[], Any]) -> dict[str, Any]:
        """Measure one part and write the record with the summary of all that is there.

        Raises:
            UsageError: the record was opened without a device.
        """
        if self._here is None:
            raise UsageError(f"{part} cannot be measured: {self.path} was opened without a device")
        try:
            found = measure()
        except AccelError as error:
            found = {"not_run": error.message}
        return self.put(part, {"at_utc": utc_now(), "gpu_uuid": self._here["gpu_uuid"], **found}, summarise)

    def put(self, part: str, row: dict[str, Any], summarise: Callable[[], Any]) -> dict[str, Any]:
        """Write a part that was measured elsewhere, with its own time (`at_utc`) and card (`gpu_uuid`)."""
        self.rows[part] = row
        self.write(summarise())
        return row

    def write(self, summary: Any) -> None:
        data = {"command": command(), "settings": self.settings, "machine": self.machine, "gpus": self.gpus, "summary": summary}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, records.text({**data, "rows": self.rows}) + "\n")

    @property
    def gpus(self) -> list[str]:
        """Of which cards the parts are; one is as it should be, several say that a study went on on another host of the same kind."""
        return sorted({row["gpu_uuid"] for row in self.rows.values() if row["gpu_uuid"] and "not_run" not in row})


def _demand_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    if differing:
        said = "; ".join(f"{key} was {found.get(key)!r} and is {wanted.get(key)!r}" for key in differing)
        raise ConfigError(f"{path} was measured otherwise: {said}", remedy="name another --out, or remove the file")


def command() -> str:
    return shlex.join(["python", *sys.argv])


def in_process(script: str) -> Measure:
    """A measure that runs `SCRIPT --child` in a process of its own for each request, and takes the last line that it prints.

    Raises:
        AccelError: it failed; with what it said last on stderr.
    """

    def measure(request: Request) -> dict[str, Any]:
        line = [sys.executable, script, "--child"]
        done = subprocess.run(line, input=json.dumps(request), capture_output=True, text=True, check=False)
        if done.returncode:
            raise AccelError(f"the process that measured it ended with {done.returncode}: {complaint(done.stderr)}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if "not_run" in found:
            raise AccelError(found["not_run"])
        return found

    return measure


def alone(device: str, measure: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """`measure` once no `accel bench` and no other study runs on `device`, with none beginning meanwhile."""

    def body() -> dict[str, Any]:
        with locking.held(device_lock(device), f"a benchmark on {device}"):
            return measure()

    return body


def complaint(text: str) -> str:
    """The last line of what a process said, but for a remedy."""
    said = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("to mend it:")]
    return said[-1] if said else "it said nothing"


def child(measure: Measure) -> int:
    """The other end of `in_process`: a request on stdin, what was found (or why nothing was) on stdout."""
    try:
        found = measure(json.loads(sys.stdin.read()))
    except AccelError as error:
        found = {"not_run": error.message}
    print(json.dumps(found), flush=True)
    return 0


def assignments(texts: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` each; a value is JSON, or a word as it is."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text!r} has no value", remedy="write --set epochs=2")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def order(names: Sequence[str], repeat: int) -> list[str]:
    """Every other repeat goes backwards, so that what drifts meets all alike."""
    return list(names) if repeat % 2 == 0 else list(reversed(names))


def middle(values: Sequence[float]) -> dict[str, Any]:
    """`median`, `low` and `high` of the repeats, and how many; all None without any."""
    if not values:
        return {"median": None, "low": None, "high": None, "n": 0}
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


def ratios(values: Mapping[int, float], base: Mapping[int, float]) -> dict[str, Any]:
    """`middle` of value / base over the repeats that have both, the base not 0."""
    return middle([values[repeat] / base[repeat] for repeat in sorted(values) if base.get(repeat)])


def number(value: float | None, digits: int, unit: str = "") -> str:
    return ABSENT if value is None else f"{value:,.{digits}f}{unit}"


def spread(found: Mapping[str, Any], digits: int) -> str:
    """`2.31 (2.28–2.35)`; the median alone where there is one repeat."""
    text = number(found["median"], digits)
    return f"{text} ({number(found['low'], digits)}–{number(found['high'], digits)})" if found["n"] > 1 else text


def text_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first to the left and the others to the right."""
    table = [list(headings), *(list(line) for line in lines)]
    widths = [max(len(line[column]) for line in table) for column in range(len(headings))]
    shown = [[line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))] for line in table]
    return "".join("  ".join(line).rstrip() + "\n" for line in shown)


def markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rule = "|" + "|".join([":--", *["--:"] * (len(headings) - 1)]) + "|"
    return ["| " + " | ".join(headings) + " |", rule, *("| " + " | ".join(line) + " |" for line in lines)]


def conditions(record: Record) -> list[str]:
    """Machine, versions and command, a line each."""
    machine = record.machine
    where = machine["gpu_name"] or "no GPU"
    if len(record.gpus) > 1:
        where += f" (parts are of {len(record.gpus)} different cards of this kind)"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    commit = f"; commit {machine['git_sha']}{' with changes' if machine['dirty'] else ''}" if machine["git_sha"] else ""
    return [
        f"machine: {where}; driver {machine['driver'] or ABSENT}; {machine['cpu_model']}, CPUs {machine['cpu_affinity']}",
        f"versions: Python {machine['python']}, {versions}{commit}",
        f"command: {command()}",
    ]
