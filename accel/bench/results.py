"""A set on disk: `set.json` (key and state), `results.jsonl` (the record), `results.csv` (made from it), `samples.npz` (raw)."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from accel.bench.columns import COLUMNS, SCHEMA_VERSION, VERDICTS, upgraded
from accel.errors import CorruptArtifact, UsageError
from accel.files import disk_errors, replacing, write_text
from accel.types import Array

Row = dict[str, Any]

JSONL, CSV, SAMPLES, SET = "results.jsonl", "results.csv", "samples.npz", "set.json"
KEYS, COUNTS, PLANES = "keys", "counts", "planes"
"""Arrays of packed samples: their keys, how many each has, and the bytes of all, [4, n] with the lowest first."""
PACKED = JSONL + ".xz"
"""The record as `xz -9e results.jsonl` leaves it: a twenty-fifth of the size, for sets that a repository keeps."""
READ = (JSONL, PACKED, JSONL + ".gz")
"""Names of the record in a folder; the first that is there is read."""

UINT32_NS = 2**32 - 1
"""4.29 s: longer samples are kept as int64."""


def row(**values: Any) -> Row:
    """A row with every column, None where `values` has nothing.

    Raises:
        UsageError: a value for a column that does not exist.
    """
    unknown = values.keys() - set(COLUMNS)
    if unknown:
        raise UsageError(f"a result row has no column {', '.join(sorted(unknown))}")
    return {name: values.get(name) for name in COLUMNS} | {"schema_version": SCHEMA_VERSION}


@dataclasses.dataclass
class ResultSet:
    """One set: a model on one machine in one go.

    Attributes:
        folder: where its files lie.
        description: what `set.json` holds.
        rows: all that was recorded, in order.
    """

    folder: Path
    description: dict[str, Any]
    rows: list[Row]

    @property
    def unverified(self) -> bool:
        """Whether a latency stands without the accuracy of its bytes."""
        return any("UNVERIFIED" in (item["verdict"], *(item["flags"] or ())) for item in self.rows)

    @property
    def failed_gates(self) -> tuple[Row, ...]:
        """One row for each variant that failed accuracy, parity or precision: exit code 3."""
        return self._first("INVALID")

    @property
    def errors(self) -> tuple[Row, ...]:
        """One row for each variant whose worker failed."""
        return self._first("ERROR")

    @property
    def refused(self) -> tuple[Row, ...]:
        """One row for each variant that did not run here (REFUSED, MISSING); whoever asked for it by name gets exit code 4."""
        return self._first("REFUSED", "MISSING")

    def recorded(self) -> set[tuple[str, int | None]]:
        """The (variant, round) pairs that need not run again; round None stands for all rounds."""
        return {(item["variant"], item["round"]) for item in self.rows}

    def samples(self) -> dict[str, Array]:
        """Raw samples in nanoseconds by `variant/run/kind`; empty if they were not kept."""
        return read_samples(self.folder / SAMPLES)

    def append(self, rows: Iterable[Row], samples: Mapping[str, Array]) -> None:
        """Record one variant run: samples first, so that no row points at samples that a crash kept from the disk."""
        added = list(rows)
        if samples:
            write_samples(self.folder / SAMPLES, {**self.samples(), **samples})
        append_rows(self.folder / JSONL, added)
        self.rows.extend(added)
        write_text(self.folder / CSV, to_csv(self.rows))

    def replace(self, rows: Iterable[Row]) -> None:
        """Put `rows` in the place of all that was recorded: a process that is killed meanwhile leaves the old record or the new one."""
        self.rows[:] = rows
        write_text(self.folder / JSONL, to_jsonl(self.rows))
        write_text(self.folder / CSV, to_csv(self.rows))

    def describe(self, **changes: Any) -> None:
        """Change the description and write it."""
        self.description.update(changes)
        write_text(self.folder / SET, json.dumps(self.description, indent=2) + "\n")

    def _first(self, *verdicts: str) -> tuple[Row, ...]:
        found = {item["variant"]: item for item in reversed(self.rows) if item["verdict"] in verdicts}
        return tuple(reversed(found.values()))


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append whole lines and flush them to the disk; a half line that a killed process left is cut off first."""
    with disk_errors(path), open(path, "ab+") as stream:
        stream.seek(0)
        kept = stream.read()
        if kept and not kept.endswith(b"\n"):
            stream.truncate(kept.rfind(b"\n") + 1)
        stream.write(to_jsonl(rows).encode())
        stream.flush()


def read_rows(path: Path) -> list[Row]:
    """Read `results.jsonl`, or the same packed by xz or gzip (or the folder that holds one); a last line that was cut short is left out.

    Raises:
        UsageError: there is no such file. CorruptArtifact: a line is damaged, or of a newer schema.
    """
    if path.is_dir():
        path = record(path)
    if not path.is_file():
        raise UsageError(f"{path} is not there", remedy="name a folder or results.jsonl that `accel bench` wrote")
    *whole, _unfinished = record_text(path).split("\n")
    rows = []
    for number, line in enumerate(whole, start=1):
        try:
            data = json.loads(line)
            version = int(data["schema_version"])
        except (ValueError, KeyError, TypeError) as error:
            what = f"{path}, line {number} is no result row ({error!r})"
            raise CorruptArtifact(what, remedy="restore the file, or bench again") from error
        if version > SCHEMA_VERSION:
            raise CorruptArtifact(
                f"{path}, line {number} has schema_version {version}; this accel reads up to {SCHEMA_VERSION}",
                remedy="pip install --upgrade accel-engines",
            )
        row = upgraded(data)
        if row["verdict"] not in VERDICTS:
            what = f"{path}, line {number} has the verdict {row['verdict']!r}; there are {', '.join(VERDICTS)}"
            raise CorruptArtifact(what, remedy="restore the file, or bench again")
        rows.append(row)
    return rows


def record(folder: Path) -> Path:
    """The record of a set, packed or not; `results.jsonl` where there is none."""
    return next((folder / name for name in READ if (folder / name).is_file()), folder / JSONL)


def record_text(path: Path) -> str:
    """What a record says, unpacked.

    Raises:
        CorruptArtifact: it cannot be unpacked.
    """
    if path.suffix not in (".gz", ".xz"):
        return path.read_text(encoding="utf-8")
    import lzma  # here: there are builds of Python without it, which measure and read everything else

    try:
        return (gzip.decompress if path.suffix == ".gz" else lzma.decompress)(path.read_bytes()).decode("utf-8")
    except (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError) as error:
        raise CorruptArtifact(f"{path} cannot be unpacked ({error})", remedy="restore the file, or bench again") from error


def to_jsonl(rows: Iterable[Row]) -> str:
    """A line of JSON for each row."""
    return "".join(json.dumps(item, allow_nan=False) + "\n" for item in rows)


def to_csv(rows: Iterable[Row]) -> str:
    """All columns; None is empty, lists and mappings are JSON."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for item in rows:
        writer.writerow({key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in item.items()})
    return text.getvalue()


def write_samples(path: Path, samples: Mapping[str, Array]) -> None:
    """Replace `path` by all samples (nanoseconds), compressed, uint32 unless one exceeds UINT32_NS."""
    packed = {key: array.astype(np.int64 if int(array.max(initial=0)) > UINT32_NS else np.uint32) for key, array in samples.items()}
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **packed)  # type: ignore[arg-type]


def read_samples(path: Path) -> dict[str, Array]:
    """Samples by key, from either form of the file; empty if it is absent."""
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as archive:
        if PLANES not in archive.files:
            return {key: archive[key] for key in archive.files}
        values = np.ascontiguousarray(archive[PLANES].T).view(np.uint32)[:, 0]
        ends = np.cumsum(archive[COUNTS])
        return dict(zip(map(str, archive[KEYS]), np.split(values, ends[:-1]), strict=True))


def pack_samples(path: Path) -> None:
    """Make the file two thirds as large, for a set that is kept for good: all samples in one array, whose first bytes come first.

    The upper bytes of latencies are nearly the same, so that LZMA leaves little of them once they stand together.

    Raises:
        UsageError: a sample is longer than 4.29 s, which four bytes do not hold; the file stays as it is.
    """
    samples = read_samples(path)
    if any(int(array.max(initial=0)) > UINT32_NS for array in samples.values()):
        raise UsageError(f"{path} has samples of more than {UINT32_NS / 1e9:.2f} s", remedy="keep the file as it is")
    values = np.concatenate([array.astype("<u4") for array in samples.values()] or [np.empty(0, "<u4")])
    counts = np.array([len(array) for array in samples.values()], np.int64)
    parts = {KEYS: np.array(list(samples), np.str_), COUNTS: counts, PLANES: np.ascontiguousarray(values.view(np.uint8).reshape(-1, 4).T)}
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in parts.items():
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            # Without the time of day, so that the same samples make the same file.
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_LZMA
            archive.writestr(entry, content.getvalue())


def open_results(folder: Path) -> ResultSet:
    """Read a set that `accel bench` wrote.

    Raises:
        UsageError: there is no record. CorruptArtifact: `set.json` or a line of the record is damaged, or of a newer schema.
    """
    rows, description = read_rows(folder), folder / SET
    return ResultSet(folder, read_description(description) if description.is_file() else {}, rows)


def read_description(path: Path) -> dict[str, Any]:
    """What a `set.json` holds.

    Raises:
        CorruptArtifact: it is no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise CorruptArtifact(f"{path} does not describe a set ({error})", remedy="restore the file, or remove it") from error
    return found
