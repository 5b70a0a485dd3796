"""The report in Markdown: verdict, table, conditions and command of every set."""

from __future__ import annotations

import re
from collections.abc import Sequence

from accel.report import about, ledger, sentences
from accel.report import table as tables
from accel.report.sections import Section


def document(sections: Sequence[Section]) -> str:
    """All sets, each under its own heading."""
    return "\n".join(f"## {escaped(section.model)} ({escaped(section.name)})\n\n{body(section)}" for section in sections)


def body(section: Section) -> str:
    """One set without a heading: what stands between the markers of a README."""
    names, lines, flagged = tables.headings(section), tables.table(section), about.flags(section)
    out = [escaped(sentences.verdict(section)), ""]
    out.append("| " + " | ".join(["variant", *names, "verdict"]) + " |")
    out.append("|" + "|".join([":--", *["--:"] * len(names), ":--"]) + "|")
    out += ["| " + " | ".join([code(line.variant), *line.cells, line.verdict]) + " |" for line in lines]
    out.append("")
    for found in tables.reasons(section):
        mended = f"; to mend it: {escaped(found.remedy)}" if found.remedy else ""
        out.append(f"* {', '.join(map(code, found.variants))} {found.verdict}: {escaped(found.reason)}{mended}")
    out += [*([""] if out[-1] else []), escaped(" ".join(tables.notes(section))), ""]
    if flagged:
        out += [*_table("flagged", *about.flag_table(flagged)), ""]
        out += [f"* {escaped(item.flag)}{escaped(about.explained(item))}" for item in flagged]
        out += ["", about.HOW, ""]
    for said in filter(None, (about.unfinished(section), about.unjudged(section))):
        out += [escaped(said), ""]
    out += _ledger(section)
    out += [f"* {name}: {escaped(text)}" for name, text in about.environment(section).items()]
    command = about.command(section)
    if command is not None:
        # Indented code cannot be closed from inside, whatever was typed.
        out += ["", "To repeat it:", "", *(f"    {line}" for line in command.splitlines())]
    return "\n".join(out) + "\n"


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
