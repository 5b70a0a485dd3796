"""Under which conditions a set was measured, what was flagged, and what mends it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from accel.bench.flags import FLAGS
from accel.bench.report import header
from accel.report.sections import Section


@dataclasses.dataclass(frozen=True)
class Flagged:
    """One flag, the variants that carry it, what it means and what to do about it (empty: not known)."""

    flag: str
    variants: tuple[str, ...]
    meaning: str = ""
    remedy: str = ""


Advice = Callable[[str], "tuple[str, str] | None"]


def advice(flag: str) -> tuple[str, str] | None:
    """Meaning and remedy of `flag`, None for one that an older or newer accel wrote."""
    rule = FLAGS.get(flag)
    return None if rule is None else (rule.meaning, rule.remedy)


def flags(section: Section, advice_of: Advice = advice) -> list[Flagged]:
    """Every flag of the set, by name."""
    found: dict[str, list[str]] = {}
    for line in section.lines:
        for flag in line.flags:
            found.setdefault(flag, []).append(line.variant)
    return [Flagged(flag, tuple(found[flag]), *(advice_of(flag) or ())) for flag in sorted(found)]


def environment(section: Section) -> dict[str, str]:
    """Name → text: set, machine, versions, plan, commit, time; the command is apart (`command`)."""
    known = dict(line.split(": ", 1) for line in header([section.results]))
    known.pop("command", None)
    return {"set": section.set_id, **known, "commit": _commit(section), "measured": _when(section)}


def command(section: Section) -> str | None:
    """What was typed; None where the record does not say."""
    typed = dict.fromkeys(row["command"] for row in section.rows if row["command"])
    return "\n".join(typed) or None


def _commit(section: Section) -> str:
    states = dict.fromkeys((row["git_sha"], row["dirty"]) for row in section.rows)
    return ", ".join(f"{sha} ({_TREE[dirty]})" if sha else "not recorded" for sha, dirty in states)


_TREE = {True: "with changes that are not committed", False: "clean", None: "whether clean is not recorded"}


def _when(section: Section) -> str:
    times = sorted(row["timestamp_utc"] for row in section.rows if row["timestamp_utc"])
    return "not recorded" if not times else times[0] if times[0] == times[-1] else f"{times[0]} to {times[-1]}"
