"""The report in Markdown: verdict, table, conditions and command of every set; for a README the same without what fills pages."""

from __future__ import annotations

import re
from collections.abc import Sequence

from accel.report import about, ledger, sentences
from accel.report import table as tables
from accel.report.sections import Section

FEW = 3
"""Up to so many variants are named in a line of text."""


def document(sections: Sequence[Section]) -> str:
    """All sets, each under its own heading."""
    return "\n".join(f"## {escaped(section.model)} ({escaped(section.name)})\n\n{body(section)}" for section in sections)


def body(section: Section) -> str:
    """One set without a heading."""
    return _document(section, [*_flags(section), *_unfinished(section), *_ledger(section)])


def brief(section: Section) -> str:
    """What stands between the markers of a README: as `body`, but the flags in one paragraph, and no cold starts."""
    return _document(section, [*_flags_in_short(section), *_unfinished(section)])


def _document(section: Section, below: Sequence[str]) -> str:
    """The verdict, the table with its notes, what is `below` it, conditions and command."""
    names, lines = tables.headings(section), tables.table(section)
    out = [escaped(sentences.verdict(section)), ""]
    out.append("| " + " | ".join(["variant", *names, "verdict"]) + " |")
    out.append("|" + "|".join([":--", *["--:"] * len(names), ":--"]) + "|")
    out += ["| " + " | ".join([code(line.variant), *line.cells, line.verdict]) + " |" for line in lines]
    out.append("")
    for found in tables.reasons(section):
        mended = f"; to mend it: {escaped(found.remedy)}" if found.remedy else ""
        out.append(f"* {', '.join(map(code, found.variants))} {found.verdict}: {escaped(found.reason)}{mended}")
    out += [*([""] if out[-1] else []), escaped(" ".join(tables.notes(section))), ""]
    out += below
    out += [f"* {name}: {escaped(text)}" for name, text in about.environment(section).items()]
    command = about.command(section)
    if command is not None:
        # Indented code cannot be closed from inside, whatever was typed.
        out += ["", "To repeat it:", "", *(f"    {line}" for line in command.splitlines())]
    return "\n".join(out) + "\n"


def _flags(section: Section) -> list[str]:
    """Which variant carries which flag in which latency, and what each means and mends it; nothing where there are none."""
    flagged = about.flags(section)
    if not flagged:
        return []
    said = [f"* {escaped(item.flag)}{escaped(about.explained(item))}" for item in flagged]
    return [*_table("flagged", *about.flag_table(flagged)), "", *said, "", about.HOW, ""]


def _flags_in_short(section: Section) -> list[str]:
    """The flags with the variants that carry them; where those are more than a few, how many they are."""
    flagged = about.flags(section)
    if not flagged:
        return []
    measured = sum(bool(line.latency) for line in section.lines)
    said = []
    for item in flagged:
        names = list(item.where)
        who = ", ".join(map(code, names)) if len(names) <= FEW else f"{len(names)} of {measured} variants"
        said.append(f"{escaped(item.flag)} ({who})")
    return [f"Flagged in some latency: {', '.join(said)}. `accel report` of the set says in which, what each means and what mends it.", ""]


def _unfinished(section: Section) -> list[str]:
    return [part for said in filter(None, (about.unfinished(section), about.unjudged(section))) for part in (escaped(said), "")]


def _ledger(section: Section) -> list[str]:
    """The cold starts as a table of their own; nothing where no variant was built."""
    lines, names = ledger.table(section), ledger.headings(section)
    if not lines:
        return []
    return [*_table("cold start", names, lines), "", " ".join(map(escaped, ledger.notes(section))), ""]


def _table(corner: str, names: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    out = ["| " + " | ".join([corner, *map(escaped, names)]) + " |", "|" + "|".join([":--", *["--:"] * len(names)]) + "|"]
    return out + ["| " + " | ".join([code(variant), *cells]) + " |" for variant, cells in lines]


def escaped(text: str) -> str:
    """Text that Markdown and the HTML in it take as text, on one line."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", " ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code(text: str) -> str:
    """A name as code; one with a character that would end the code or the cell is escaped text instead."""
    return escaped(text) if set("`|\n") & set(text) else f"`{text}`"
