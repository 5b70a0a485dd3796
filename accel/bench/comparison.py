"""Which of two variants is faster, from one log ratio a round: samples of one process are no replicates, processes are.

Let r = ln(p50_B / p50_A) of each of R rounds. The 95 % interval of the ratio is exp(mean ± t·s/√R); t/√R is 2.48 at R = 3, 1.24 at R = 5,
0.72 at R = 10. `benchmarks/interval_coverage.py` shows how often the verdicts are right.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence

import numpy as np

from accel.errors import UsageError
from accel.optional import require

FASTER, SLOWER, SAME, AMBIGUOUS = "FASTER", "SLOWER", "SAME", "AMBIGUOUS"
VERDICTS = {
    FASTER: "the ratio is below 1 beyond chance, and by at least the floor",
    SLOWER: "the ratio is above 1 beyond chance, and by at least the floor",
    SAME: "the whole interval lies within ±2 %",
    AMBIGUOUS: "these rounds do not decide it: measure more of them",
}

ALPHA = 0.05
LEAST_EFFECT = math.log(1.01)
"""Log ratio of 1 %: less is never called FASTER or SLOWER."""
SAME_WITHIN = (0.98, 1.02)
ASSUMED_SD = 0.01
"""Standard deviation of a paired log ratio where no A/A runs tell it: 1 %."""
FEWEST_AA_PAIRS = 10
_RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The ratio of two variants, B over A: below 1, B is faster.

    Attributes:
        mean: of the log ratios; `ratio` is its exponential, the geometric mean of the rounds' ratios.
        lo, hi: ends of the 95 % interval of the ratio, for this comparison alone; None for one round.
        p: two-sided p-value of the paired t-test; None for one round.
        rounds: how many pairs there are.
    """

    mean: float
    lo: float | None
    hi: float | None
    p: float | None
    rounds: int

    @property
    def ratio(self) -> float:
        return math.exp(self.mean)


@dataclasses.dataclass(frozen=True)
class Judged:
    """An estimate with its verdict.

    Attributes:
        p_holm: p after Holm's correction for all comparisons that were judged together.
        floor: the log ratio that chance alone reaches (A/A), or LEAST_EFFECT if that is larger.
        verdict: a key of VERDICTS.
    """

    estimate: Estimate
    p_holm: float | None
    floor: float
    verdict: str


def estimate(log_ratios: Sequence[float]) -> Estimate:
    """The t-interval of at least one log ratio.

    Raises:
        UsageError: there is none. MissingExtra: scipy is absent.
    """
    values = np.asarray(log_ratios, dtype=np.float64)
    rounds = len(values)
    if rounds == 0:
        raise UsageError("a comparison has no round that both variants took part in")
    mean = float(values.mean())
    if rounds == 1:
        return Estimate(mean, None, None, None, 1)
    t = require("scipy.stats", extra="bench").t(rounds - 1)
    error = float(values.std(ddof=1)) / math.sqrt(rounds)
    half = float(t.ppf(1 - ALPHA / 2)) * error
    # Ratios that are all the same (a scripted clock) leave no doubt, and nothing to divide by.
    p = float(2 * t.sf(abs(mean) / error)) if error > 0 else 0.0 if mean else 1.0
    return Estimate(mean, math.exp(mean - half), math.exp(mean + half), p, rounds)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (1979), in the order given: the family-wise error stays at ALPHA. None is no test and stays None."""
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for done, (p, index) in enumerate(known):
        least = max(least, min(1.0, (len(known) - done) * p))
        adjusted[index] = least
    return adjusted


def judge(estimates: Sequence[Estimate], floors: Sequence[float]) -> list[Judged]:
    """Verdicts of comparisons that are made together.

    FASTER or SLOWER if Holm's p is below ALPHA (so that the interval excludes 1) and the effect is at least max(1 %, floor); else SAME if
    the interval lies within SAME_WITHIN; else AMBIGUOUS.

    Args:
        floors: one A/A floor each, as a log ratio.
    """
    found = []
    for item, p, floor in zip(estimates, holm([item.p for item in estimates]), floors, strict=True):
        least = max(LEAST_EFFECT, floor)
        found.append(Judged(item, p, least, _verdict(item, p, least)))
    return found


def default_floor(rounds: int) -> float:
    """The A/A floor where nothing was measured: 95 % of |mean log ratio| for ASSUMED_SD, 1.96 · 1 % / √R (1.13 % at R = 3)."""
    return 1.96 * ASSUMED_SD / math.sqrt(rounds)


def aa_floor(log_ratios: Sequence[float], rounds: int, seed: int = 0) -> float:
    """The 95th percentile of |mean log ratio| over `rounds` rounds of one variant against itself.

    Args:
        log_ratios: of at least FEWEST_AA_PAIRS pairs of runs of the same variant. Which of the two comes first means nothing, so each
            is drawn with either sign.
        rounds: of the set that the floor is for.

    Raises:
        UsageError: there are too few pairs.
    """
    if len(log_ratios) < FEWEST_AA_PAIRS:
        raise UsageError(
            f"an A/A floor needs at least {FEWEST_AA_PAIRS} pairs of runs of the same variant; {len(log_ratios)} were given",
            remedy="accel bench BUNDLE --runtime VARIANT --aa",
        )
    draw = np.random.default_rng(seed)
    either = np.concatenate([np.asarray(log_ratios), -np.asarray(log_ratios)])
    drawn = either[draw.integers(0, len(either), size=(rounds, _RESAMPLES))]
    return float(np.quantile(np.abs(drawn.mean(axis=0)), 0.95))


def largest_floor(variants: Collection[Sequence[float]], rounds: int) -> float:
    """The A/A floor of a machine: the largest over the variants that were run against themselves often enough.

    Raises:
        UsageError: none was.
    """
    enough = [ratios for ratios in variants if len(ratios) >= FEWEST_AA_PAIRS]
    return max(aa_floor(ratios, rounds) for ratios in enough or [max(variants, key=len, default=())])


def _verdict(item: Estimate, p: float | None, least: float) -> str:
    if item.lo is None or item.hi is None or p is None:
        return AMBIGUOUS
    if p < ALPHA and abs(item.mean) >= least:
        return FASTER if item.mean < 0 else SLOWER
    return SAME if SAME_WITHIN[0] <= item.lo and item.hi <= SAME_WITHIN[1] else AMBIGUOUS
