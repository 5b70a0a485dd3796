"""One section a set. Sets are told apart by their id and model, so that no number of one is ever held against another's."""

from __future__ import annotations

import dataclasses
import functools
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accel.bench.results import JSONL, SAMPLES, SET, ResultSet, Row, read_description, read_rows
from accel.bench.summary import Line, lines
from accel.errors import CorruptArtifact, UsageError
from accel.types import Array

HOST = "host_us"


@dataclasses.dataclass(frozen=True)
class Section:
    """A set as the report sees it.

    Attributes:
        name: the name of the set's folder, or its id where several sets share a file.
        lines: one a variant, OK ones first, by ascending host p50.
        samples: raw samples in nanoseconds by `variant/run/kind`; empty if they were not kept.
        description: what the set's `set.json` says; empty where the rows lie without it.
    """

    name: str
    rows: tuple[Row, ...]
    lines: tuple[Line, ...]
    samples: Mapping[str, Array]
    description: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def model(self) -> str:
        return str(self.rows[0]["model"])

    @property
    def set_id(self) -> str:
        return str(self.rows[0]["set_id"])

    @property
    def machine(self) -> str:
        """The GPU's name, else the CPU's, else the device as it was asked for."""
        named = (row["gpu_name"] or row["cpu_model"] for row in self.rows)
        return next((str(name) for name in named if name), self.lines[0].device)

    @property
    def results(self) -> ResultSet:
        """For what takes a result set: its header, its table."""
        return ResultSet(Path(self.name), {}, list(self.rows))

    @functools.cached_property
    def by_variant(self) -> Mapping[str, Line]:
        return {line.variant: line for line in self.lines}

    def host_rows(self, variant: str) -> list[Row]:
        """The rows of the headline latency, one a round, in the order of the rounds."""
        found = [row for row in self.rows if row["variant"] == variant and row["latency_kind"] == HOST]
        return sorted(found, key=lambda row: row["round"] or 0)

    def n_test(self, variant: str) -> int | None:
        """On how many images the variant was verified; None where it was not, or nobody recorded it."""
        return next((int(row["n_test"]) for row in self.rows if row["variant"] == variant and row["n_test"]), None)

    def rounds(self, variant: str) -> list[Array]:
        """Raw host samples (nanoseconds) of every round that kept them, in the order of the rounds and of the calls."""
        keys = [str(row["raw_path"]).partition("#")[2] for row in self.host_rows(variant)]
        return [self.samples[key] for key in keys if key in self.samples]


def open_sections(paths: Sequence[Path]) -> list[Section]:
    """Read set folders and `results.jsonl` files; a file that holds several sets gives a section for each.

    Raises:
        UsageError: nothing at a path, no rows in it, or one set given twice. CorruptArtifact: a damaged or newer file.
    """
    found: dict[tuple[str, str], Section] = {}
    for path in paths:
        rows = read_rows(path)
        if not rows:
            raise UsageError(f"{path} holds no rows yet", remedy="wait until the set has recorded something, or name another one")
        folder = (path if path.is_dir() else path.parent).resolve()
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            groups.setdefault((str(row["set_id"]), str(row["model"])), []).append(row)
        for key, group in groups.items():
            if key in found:
                raise UsageError(f"the set {key[0]} of {key[1]} is given twice", remedy=f"leave {path} out, or the other one")
            found[key] = _section(folder, group, alone=len(groups) == 1)
    return list(found.values())


def _section(folder: Path, rows: list[Row], alone: bool) -> Section:
    # A file of several sets (`accel demo` writes one) lies beside the sets' own folders, which keep the samples.
    set_id = str(rows[0]["set_id"])
    own = folder if alone or not (folder / set_id / JSONL).is_file() else folder / set_id
    try:
        samples = ResultSet(own, {}, rows).samples()
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError) as error:
        # What is no array at all numpy takes for a pickle, and tells how to load it all the same.
        why = "it is no .npz file" if "pickled (object)" in str(error) else error
        what = f"{own / SAMPLES} is damaged ({why})"
        raise CorruptArtifact(what, remedy="restore the file, or remove it to report without raw samples") from error
    name = own.name if alone or own != folder else set_id
    return Section(name, tuple(rows), tuple(lines(rows, samples)), samples, _description(own / SET, set_id))


def _description(file: Path, set_id: str) -> dict[str, Any]:
    if not file.is_file():
        return {}
    found = read_description(file)
    if "set_id" not in found:
        raise CorruptArtifact(f"{file} does not describe a set (it has no set_id)", remedy="restore the file, or remove it")
    return found if found["set_id"] == set_id else {}
