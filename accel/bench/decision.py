"""Whether an engine is kept: one rule for whoever holds an engine against what it has to beat (the final table, `accel tune`)."""

from __future__ import annotations

from collections.abc import Collection

from accel.bench.comparison import AMBIGUOUS, FASTER, SAME, SLOWER, Judged

BASE, KEEP, DROP, REFINE = "baseline", "keep", "drop", "refine"

RULE = (
    "keep: the gate passes, and the median is FASTER than the parent's by paired rounds of one session. "
    "drop: the gate fails, or the engine is SLOWER than its parent or the SAME. "
    "refine: AMBIGUOUS, not measured, or measured under conditions that void it."
)

DECISIONS = {FASTER: KEEP, SLOWER: DROP, SAME: DROP, AMBIGUOUS: REFINE}

SAID = {FASTER: "FASTER than {}", SLOWER: "SLOWER than {}", SAME: "the SAME as {}", AMBIGUOUS: "AMBIGUOUS against {}"}

GATES = ("CORRECTNESS", "PRECISION")
"""Refusals that are the engine's fault; any other voids the measurement."""


def failed_gate(verdict: str, refusals: Collection[str]) -> bool:
    """Whether the engine itself is at fault; sets of the first version named no refusals: what they called INVALID had failed its gate."""
    return verdict == "INVALID" and (not refusals or bool(set(refusals) & set(GATES)))


def unfit(verdict: str, reason: str | None, refusals: Collection[str]) -> tuple[str, str]:
    """Decision and reason for an engine whose verdict is not OK."""
    said = reason or "no reason is on record"
    if failed_gate(verdict, refusals):
        return DROP, f"its gate failed: {said}"
    return REFINE, f"the measurement is void: {said}" if verdict == "INVALID" else f"{verdict}: {said}"


def against(judged: Judged, parent: str) -> tuple[str, str]:
    """Decision and reason for an OK engine that was held against its parent."""
    return DECISIONS[judged.verdict], SAID[judged.verdict].format(parent)
