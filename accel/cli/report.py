"""`accel report`"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[list[Path], typer.Argument(metavar="RESULTS", help="Set folders or results.jsonl files of `accel bench`.")],
    html: Annotated[Path | None, typer.Option("--html", metavar="F", help="Write one self-contained page.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", metavar="F", help="Write Markdown.")] = None,
    update: Annotated[
        list[Path] | None,
        typer.Option("--update", metavar="README.md", help="Replace the text between the file's accel:results markers; may be repeated."),
    ] = None,
    final: Annotated[
        Path | None,
        typer.Option("--final", metavar="F", help="Write the final table: engines with decisions, trainings, shares of the data."),
    ] = None,
    training: Annotated[
        list[Path] | None, typer.Option("--training", metavar="DIR", help="For --final: folders of accel train, or folders of such.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit with 3 if a file would change.")] = False,
) -> None:
    """Say what finished sets found; without a file named, as Markdown on stdout."""
    from accel import api

    done = api.report(results, html=html, markdown=markdown, update=update, final=final, training=training or (), check=check)
    if not any((html, markdown, update, final)):
        sys.stdout.write(done.markdown)
    if done.problem is not None:
        raise done.problem
    for said, paths in (("written", done.changed), ("unchanged", done.unchanged)):
        for path in paths:
            print(f"accel: {said}: {path}", file=sys.stderr)
