"""The report in words. Every number in a sentence comes from the same lines as the table."""

from __future__ import annotations

from collections import Counter

from accel.bench import stability
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
    winner, count = ranking.ranked[0], len(ranking.ranked)
    took = f"{us(winner)} from call to result (median) on {section.machine}"
    right = accuracy(winner, section.n_test(winner.variant))
    if count == 1:
        return f"{winner.variant} is the only variant that may be ranked: {took}. {right}.{_unsteady(section, [winner])}"
    compared = _joined([_compared(winner, found) for found in ranking.against])
    plain = any(_is_eager(line) for line in (winner, *(found.other for found in ranking.against)))
    missing = "" if plain else f" It is not compared with eager: {_absent(section)}."
    sure = all(found.verdict == FASTER for found in ranking.against if found.other is ranking.ranked[1])
    place = "is the fastest" if sure else "has the smallest median"
    shaky = _unsteady(section, [winner, *(found.other for found in ranking.against)])
    return f"{winner.variant} {place} of {count} ranked variants: {took}, {compared}.{missing} {right}.{shaky}"


def accuracy(line: Line, n_test: int | None = None) -> str:
    """Whether the accuracy is kept, with what shows it; the line's verdict is OK, so it passed the gate.

    Args:
        n_test: on how many images it was verified; None where that is not known.
    """
    if line.top1 is None or line.top1_reference is None or line.drop is None:
        return "Its outputs agree with the reference on the golden samples; no accuracy was measured"
    name = "top-1" if line.metric == "top1" else str(line.metric)
    facts = [f"{name} {line.top1:.2f} %, the reference's {line.top1_reference:.2f} %"]
    if line.n_flips is not None:
        of = f" of {n_test:,}" if n_test else ""
        facts.append(f"{line.n_flips}{of} prediction{'' if line.n_flips == 1 and not of else 's'} changed")
    if line.mcnemar_p is not None:
        facts.append(f"McNemar's p {'< 0.001' if line.mcnemar_p < 0.001 else f'= {line.mcnemar_p:.3f}'}")
    lower = line.drop > 0 and line.mcnemar_p is not None and line.mcnemar_p < SIGNIFICANT
    return f"Its accuracy is {'lower, within the gate' if lower else 'kept'} ({'; '.join(facts)})"


def _unsteady(section: Section, named: list[Line]) -> str:
    """Of the variants that the verdict names, those whose medians differ between rounds by more than a stable one's may."""
    said = []
    for line in dict.fromkeys(line.variant for line in named):
        medians = [row["p50_us"] for row in section.host_rows(line)]
        # The sentence quotes medians: whether the tails are stable is the flag's to say.
        rated = stability.of_runs([{"p50_us": median, "p95_us": None, "p99_us": None} for median in medians])
        apart = stability.spread(medians)
        if apart is not None and rated in (stability.NOISY, stability.UNSTABLE):
            said.append(f"{100 * (apart - 1):.1f} % for {line} ({rated})")
    return f" Between rounds the median moved by {_joined(said)}." if said else ""


def pay_back(found: BreakEven) -> str:
    """`pays back after N calls against eager:fp32`, or why not."""
    if found.calls is None:
        return f"{found.variant} never pays back against {BASELINE}: it is not faster"
    saved = f"{found.saved_us:,.1f} µs saved a call"
    ready = f"ready {_seconds(abs(found.extra_s))} {'sooner' if found.extra_s < 0 else 'later'}" if found.extra_s else "ready as soon"
    unknown = _unknown(found)
    if found.calls == 0:
        if unknown:
            return f"When {found.variant} pays back against {BASELINE} is not known, for {unknown}; apart from that: {ready}, {saved}"
        return f"{found.variant} pays back at once against {BASELINE}: {ready}, {saved}"
    calls = f"{found.calls:,} call{'' if found.calls == 1 else 's'}{' or more' if unknown else ''}"
    return f"{found.variant} pays back after {calls} against {BASELINE}: {ready}, {saved}" + (f" ({unknown})" if unknown else "")


def _unknown(found: BreakEven) -> str:
    """What the time until it is ready leaves out; empty if nothing."""
    said = {
        "its export is not on record": found.ours.uncounted,
        "its builds found the caches of an earlier one: --rebuild measures cold ones": found.ours.warm,
    }
    return " and ".join(text for text, holds in said.items() if holds)


def pay_backs(section: Section) -> list[str]:
    """A sentence a ranked variant; one that says why there are none, where there are none."""
    refused = rank(section).refused
    if refused or baseline(section) is None:
        return [f"No break-even is told: {refused or _absent(section)}."]
    return [pay_back(found) for found in break_evens(section)] or [f"No break-even is told: only {BASELINE} may be ranked."]


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
        notes.append(_FEW.get(found.rounds, _DOUBTS[found.verdict]) if found.verdict == AMBIGUOUS else _DOUBTS[found.verdict])
    return f"{found.ratio:.2f} times as fast as {other.variant} ({', '.join(notes)})"


_DOUBTS = {
    SAME: "the same within 2 %",
    AMBIGUOUS: "the rounds do not decide which is faster",
    SLOWER: "slower round by round",
}
"""What is added to a ratio that the rounds do not bear out."""

_FEW = {0: "no round in common", 1: "too few rounds: not replicated", 2: "two rounds are too few to decide it"}
"""The same where it says little of the two engines: of two rounds the t-interval reaches 12.7 times half of their difference either way."""


def _is_eager(line: Line) -> bool:
    """Eager as the module was trained: one in a CUDA graph, or folded, is an optimisation of it."""
    return line.variant == str(Variant(BASELINE.runtime, Variant.parse(line.variant).precision))


def _absent(section: Section) -> str:
    line = section.by_variant.get(str(BASELINE))
    return f"this set has no {BASELINE}" if line is None else f"{BASELINE} is {line.verdict} in this set"


def _joined(parts: list[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
