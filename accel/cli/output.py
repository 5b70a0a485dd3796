"""Print rows on stdout in the format that was asked for."""

from __future__ import annotations

import csv
import io
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel.cli.options import Format
from accel.files import write_text

if TYPE_CHECKING:
    from accel.bench.results import ResultSet

Row = Mapping[str, Any]

OFF_TERMINAL_WIDTH = 400
"""Columns of a table in a file or a pipe: a log must not lose the end of a path."""


def print_rows(rows: Sequence[Row], columns: Sequence[str], format: Format = Format.table, csv_file: Path | None = None) -> None:
    """Print `rows`; a table shows `columns`, JSON and CSV carry every key.

    Args:
        csv_file: also written, whole or not at all.
    """
    sys.stdout.write(RENDERERS[format](rows, columns))
    if csv_file is not None:
        write_text(csv_file, as_csv(rows, columns))


def print_sets(sets: Sequence[ResultSet], format: Format, csv_file: Path | None = None) -> None:
    """Print the summary of result sets, one line a variant; `csv_file` gets every row of them."""
    from accel.bench import report

    if format is Format.table and sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        console.print(report.table(sets, console.width))
    else:
        sys.stdout.write(report.render(sets, format.value, width=OFF_TERMINAL_WIDTH))
    if csv_file is not None:
        write_text(csv_file, report.rows_csv(sets))


def print_notes(notes: Sequence[str]) -> None:
    """Print what is no data on stderr, after what is."""
    sys.stdout.flush()
    for note in notes:
        print(f"accel: {note}", file=sys.stderr)


def command_line() -> str:
    """What was typed, with the program's name without its folder."""
    return shlex.join(["accel", *sys.argv[1:]])


def as_table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    stream = io.StringIO()
    console = Console(file=stream, width=None if sys.stdout.isatty() else OFF_TERMINAL_WIDTH, no_color=True, highlight=False, markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    console.print(table)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    return "".join(f"{line.removeprefix(' ')}\n" for line in lines if line)


def as_json(rows: Sequence[Row], columns: Sequence[str]) -> str:
    return json.dumps(list(rows), indent=2, default=str) + "\n"


def as_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    names = list(dict.fromkeys([*columns, *(key for row in rows for key in row)]))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _flat(row.get(name)) for name in names} for row in rows)
    return stream.getvalue()


def as_markdown(rows: Sequence[Row], columns: Sequence[str]) -> str:
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


RENDERERS: dict[Format, Callable[[Sequence[Row], Sequence[str]], str]] = {
    Format.table: as_table,
    Format.json: as_json,
    Format.csv: as_csv,
    Format.markdown: as_markdown,
}


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _flat(value: Any) -> Any:
    return json.dumps(value, default=str) if isinstance(value, dict | list | tuple) else value
