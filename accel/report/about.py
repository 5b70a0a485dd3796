"""Under which conditions a set was measured, what was flagged, and what mends it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from accel.bench.flags import FLAGS
from accel.bench.report import header
from accel.report.sections import Section


@dataclasses.dataclass(frozen=True)
class Flagged:
    """One flag, what it means and what to do about it (empty: not known).

    Attributes:
        where: variant → the latencies whose rows carry it, as `host, e2e`; ALL where every row of the variant does, or none alone.
    """

    flag: str
    where: dict[str, str]
    meaning: str = ""
    remedy: str = ""


Advice = Callable[[str], "tuple[str, str] | None"]


def advice(flag: str) -> tuple[str, str] | None:
    """Meaning and remedy of `flag`, None for one that an older or newer accel wrote."""
    rule = FLAGS.get(flag)
    return None if rule is None else (rule.meaning, rule.remedy)


ALL = "all"
HOW = "A cell names the latencies that carry the flag in any round; span, enqueue and replay are diagnostics that the table does not show."
KINDS = ("host_us", "device_us", "e2e_us", "span_us", "enqueue_us", "replay_us")
"""Latencies in the order in which a reader looks at them."""


def flags(section: Section, advice_of: Advice = advice) -> list[Flagged]:
    """Every flag of the set in the order of their closed list, then those that are not on it, by name."""
    known = list(FLAGS)
    found = sorted({flag for line in section.lines for flag in line.flags}, key=lambda flag: (_place(flag, known), flag))
    return [Flagged(flag, _where(section, flag), *(advice_of(flag) or ())) for flag in found]


def unjudged(section: Section) -> str:
    """What the flags of a set that never asked whether its rounds agree cannot say; empty for one that did, or has a single round."""
    measured = [row for row in section.rows if row["latency_kind"] is not None]
    if len({row["round"] for row in measured}) < 2 or any(row["stability"] for row in measured):
        return ""
    return "This set is of a version that did not judge whether rounds agree: NOISY and UNSTABLE were never asked; see the spread."


def unfinished(section: Section) -> str:
    """How far a set had come when it was interrupted; empty for one that ended, or whose description is not there."""
    if section.description.get("state") != "running":
        return ""
    rounds = section.description["plan"]["rounds"]
    have = {line.variant: line.rounds for line in section.lines if line.latency}
    behind = [f"{variant} {found}" for variant, found in have.items() if found < rounds]
    said = f"This set was interrupted: {sum(have.values())} runs of {len(have)} variants are on record, of {rounds} that each was to have"
    return said + (f"; fewer have {', '.join(behind)}." if behind else ".")


def flag_table(flagged: Iterable[Flagged]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The flags as headings, and a line a variant that has any: where each of them holds."""
    shown = list(flagged)
    variants = dict.fromkeys(variant for item in shown for variant in item.where)
    return [item.flag for item in shown], [(variant, [item.where.get(variant, "–") for item in shown]) for variant in variants]


def explained(item: Flagged) -> str:
    """`: MEANING. Remedy: REMEDY.`, as far as they are known."""
    return "".join([f": {item.meaning}." if item.meaning else "", f" Remedy: {item.remedy}." if item.remedy else ""])


def _where(section: Section, flag: str) -> dict[str, str]:
    return {line.variant: _kinds(section, line.variant, flag) for line in section.lines if flag in line.flags}


def _kinds(section: Section, variant: str, flag: str) -> str:
    rows = [row for row in section.rows if row["variant"] == variant]
    measured = {row["latency_kind"] for row in rows} - {None}
    flagged = {row["latency_kind"] for row in rows if flag in (row["flags"] or ())} - {None}
    # What is asked of the whole variant (UNVERIFIED, CLOCKS_DIFFER) stands in no row of one latency alone.
    if flagged in (measured, set()):
        return ALL
    return ", ".join(kind.removesuffix("_us") for kind in sorted(flagged, key=lambda kind: (_place(kind, KINDS), kind)))


def _place(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


def environment(section: Section) -> dict[str, str]:
    """Name → text: set, machine, versions, plan, commit, time; the command is apart (`command`)."""
    known = dict(line.split(": ", 1) for line in header([section.results]))
    known.pop("command", None)
    gpu = _gpu(section)
    return {"set": section.set_id, **known, **({"GPU": gpu} if gpu else {}), "commit": _commit(section), "measured": _when(section)}


def command(section: Section) -> str | None:
    """What was typed; None where the record does not say."""
    typed = dict.fromkeys(row["command"] for row in section.rows if row["command"])
    return "\n".join(typed) or None


def _gpu(section: Section) -> str:
    """Clocks, temperature and power while the rows were timed; empty where nobody read them."""

    def ends(column: str) -> list[float]:
        values = [row[column] for row in section.rows if row[column] is not None]
        return [min(values), max(values)] if values else []

    clocks, memory, heat = [*ends("sm_clock_min_mhz")[:1], *ends("sm_clock_max_mhz")[1:]], ends("mem_clock_mhz"), ends("temp_max_c")
    power, limit = ends("power_mean_w"), ends("power_limit_w")
    said = [f"SM clock {_range(clocks)} MHz"] if len(clocks) == 2 else []
    said += [f"memory clock {_range(memory)} MHz"] if memory else []
    said += [f"at most {heat[1]:.0f} °C"] if heat else []
    said += [f"mean power of a run {_range(power)} W"] if power else []
    said += [f"power limit {_range(limit)} W"] if limit else []
    return ", ".join(said)


def _range(values: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(f"{value:.0f}" for value in values))


def _commit(section: Section) -> str:
    states = dict.fromkeys((row["git_sha"], row["dirty"]) for row in section.rows)
    return ", ".join(f"{sha} ({_TREE[dirty]})" if sha else "not recorded" for sha, dirty in states)


_TREE = {True: "with changes that are not committed", False: "clean", None: "whether clean is not recorded"}


def _when(section: Section) -> str:
    times = sorted(row["timestamp_utc"] for row in section.rows if row["timestamp_utc"])
    return "not recorded" if not times else times[0] if times[0] == times[-1] else f"{times[0]} to {times[-1]}"
