"""Bring a measured set into the repository: small, reproducible bytes, and without the paths of the machine that it was measured on.

    python benchmarks/keep_set.py ~/out/sets/resnet18-cuda0-20261129T114813Z results/h200 --call /home/me/rented=. --call /home/me=~

Copies set.json (a line for each key), the record (packed by xz) and the raw samples (packed: `accel.bench.results.pack_samples`); what
`accel` makes of them (results.csv, table.md) is left out. `--call FROM=TO` replaces a folder's name wherever it stands, in the order given.
Figures stay as they are. `--no-samples` leaves the raw samples out, `--samples KIND` those of other latencies.
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accel.bench.results import PACKED, READ, SAMPLES, SET, pack_samples, read_rows, read_samples, record, record_text, write_samples
from accel.errors import AccelError, UsageError
from accel.files import replacing
from benchmarks import records


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", type=Path, help="a folder that `accel bench` wrote")
    parser.add_argument("into", type=Path, help="the folder of it gets the set's name here")
    parser.add_argument("--call", action="append", default=[], metavar="FROM=TO")
    parser.add_argument("--no-samples", action="store_true")
    parser.add_argument("--samples", action="append", metavar="KIND", help="raw samples of this latency alone, as host_us; may be repeated")
    options = parser.parse_args(words)
    try:
        print(
            keep(
                options.set,
                options.into,
                [tuple(pair.split("=", 1)) for pair in options.call],
                [] if options.no_samples else options.samples,
            )
        )
    except AccelError as error:
        print(f"keep_set: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def keep(measured: Path, into: Path, calls: Sequence[tuple[str, ...]], samples: Sequence[str] | None) -> Path:
    """The new folder.

    Args:
        samples: of which latencies; None for all.

    Raises:
        UsageError, CorruptArtifact: the record cannot be read; nothing is written.
    """
    kinds = {str(row["latency_kind"]) for row in read_rows(measured) if row["latency_kind"]}
    if unknown := sorted({*(samples or ())} - kinds):
        raise UsageError(f"{measured} has no latency {', '.join(unknown)}; it has {', '.join(sorted(kinds))}", remedy="mend --samples")
    target = into / measured.name
    target.mkdir(parents=True, exist_ok=True)
    description = json.loads(called((measured / SET).read_text(encoding="utf-8"), calls))
    (target / SET).write_text(records.text(description, depth=1) + "\n", encoding="utf-8")
    packed = lzma.compress(called(record_text(record(measured)), calls).encode(), preset=9 | lzma.PRESET_EXTREME)
    with replacing(target / PACKED) as temporary:
        temporary.write_bytes(packed)
    for name in READ:  # the set may be packed anew in its place, where another form of the record would be read first
        if name != PACKED:
            (target / name).unlink(missing_ok=True)
    found = {key: of for key, of in read_samples(measured / SAMPLES).items() if samples is None or key.rpartition("/")[2] in samples}
    if found:
        write_samples(target / SAMPLES, found)
        pack_samples(target / SAMPLES)
    return target


def called(text: str, calls: Sequence[tuple[str, ...]]) -> str:
    for found, name in calls:
        text = text.replace(found, name)
    return text


if __name__ == "__main__":
    sys.exit(main())
