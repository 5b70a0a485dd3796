"""How often accel's intervals and verdicts are right, on samples whose truth is known: a seeded simulation, no device, about a minute.

    python benchmarks/interval_coverage.py --check --out results/interval-coverage.json

Latencies are lognormal (5 % within a process), 2,000 a run. Intervals: one process, independent samples or first-order autoregressive ones
with ρ = 0.5. Verdicts: every process is off by a factor of its own, so that the log ratio of two processes of one round has a standard
deviation of 1 %; what a round does to both (2 %) cancels. The functions that run are accel's own: `summarise`, `estimate`, `judge`,
`aa_floor`. With `--check` a bound that is missed is exit code 3; lines without a bound are for information.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accel.bench.comparison import FASTER, FEWEST_AA_PAIRS, SLOWER, aa_floor, default_floor, estimate, judge
from accel.bench.stats import rank, summarise
from accel.types import Array

N = 2000
WITHIN, BETWEEN, OF_ROUND = 0.05, 0.01, 0.02
"""Standard deviations of the log: samples of a process, paired log ratios of processes, what a round does to all of its processes."""
QUANTILES = {50: 0.0, 95: 1.6448536269514722}
"""Percent → quantile of the standard normal distribution."""


class Finding(NamedTuple):
    """One line: the share of repetitions in which something was so, and between which bounds it must lie."""

    what: str
    share: float
    repetitions: int
    least: float | None = None
    most: float | None = None

    @property
    def within(self) -> bool | None:
        if self.least is None and self.most is None:
            return None
        return (self.least or 0.0) <= self.share <= (1.0 if self.most is None else self.most)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    began = time.monotonic()
    found = list(simulate(options.repetitions, options.seed))
    took = time.monotonic() - began
    for line in found:
        print(shown(line))
    print(f"{options.repetitions} repetitions, seed {options.seed}, {took:.0f} s")
    if options.out:
        facts = {"command": " ".join(sys.argv), "seed": options.seed, "n": N, "numpy": np.__version__, "took_s": round(took, 1)}
        lines = [{**line._asdict(), "within": line.within} for line in found]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({**facts, "findings": lines}, indent=1) + "\n", encoding="utf-8")
    return 3 if options.check and any(line.within is False for line in found) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="exit 3 if a bound is missed")
    parser.add_argument("--out", type=Path, help="JSON")
    return parser.parse_args(arguments)


def simulate(repetitions: int, seed: int) -> list[Finding]:
    """Every line of the table; each has a random stream of its own, so that one can be changed without the others."""
    streams = iter(np.random.default_rng(seed).spawn(20))
    found: list[Finding] = []
    # Independent samples are quick: more repetitions tell 95 % from the bounds.
    for of, rho, times, bounds in (("independent", 0.0, 4 * repetitions, (0.93, 0.97)), ("rho 0.5", 0.5, repetitions, (0.90, None))):
        for percent, share in coverage(next(streams), rho, times).items():
            found.append(Finding(f"p{percent} interval holds the truth, {of}", share, times, *bounds))
    for rounds, measured in ((3, True), (5, True), (3, False), (5, False)):
        share = any_verdict(next(streams), rounds, 1, 0.0, measured, repetitions)
        found.append(Finding(f"A/A is called FASTER or SLOWER, {rounds} rounds, {_floor(measured)}", share, repetitions, None, 0.05))
    share = any_verdict(next(streams), 5, 7, 0.0, False, repetitions)
    found.append(Finding("A/A, any of 7 comparisons of a set, 5 rounds, default floor", share, repetitions, None, 0.05))
    for measured in (True, False):
        share = mean_found(next(streams), 5, 1, 0.03, measured, repetitions)
        found.append(Finding(f"3 % is found, 5 rounds, {_floor(measured)}", share, repetitions, 0.95, None))
    for rounds, comparisons in ((3, 1), (5, 7), (10, 7)):
        share = mean_found(next(streams), rounds, comparisons, 0.03, False, repetitions)
        of = "" if comparisons == 1 else f", each of {comparisons} comparisons"
        found.append(Finding(f"3 % is found, {rounds} rounds{of}, default floor", share, repetitions))
    return found


def coverage(draw: np.random.Generator, rho: float, repetitions: int) -> dict[int, float]:
    """Percent → share of the runs whose interval holds the true percentile."""
    inside = dict.fromkeys(QUANTILES, 0)
    for _ in range(repetitions):
        statistics = summarise((np.exp(WITHIN * autoregressive(draw, rho)) * 1e6).astype(np.int64))
        for percent, quantile in QUANTILES.items():
            lo, hi = getattr(statistics, f"p{percent}_lo_us"), getattr(statistics, f"p{percent}_hi_us")
            inside[percent] += lo <= 1000 * math.exp(WITHIN * quantile) <= hi
    return {percent: count / repetitions for percent, count in inside.items()}


def autoregressive(draw: np.random.Generator, rho: float) -> Array:
    """N standard normal numbers, each correlated with the one before by `rho`."""
    noise = draw.standard_normal(N)
    if rho == 0:
        return noise
    from scipy.signal import lfilter

    # The first number has the variance of all; what is added to each later one keeps it so.
    noise[1:] *= math.sqrt(1 - rho * rho)
    return np.asarray(lfilter([1.0], [1.0, -rho], noise))


def verdicts(draw: np.random.Generator, rounds: int, comparisons: int, effect: float, measured: bool, repetitions: int) -> list[list[str]]:
    """The verdicts of each set: `comparisons` variants, each slower by `effect`, against one baseline.

    Args:
        measured: whether the A/A floor is that of FEWEST_AA_PAIRS pairs of further runs; else it is the default.
    """
    slower = np.array([0.0] + [math.log1p(effect)] * comparisons)
    found = []
    for _ in range(repetitions):
        common = OF_ROUND * draw.standard_normal((rounds, 1))
        logs = np.log(medians(draw, slower + common + process(draw, (rounds, comparisons + 1))))
        floor = default_floor(rounds)
        if measured:
            again = np.log(medians(draw, process(draw, (FEWEST_AA_PAIRS, 2))))
            floor = aa_floor((again[:, 1] - again[:, 0]).tolist(), rounds)
        estimates = [estimate((logs[:, 1 + index] - logs[:, 0]).tolist()) for index in range(comparisons)]
        found.append([item.verdict for item in judge(estimates, [floor] * comparisons)])
    return found


def process(draw: np.random.Generator, shape: tuple[int, int]) -> Array:
    """By how much processes are off, as logs: the difference of two has the standard deviation BETWEEN."""
    return np.asarray(BETWEEN / math.sqrt(2) * draw.standard_normal(shape))


def medians(draw: np.random.Generator, logs: Array) -> Array:
    """The p50 of N samples of each process whose true p50 is exp(log)."""
    noise = WITHIN * draw.standard_normal((*logs.shape, N), dtype=np.float32)
    middle = rank(N, 50) - 1
    return np.asarray(np.exp(logs + np.partition(noise, middle, axis=-1)[..., middle]))


def any_verdict(draw: np.random.Generator, *case: Any) -> float:
    """The share of the sets in which anything was called FASTER or SLOWER."""
    found = verdicts(draw, *case)
    return sum(any(verdict in (FASTER, SLOWER) for verdict in of_set) for of_set in found) / len(found)


def mean_found(draw: np.random.Generator, *case: Any) -> float:
    """The share of the comparisons that were called SLOWER, as they are."""
    found = [verdict for of_set in verdicts(draw, *case) for verdict in of_set]
    return found.count(SLOWER) / len(found)


def shown(line: Finding) -> str:
    bounds = {
        (False, False): f"{line.least or 0:.0%} to {line.most or 0:.0%}",
        (False, True): f"at least {line.least or 0:.0%}",
        (True, False): f"at most {line.most or 0:.0%}",
        (True, True): "",
    }[line.least is None, line.most is None]
    verdict = {True: "ok", False: "MISSED", None: ""}[line.within]
    return f"{line.what:<68} {line.share:7.2%}   {bounds:<13} {verdict}".rstrip()


def _floor(measured: bool) -> str:
    return f"floor of {FEWEST_AA_PAIRS} A/A pairs" if measured else "default floor"


if __name__ == "__main__":
    sys.exit(main())
