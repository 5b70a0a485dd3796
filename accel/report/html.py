"""One self-contained page: no script, no address of anywhere else, everything that the rows say escaped."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accel.bench.summary import DIAGNOSTICS
from accel.optional import require
from accel.report import about, distribution, ledger, sentences, svg, tradeoff
from accel.report import table as tables
from accel.report.sections import Section

TEMPLATE = "page.html.j2"


@dataclasses.dataclass(frozen=True)
class Figure:
    """`svg` is safe markup, or None where `absent` says why there is no figure."""

    title: str
    note: str
    svg: Any
    absent: str


@dataclasses.dataclass(frozen=True)
class Key:
    """A variant's entry in the key of all figures: its verdict, the class of its colour, and whether its curve is broken."""

    variant: str
    verdict: str
    colour: int
    broken: int


def page(sections: Sequence[Section]) -> str:
    """The whole page; the same sections give the same bytes. Models come in the order given, and of one model the newest set first.

    Raises:
        MissingExtra: jinja2 or matplotlib is absent.
    """
    jinja2 = require("jinja2", extra="report")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("accel", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(tight=tight, breakable=breakable)
    models = list(dict.fromkeys(section.model for section in sections))
    ordered = sorted(sorted(sections, key=_began, reverse=True), key=lambda section: models.index(section.model))
    shown = [_shown(section, f"set{number}") for number, section in enumerate(ordered, start=1)]
    title = "accel: " + ", ".join(models)
    text: str = environment.get_template(TEMPLATE).render(title=title, sets=shown)
    return text.rstrip() + "\n"


def _began(section: Section) -> str:
    return min(str(row["timestamp_utc"] or "") for row in section.rows)


def tight(text: str) -> str:
    """No line ends between a number and its unit, nor inside `p = …` and `top-1`."""
    text = re.sub(r"(?<=\d) (?=(?:%|µs|ms|s|MHz|W|°C|calls?)\b|%)", "\N{NO-BREAK SPACE}", text)
    return re.sub(r"\bp ([=<]) ", "p\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", text).replace("top-1", "top\N{NON-BREAKING HYPHEN}1")


def breakable(variant: str) -> Any:
    """The name as safe markup that may go on in the next line before a precision or an option, and nowhere else before it has to."""
    text = str(require("markupsafe", extra="report").escape(variant))
    return _markup(text.replace(":", ":<wbr>").replace("+", "<wbr>+"))


def _shown(section: Section, name: str) -> dict[str, Any]:
    order = [line.variant for line in section.lines]
    flagged = about.flags(section)
    flag_headings, flag_lines = about.flag_table(flagged)
    return {
        "id": name,
        "section": section,
        "device": section.lines[0].device,
        "verdict": sentences.verdict(section),
        "headings": tables.headings(section),
        "lines": tables.table(section),
        "notes": tables.notes(section),
        "reasons": tables.reasons(section),
        "key": _key(section),
        "figures": [_figure(section, name, order, *given) for given in FIGURES],
        "ledger_headings": ledger.headings(section),
        "ledger": ledger.table(section),
        "ledger_notes": ledger.notes(section),
        "pay_backs": sentences.pay_backs(section),
        "environment": about.environment(section),
        "flags": flagged,
        "flag_headings": flag_headings,
        "flag_lines": flag_lines,
        "flag_how": about.HOW,
        "unfinished": about.unfinished(section),
        "unjudged": about.unjudged(section),
        "explained": about.explained,
        "command": about.command(section),
        "raw": _markup(_raw(section)),
    }


def _key(section: Section) -> list[Key]:
    """Of the variants that a figure may show. A colour belongs to a place in the table, so that it is the same in all figures."""
    size = len(svg.SERIES)
    return [
        Key(line.variant, line.verdict, at % size + 1, at // size % len(svg.DASHES))
        for at, line in enumerate(section.lines)
        if line.latency or line.build_s is not None or line.build_warm_s is not None
    ]


Draw = Callable[[Section, str, Sequence[str]], "str | None"]

_NO_SAMPLES = "There are no raw samples of this set."
FIGURES: tuple[tuple[str, Draw, str, str, str], ...] = (
    (
        "ecdf",
        distribution.ecdf,
        "Distribution",
        "Share of the calls at or below a latency, rounds pooled; further left is faster, and a curve that "
        "runs on to the right below 100 % has a slow tail.",
        _NO_SAMPLES,
    ),
    (
        "time",
        distribution.over_time,
        "Over time",
        "Neighbouring calls of every round against the variant's own median: the line is their median, the band their range (cut at "
        "the edge of the strip). A GPU or CPU that throttles climbs.",
        _NO_SAMPLES,
    ),
    (
        "pareto",
        tradeoff.pareto,
        "Accuracy and latency",
        "Variants that may be ranked; whiskers are 95 % intervals (of top-1 over the test images: Wilson's). The step joins those "
        "that no other beats in both.",
        "No variant that may be ranked has an accuracy.",
    ),
    (
        "cold",
        tradeoff.bars,
        "Cold start",
        "What passes before the first answer; the ledger below takes it apart.",
        "No variant was built.",
    ),
)
"""Id, what draws it, title, how to read it, and what stands there if there is nothing to draw."""


def _figure(section: Section, name: str, order: Sequence[str], part: str, draw: Draw, title: str, note: str, absent: str) -> Figure:
    drawn = draw(section, f"{name.replace('set', 's')}{part[0]}", order)  # it stands before every id and class of the figure
    return Figure(title, note, None if drawn is None else _markup(drawn), absent)


REPEATED = ("ci_method", "flags", "stability")
"""What a row says by one of a few long texts or lists: a third of the raw rows, if each had it in full."""


def _raw(section: Section) -> str:
    """What all rows share, then what those of a variant share, of a run, and each latency's own; deeper lines are indented.

    A line of JSON is an object, or of a latency an array in the order of the `columns` that the first line names. Written out in full, the
    rows were two thirds of a page; so what was not measured is left out, as is the place of the samples, which are no part of a page, and
    numbers have six digits, and diagnostics (span, enqueue, replay) are missing: the record has them all. In the columns of REPEATED a
    number is the place of a value in the list that `values` of the first line has for it. Quotes need no escape in text.
    """
    shown = [row for row in section.rows if row["latency_kind"] not in DIAGNOSTICS] or section.rows
    rows = [{key: _six_digits(value) for key, value in row.items() if value is not None and key != "raw_path"} for row in shown]
    values = {key: said for key in REPEATED if len(said := _distinct(rows, key)) > 1}
    rows = [row | {key: values[key].index(row[key]) for key in values if key in row} for row in rows]
    lines, columns = _nested(rows, ("variant", "round"))
    head = json.loads(lines[0]) | ({"columns": columns} if columns else {}) | ({"values": values} if values else {})
    return html.escape("\n".join([_compact(head), *lines[1:]]), quote=False)


def _distinct(rows: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    """The values of `key` in the order in which they first occur; lists among them, so no set will do."""
    found: list[Any] = []
    for row in rows:
        if key in row and row[key] not in found:
            found.append(row[key])
    return found


def _six_digits(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _nested(
    rows: Sequence[Mapping[str, Any]], keys: Sequence[str], indent: str = "", columns: tuple[str, ...] = ()
) -> tuple[list[str], Any]:
    """A line of what `rows` share, then their groups by the first of `keys`, and within those by the next; at last row by row.

    Returns:
        The lines, and the columns of the last kind, those of `columns` first.
    """
    first, *others = rows
    shared = {key: value for key, value in first.items() if all(key in row and row[key] == value for row in others)}
    lines = [indent + _compact(shared)]
    if not others:
        return lines, columns
    left = [{key: value for key, value in row.items() if key not in shared} for row in rows]
    keys = [key for key in keys if key not in shared]
    if not keys:
        columns = tuple(dict.fromkeys([*columns, *(key for row in left for key in row)]))
        return lines + [f"{indent} {_compact(_in_order(row, columns))}" for row in left], columns
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in left:
        groups.setdefault(row.get(keys[0]), []).append(row)
    for group in groups.values():
        deeper, columns = _nested(group, keys[1:], indent + " ", columns)
        lines += deeper
    return lines, columns


def _in_order(row: Mapping[str, Any], columns: Sequence[str]) -> list[Any]:
    """The row's values; null in front of the last of them where it has none."""
    last = max(columns.index(key) for key in row) if row else -1
    return [row.get(key) for key in columns[: last + 1]]


def _compact(values: Mapping[str, Any] | Sequence[Any]) -> str:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def _markup(safe: str) -> Any:
    return require("markupsafe", extra="report").Markup(safe)
