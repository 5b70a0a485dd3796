"""Variants against themselves: two runs of one variant differ by chance alone, and the harness must not say otherwise.

An A/A set is a set whose consecutive rounds are the pairs (`pairing.aa_pairs`). Which run of a pair is A and which is A′ is the order that
`plan.order` gives two variants in consecutive rounds: what drifts evenly over the set meets both alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from accel.bench import pairing
from accel.bench.columns import LATENCY_KINDS
from accel.bench.comparison import AMBIGUOUS, LEAST_EFFECT, SAME, Judged, aa_floor, estimate, judge
from accel.bench.floors import ROUNDS_SHOWN, percent
from accel.bench.plan import order
from accel.bench.results import Row

KINDS = ("host_us", "device_us", "e2e_us")
"""Latency kinds that are judged, those of the table; a CPU has no device_us."""

A = "A"
PRIMED = "A′"


@dataclasses.dataclass(frozen=True)
class AgainstItself:
    """One variant and latency kind of an A/A set.

    Attributes:
        log_ratios: of the later run of each pair over the earlier.
        judged: A′ against A.
    """

    model: str
    variant: str
    kind: str
    log_ratios: tuple[float, ...]
    judged: Judged

    @property
    def passed(self) -> bool:
        return self.judged.verdict in (SAME, AMBIGUOUS)

    @property
    def floor(self) -> float:
        """The A/A floor over ROUNDS_SHOWN rounds, as a log ratio."""
        return aa_floor(self.log_ratios, ROUNDS_SHOWN)

    def to_dict(self) -> dict[str, Any]:
        """For a set's description; ratios are those of A′ over A."""
        found = self.judged.estimate
        judged = {"verdict": self.judged.verdict, "ratio": found.ratio, "ratio_lo": found.lo, "ratio_hi": found.hi, "pairs": found.rounds}
        of_floor = {"floor_pct": percent(self.floor), "floor_rounds": ROUNDS_SHOWN}
        return {"model": self.model, "variant": self.variant, "latency_kind": self.kind, **judged, **of_floor}

    def describe(self) -> str:
        """`eager:fp32 of resnet18, host_us: floor 1.41 % over 3 rounds, which decides; A′ against A is SAME (ratio 1.001, …)`."""
        found = self.judged.estimate
        told = f"{self.judged.verdict} (ratio {found.ratio:.4f}, {found.lo:.4f} to {found.hi:.4f}, {found.rounds} pairs)"
        return f"{self.variant} of {self.model}, {self.kind}: {floor_said(self.floor)}; {PRIMED} against {A} is {told}"


def judge_set(rows: Sequence[Row], seed: int) -> list[AgainstItself]:
    """Every variant of an A/A set against itself, for each of KINDS that it has, judged together.

    Args:
        seed: the set's own, from which the order of its rounds was drawn.
    """
    found = [(key, kind, ratios) for kind in KINDS for key, ratios in pairing.aa_log_ratios(rows, kind).items()]
    signed = [_signed(ratios, seed) for _, _, ratios in found]
    # The floor of these very runs would excuse them: what is asked of them is the least effect alone.
    judged = judge([estimate(ratios) for ratios in signed], [LEAST_EFFECT] * len(signed))
    return [AgainstItself(*key, kind, tuple(ratios), item) for (key, kind, ratios), item in zip(found, judged, strict=True)]


def log_ratios(rows: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
    """Of an A/A set, as `floors.keep` takes them: every latency kind of every variant."""
    found: dict[str, dict[str, list[float]]] = {}
    for kind in LATENCY_KINDS:
        for (model, variant), ratios in pairing.aa_log_ratios(rows, kind).items():
            found.setdefault(f"{model} {variant}", {})[kind] = ratios
    return found


def floor_said(floor: float) -> str:
    """The floor in percent, and whether it is what a difference must reach to be called FASTER or SLOWER."""
    least = percent(LEAST_EFFECT)
    decides = "which decides" if floor > LEAST_EFFECT else f"so the least effect of {least:g} % decides"
    return f"floor {percent(floor):.2f} % over {ROUNDS_SHOWN} rounds, {decides}"


def _signed(ratios: Iterable[float], seed: int) -> list[float]:
    """ln(A′ / A) of each pair."""
    return [ratio if order((A, PRIMED), number, seed)[0] == A else -ratio for number, ratio in enumerate(ratios)]
