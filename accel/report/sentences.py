"""The report in words. Every number in a sentence comes from the same lines as the table."""

from __future__ import annotations

from collections import Counter

from accel.bench.comparison import AMBIGUOUS, FASTER, SAME, SLOWER
from accel.bench.report import COLUMNS
from accel.bench.summary import Line
from accel.report.ledger import BreakEven, break_evens
from accel.report.ranking import BASELINE, Comparison, baseline, rank
from accel.report.sections import Section
from accel.types import Variant

SIGNIFICANT = 0.05
"""McNemar's p below which a lower top-1 is called lower and not noise."""


def verdict(section: Section) -> str:
    """Which engine, how much faster than eager and than the next, and whether its accuracy is kept."""
    ranking = rank(section)
    if ranking.refused:
        return f"Nothing may be ranked: {ranking.refused}."
    if not ranking.ranked:
        counts = Counter(line.verdict for line in section.lines)
        said = ", ".join(f"{count} {name}" for name, count in counts.items())
        return f"Nothing may be ranked: no variant of this set has a latency and the verdict OK ({said})."
    winner = ranking.ranked[0]
    where = next((row["gpu_name"] or row["cpu_model"] for row in section.rows if row["gpu_name"] or row["cpu_model"]), winner.device)
    took = f"{us(winner)} from call to result on {where}"
    if len(ranking.ranked) == 1:
        return f"{winner.variant} is the only variant that may be ranked, at a median of {took}; {accuracy(winner)}."
    compared = _joined([_compared(winner, found) for found in ranking.against])
    missing = "" if any(_is_eager(found.other) for found in ranking.against) or _is_eager(winner) else _no_eager(section)
    sure = all(found.verdict == FASTER for found in ranking.against if found.other is ranking.ranked[1])
    count = len(ranking.ranked)
    place = f"is the fastest of {count} with a median of" if sure else f"has the smallest median of {count},"
    return f"{winner.variant} {place} {took}: {compared}{missing}; {accuracy(winner)}."


def accuracy(line: Line) -> str:
    """Whether the accuracy is kept, with what shows it; the line's verdict is OK, so it passed the gate."""
    if line.top1 is None or line.top1_reference is None or line.drop is None:
        return "its outputs agree with the reference on the golden samples, and no accuracy was measured"
    name = "top-1" if line.metric == "top1" else str(line.metric)
    facts = [f"{name} {line.top1:.2f} % beside {line.top1_reference:.2f} %"]
    if line.n_flips is not None:
        facts.append(f"{line.n_flips} prediction{'' if line.n_flips == 1 else 's'} changed")
    if line.mcnemar_p is not None:
        facts.append(f"p {'< 0.001' if line.mcnemar_p < 0.001 else f'= {line.mcnemar_p:.3f}'}")
    lower = line.drop > 0 and line.mcnemar_p is not None and line.mcnemar_p < SIGNIFICANT
    return f"its accuracy is {'lower, within the gate' if lower else 'kept'} ({', '.join(facts)})"


def pay_back(found: BreakEven) -> str:
    """`pays back after N calls against eager:fp32`, or why not."""
    if found.calls is None:
        return f"{found.variant} never pays back against {BASELINE}: it is not faster"
    saved = f"{found.saved_us:,.1f} µs saved a call{_reservations(found)}"
    if found.calls == 0:
        ready = f"ready {_seconds(-found.extra_s)} sooner" if found.extra_s < 0 else "ready as soon"
        return f"{found.variant} pays back at once against {BASELINE}: it is {ready}, {saved}"
    calls = f"{found.calls:,} call{'' if found.calls == 1 else 's'}"
    return f"{found.variant} pays back after {calls} against {BASELINE}: ready {_seconds(found.extra_s)} later, {saved}"


def _reservations(found: BreakEven) -> str:
    """What the time until it is ready leaves out."""
    said = {
        "its export is not on record and not counted": found.ours.uncounted,
        "its build found the caches of an earlier one: --rebuild measures a cold one": found.ours.warm,
    }
    left_out = [text for text, holds in said.items() if holds]
    return f" ({'; '.join(left_out)})" if left_out else ""


def pay_backs(section: Section) -> list[str]:
    """A sentence a ranked variant; one that says why there are none, where there are none."""
    refused = rank(section).refused
    if refused or baseline(section) is None:
        return [f"no break-even: {refused or _absent(section)}"]
    return [pay_back(found) for found in break_evens(section)]


def us(line: Line) -> str:
    """Median host latency as the table shows it, with its unit."""
    return f"{COLUMNS['host p50'](line)} µs"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def _compared(winner: Line, found: Comparison) -> str:
    other = found.other
    notes = [us(other)]
    if Variant.parse(winner.variant).precision != Variant.parse(other.variant).precision:
        notes.append("another precision")
    if found.verdict in _DOUBTS:
        notes.append("too few rounds: not replicated" if found.rounds < 2 else _DOUBTS[found.verdict])
    return f"{found.ratio:.2f} times as fast as {other.variant} ({', '.join(notes)})"


_DOUBTS = {
    SAME: "the same within 2 %",
    AMBIGUOUS: "these rounds do not decide it",
    SLOWER: "slower round by round",
}
"""What is added to a ratio that the rounds do not bear out."""


def _is_eager(line: Line) -> bool:
    return Variant.parse(line.variant).runtime == BASELINE.runtime


def _no_eager(section: Section) -> str:
    return f", not compared with eager ({_absent(section)})"


def _absent(section: Section) -> str:
    line = section.by_variant.get(str(BASELINE))
    return f"this set has no {BASELINE}" if line is None else f"{BASELINE} is {line.verdict} in this set"


def _joined(parts: list[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
