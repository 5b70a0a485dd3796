"""Replace what stands between `<!-- accel:results NAME -->` and `<!-- /accel:results -->` by what a set found."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from accel.errors import UsageError
from accel.report import markdown
from accel.report.sections import Section

OPEN, CLOSE = "<!-- accel:results {} -->", "<!-- /accel:results -->"
_MARKER = re.compile(r"^<!-- (?:accel:results (?P<name>\S+)|(?P<close>/accel:results)) -->[ \t]*\r?$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Span:
    """The text of one pair of markers: `text[start:end]` lies between them."""

    name: str
    start: int
    end: int


def updated(text: str, sections: Sequence[Section], where: Path, further: Mapping[str, str] | None = None) -> str:
    """`updated_files` of the one file `where`, whose text is `text`."""
    return updated_files({where: text}, sections, further)[where]


def updated_files(texts: Mapping[Path, str], sections: Sequence[Section], further: Mapping[str, str] | None = None) -> dict[Path, str]:
    """The texts, each with the results of the sections that it has markers for; a section may stand in several.

    NAME is a set's folder, or a model. A model's markers hold the one set of it that no file has under its folder's name; if every set
    has such markers somewhere, the one set that has none in the same file.

    Args:
        texts: what each file says; the first is the one that a message about missing markers names.
        further: name → what goes between the markers of that name, in every file that has them.

    Raises:
        UsageError: a set without markers in any file, markers that do not come in pairs, or a name that two pairs or two sets claim.
    """
    found = {where: spans(text, where) for where, text in texts.items()}
    named = {name for pairs in found.values() for name in pairs}
    shown: list[Section] = []
    new: dict[Path, str] = {}
    for where, pairs in found.items():
        here = {name: section for name in pairs if (section := _section_of(name, sections, pairs, named, where)) is not None}
        shown += here.values()
        said = {name: markdown.brief(section) for name, section in here.items()}
        new[where] = _filled(texts[where], pairs, {**said, **(further or {})})
    for section in sections:
        if not any(section is other for other in shown):
            raise _homeless(section, list(texts))
    return new


def spans(text: str, where: Path) -> dict[str, Span]:
    """All pairs of markers by name; a marker is a line of its own."""
    found: dict[str, Span] = {}
    opened: re.Match[str] | None = None
    for marker in _MARKER.finditer(text):
        line = text.count("\n", 0, marker.start()) + 1
        if (marker["close"] is None) == (opened is not None):
            what = f"is opened before {opened['name']} is closed" if opened else "closes what was never opened"
            raise UsageError(f"{where}, line {line}: {marker[0].strip()} {what}", remedy=f"put {CLOSE} after each {OPEN.format('NAME')}")
        if opened is None:
            opened = marker
            continue
        name = opened["name"]
        if name in found:
            raise UsageError(f"{where} has the markers of {name} twice", remedy="keep one pair")
        # The line break after the opening marker stays where it is.
        found[name], opened = Span(name, opened.end() + 1, marker.start()), None
    if opened is not None:
        raise UsageError(f"{where}: {opened[0].strip()} is never closed", remedy=f"put a line {CLOSE} after it")
    return found


def _section_of(name: str, sections: Sequence[Section], here: Collection[str], named: Collection[str], where: Path) -> Section | None:
    """The set between the markers `name`; None if they are of no set that was given.

    Args:
        here: the names of all markers of this file.
        named: those of all files.
    """
    fit = [section for section in sections if section.name == name]
    if not fit:
        fit = [section for section in sections if section.model == name and section.name not in here]
        # A set with markers of its own in another file leaves these to one that has none, and takes them only if there is no such set.
        fit = [section for section in fit if section.name not in named] or fit
    if len(fit) > 1:
        what = f"the markers of {name} in {where} fit {len(fit)} sets: {', '.join(section.name for section in fit)}"
        raise UsageError(what, remedy="name the sets' folders in the markers, or give one of the sets")
    return fit[0] if fit else None


def _filled(text: str, pairs: Mapping[str, Span], said: Mapping[str, str]) -> str:
    """`text` with what is said by name between the markers of that name, where there are any."""
    newline = "\r\n" if "\r\n" in text else "\n"
    for span in sorted(pairs.values(), key=lambda span: span.start, reverse=True):
        if span.name in said:
            between = f"\n{said[span.name]}\n".replace("\n", newline)
            text = text[: span.start] + between + text[span.end :]
    return text


def _homeless(section: Section, files: Sequence[Path]) -> UsageError:
    first, *others = map(str, files)
    nor = f", nor has {' or '.join(others)}" if others else ""
    what = f"{first} has no markers for the set {section.name} of {section.model}{nor}"
    return UsageError(what, remedy=f"add two lines: {OPEN.format(section.name)} and {CLOSE}")
