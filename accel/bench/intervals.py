"""95 % intervals of a percentile: exact ranks for independent samples, a moving-block bootstrap for samples that depend on one another."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from accel.types import Array

TAIL = 0.025
"""On either side of a 95 % interval."""
AUTOCORRELATED = 0.1
"""Lag-1 autocorrelation above which samples no longer count as independent."""
FEWEST_FOR_RHO1 = 100
"""The standard error of a lag-1 autocorrelation is 1/√n: with fewer samples it exceeds AUTOCORRELATED."""
BLOCK = 50
RESAMPLES = 1000
EXACT = "order-statistic"
BLOCKED = f"wider of order-statistic and moving-block bootstrap (block {BLOCK}, {RESAMPLES} resamples)"


class Interval(NamedTuple):
    """Ends of an interval, in the unit of the samples."""

    lo: float
    hi: float

    @property
    def width(self) -> float:
        return self.hi - self.lo


def rank(n: int, percent: int) -> int:
    """⌈percent/100 · n⌉, counted from 1, in integers: 0.95 · n in floats can land a hair above a whole number."""
    return max(1, -(-percent * n // 100))


@functools.lru_cache(maxsize=256)
def ranks(n: int, percent: int) -> tuple[int, int] | None:
    """The ranks (from 1) of the two order statistics that hold the true percentile with at least 95 % probability.

    The number of independent samples below the percentile is binomial, whatever the distribution: at most 2.5 % lie on either side. None
    where `n` samples do not reach that far (a median needs six).
    """
    below = _binomial(n, percent / 100, (TAIL, 1 - TAIL))
    lo, hi = below[0], below[1] + 1
    return (lo, hi) if lo >= 1 and hi <= n else None


def _binomial(n: int, p: float, parts: tuple[float, ...]) -> list[int]:
    """The smallest k of each of `parts` that as much of a binomial distribution lies at or below, 0 < p < 1.

    scipy has the same; a Python that benches plans needs numpy and TensorRT and nothing else. Every probability is a product of ratios
    from the most probable k on, which never overflows; what lies 12 standard deviations away (e^-72) is left out.
    """
    mode, reach = min(int((n + 1) * p), n), int(12 * math.sqrt(n * p * (1 - p))) + 60
    low, high = max(mode - reach, 0), min(mode + reach, n)
    up, down = np.arange(mode, high), np.arange(mode, low, -1)
    odds = p / (1 - p)
    above = np.cumprod((n - up) / (up + 1) * odds)
    under = np.cumprod(down / (n - down + 1) / odds)[::-1]
    share = np.cumsum(np.concatenate([under, [1.0], above]))
    return [low + int(np.searchsorted(share, part * share[-1])) for part in parts]


def exact(ordered: Array, percent: int) -> Interval | None:
    """The interval of a percentile of ascending, independent samples; None where there are too few."""
    found = ranks(len(ordered), percent)
    return None if found is None else Interval(float(ordered[found[0] - 1]), float(ordered[found[1] - 1]))


def rho1(samples: Array) -> float | None:
    """Lag-1 autocorrelation of samples in the order taken; None for fewer than FEWEST_FOR_RHO1, or if all are the same."""
    if len(samples) < FEWEST_FOR_RHO1 or samples.min() == samples.max():
        return None
    centred = samples - samples.mean()
    return float(centred[:-1] @ centred[1:] / (centred @ centred))


def blocked(samples: Array, percents: tuple[int, ...], seed: int = 0) -> dict[int, Interval]:
    """Percentile intervals from a moving-block bootstrap: RESAMPLES series, each pasted from BLOCK samples in a row at random places.

    Whether a resampled percentile is at most v depends only on how many of its samples are, and that is a sum over its blocks. So no
    series is ever built or sorted: a bisection over the sorted samples finds each end, with one sum per resample and step.

    Args:
        samples: at least BLOCK, in the order taken.
        percents: of 1 to 99.
        seed: of the places; the same samples give the same interval.
    """
    n = len(samples)
    whole, rest = divmod(n, BLOCK)
    places = n - BLOCK + 1
    # One row a place in the series, so that the sums run along whole rows; the last row is of the shorter block.
    starts = np.random.default_rng(seed).integers(0, places, size=(whole + 1, RESAMPLES))
    ordered = np.unique(samples)

    def share(index: int, percent: int) -> float:
        """The part of the resamples whose percentile is at most `ordered[index]`."""
        sums = np.concatenate([[0], np.cumsum(samples <= ordered[index], dtype=np.int32)])
        counts = (sums[BLOCK:] - sums[:places]).take(starts[:whole]).sum(axis=0)
        counts += (sums[rest : rest + places] - sums[:places]).take(starts[whole])
        return float(np.mean(counts >= rank(n, percent)))

    def end(part: float, percent: int) -> float:
        index = bisect.bisect_left(range(len(ordered)), part, key=lambda index: share(index, percent))
        return float(ordered[index])

    return {percent: Interval(end(TAIL, percent), end(1 - TAIL, percent)) for percent in percents}


def of_percentiles(samples: Array, percents: tuple[int, ...], rho: float | None) -> tuple[Mapping[int, Interval | None], str]:
    """The interval of each of `percents`, and how it was found: EXACT, or BLOCKED if `rho` is above AUTOCORRELATED.

    Args:
        samples: in the order taken, any unit.
        rho: what rho1 says of them.
    """
    ordered = np.sort(samples)
    found = {percent: exact(ordered, percent) for percent in percents}
    if rho is None or rho <= AUTOCORRELATED:
        return found, EXACT
    other = blocked(samples, percents)
    wider = {percent: other[percent] if own is None or other[percent].width > own.width else own for percent, own in found.items()}
    return wider, BLOCKED
