"""Replace what stands between `<!-- accel:results NAME -->` and `<!-- /accel:results -->` by what a set found."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
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
    """`text` with the results of every section between its markers. NAME is a set's folder, or the model if only one set is of it.

    Args:
        where: the file that `text` is of, for messages.
        further: name → what goes between the markers of that name, where there are any.

    Raises:
        UsageError: a set without markers, markers that do not come in pairs, or a name that two of them or two sets claim.
    """
    found = spans(text, where)
    chosen = [(_span_of(section, sections, found, where), markdown.brief(section)) for section in sections]
    chosen += [(found[name], said) for name, said in (further or {}).items() if name in found]
    newline = "\r\n" if "\r\n" in text else "\n"
    for span, said in sorted(chosen, key=lambda pair: pair[0].start, reverse=True):
        between = f"\n{said}\n".replace("\n", newline)
        text = text[: span.start] + between + text[span.end :]
    return text


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


def _span_of(section: Section, sections: Sequence[Section], found: dict[str, Span], where: Path) -> Span:
    if section.name in found:
        return found[section.name]
    if section.model in found:
        rivals = [other.name for other in sections if other.model == section.model and other.name not in found]
        if len(rivals) > 1:
            what = f"the markers of {section.model} in {where} fit {len(rivals)} sets: {', '.join(rivals)}"
            raise UsageError(what, remedy="name the sets' folders in the markers, or give one of the sets")
        return found[section.model]
    remedy = f"add two lines: {OPEN.format(section.name)} and {CLOSE}"
    raise UsageError(f"{where} has no markers for the set {section.name} of {section.model}", remedy=remedy)
