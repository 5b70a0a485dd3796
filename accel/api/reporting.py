"""Say what finished sets found: a page, Markdown, or the text between two markers of a README and other files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from accel.errors import AccelError, GateError, UsageError
from accel.files import write_text
from accel.report import final_table as finals
from accel.report import html as pages
from accel.report import markdown as documents
from accel.report import trained
from accel.report import update as updates
from accel.report.sections import open_sections


@dataclasses.dataclass(frozen=True)
class Reported:
    """Attributes:
    markdown: the report as Markdown.
    changed: the files that were written; with `check`, those that would be.
    unchanged: the files that already say this.
    problem: with `check`, the failed gate if a file would change; else None.
    """

    markdown: str
    changed: tuple[Path, ...]
    unchanged: tuple[Path, ...]
    problem: AccelError | None


def report(
    results: Path | str | Sequence[Path | str],
    *,
    html: Path | str | None = None,
    markdown: Path | str | None = None,
    update: Path | str | Sequence[Path | str] | None = None,
    final: Path | str | None = None,
    training: Sequence[Path | str] = (),
    check: bool = False,
) -> Reported:
    """Report on sets that `accel bench` wrote. A file is replaced atomically, and only if its text changes.

    Args:
        results: set folders or `results.jsonl` files. Sets stay apart: no ratio is taken across two of them.
        html: where the self-contained page goes.
        markdown: where the Markdown goes.
        update: a file, or several, with `<!-- accel:results NAME -->` and `<!-- /accel:results -->` around what is replaced. Each gets the
            sets whose markers it has, and every set has markers in one at least. NAME is a set's folder, or its model where that leaves no
            choice: a set that any of the files has under its folder's name does not count.
        final: where the final table goes: a new file, or what stands between a file's markers `accel:results final-FOLDER`, where FOLDER
            is the name of the file's folder. Every file to `update` that has the same markers gets it too.
        training: for `final`: folders that `accel train` wrote, or folders of such.
        check: write nothing; `problem` names what would change.

    Raises:
        UsageError: no such results, no such file or markers to update, a file named twice, or `check` without a file.
        CorruptArtifact: damaged results.
        MissingExtra: jinja2 or matplotlib is absent (`html`).
    """
    to_update = _paths(update)
    single = [Path(name) for name in (html, markdown, final) if name is not None]
    if check and not (to_update or single):
        raise UsageError("--check was given no file to check", remedy="add --html F, --markdown F, --final F or --update README.md")
    if training and final is None:
        raise UsageError("trainings were named, and only the final table shows them", remedy="add --final F, or leave --training out")
    _distinct(to_update, single)
    sections = open_sections(_paths(results))
    document = documents.document(sections)
    wanted: dict[Path, str] = {}
    further = {} if final is None else {finals.region(Path(final)): finals.body(sections, trained.find([Path(path) for path in training]))}
    if final is not None:
        wanted[Path(final)] = _final(Path(final), further)
    if to_update:
        wanted |= updates.updated_files({path: _existing(path) for path in to_update}, sections, further)
    if markdown is not None:
        wanted[Path(markdown)] = document
    if html is not None:
        wanted[Path(html)] = pages.page(sections)
    # All texts are made before the first is written: an error leaves every file as it was.
    changed = tuple(path for path, text in wanted.items() if _text(path) != text)
    for path in () if check else changed:
        write_text(path.resolve(), wanted[path])
    problem = _drifted(changed) if check and changed else None
    return Reported(document, changed, tuple(path for path in wanted if path not in changed), problem)


def _paths(given: Path | str | Sequence[Path | str] | None) -> list[Path]:
    if given is None:
        return []
    return [Path(path) for path in ([given] if isinstance(given, str | os.PathLike) else given)]


def _distinct(to_update: Sequence[Path], single: Sequence[Path]) -> None:
    """Refuse a file that is named twice, by whatever path."""
    updated = [path.resolve() for path in to_update]
    for number, path in enumerate(updated):
        if path in updated[:number]:
            raise UsageError(f"--update was given {to_update[number]} twice", remedy="give each file once")
    every = [*updated, *(path.resolve() for path in single)]
    if len(set(every)) < len(every):
        raise UsageError("one file was named for two purposes", remedy="give --html, --markdown, --final and --update a file each")


def _final(path: Path, further: Mapping[str, str]) -> str:
    opened = updates.OPEN.format(finals.region(path))
    text = _text(path)
    text = finals.NEW.format(opened, updates.CLOSE) if text is None else text
    if finals.region(path) not in updates.spans(text, path):
        raise UsageError(f"{path} has no markers for the final table", remedy=f"add two lines: {opened} and {updates.CLOSE}")
    return updates.updated(text, [], path, further)


def _text(path: Path) -> str | None:
    """What the file says, its line ends as they are; None if it is not there."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder", remedy="name a file")
    try:
        return path.read_bytes().decode("utf-8") if path.is_file() else None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text in UTF-8 ({error.reason})", remedy="name a text file") from error


def _existing(path: Path) -> str:
    text = _text(path)
    if text is None:
        raise UsageError(f"{path} is not there, so nothing in it can be updated", remedy="name a file with two accel:results markers")
    return text


def _drifted(changed: Sequence[Path]) -> GateError:
    named = ", ".join(map(str, changed))
    return GateError(f"out of date with the results: {named}", remedy="run the same command without --check")
