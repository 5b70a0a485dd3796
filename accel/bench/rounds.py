"""The rounds of a set: those of the plan, then further ones for variants whose runs disagree, each run on record at once.

What runs in a round follows from the record of the rounds before and from nothing else: a set that was killed goes on where it was, and
no run depends on how two variants compare.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from accel.bench import sampling, stability
from accel.bench.candidates import Failure
from accel.bench.launch import ARRAYS
from accel.bench.plan import MeasurementPlan, order
from accel.bench.results import ResultSet, Row
from accel.bench.rows import RowMaker
from accel.bench.telemetry import Telemetry
from accel.bench.verification import Verification
from accel.errors import AccelError
from accel.progress import Progress, silent
from accel.types import Array

REPEATED_FOR = ("host_us", "device_us")
"""Latency kinds that get a variant further runs if they are UNSTABLE; a CPU has only the first."""


@dataclasses.dataclass(frozen=True)
class Rounds:
    """What every run of a set needs."""

    result: ResultSet
    maker: RowMaker
    verifications: Mapping[str, Verification]
    telemetry: Telemetry
    progress: Progress = silent

    @property
    def runnable(self) -> list[str]:
        return [name for name, item in self.verifications.items() if item.runnable]

    def due(self, round_index: int) -> list[str]:
        """The variants that run in a round, on record or not."""
        return due(self.result.rows, self.runnable, round_index, self.maker.plan)

    def of_round(self, round_index: int) -> MeasurementPlan:
        """The plan with the iterations of this round."""
        plan = self.maker.plan
        return dataclasses.replace(plan, iterations=sampling.of_round(self.result, plan, round_index))

    def turn(self, name: str, plan: MeasurementPlan, round_index: int, order_index: int) -> None:
        """Run one variant once, unless that is on record."""
        if (name, round_index) not in self.result.recorded():
            self.result.append(*self._once(self.verifications[name], plan, round_index, order_index))

    def _once(
        self, verification: Verification, plan: MeasurementPlan, round_index: int, order_index: int
    ) -> tuple[list[Row], dict[str, Array]]:
        job, candidate = self.maker.job, verification.candidate
        first = next((row for row in self.result.rows if row["latency_kind"] is not None), None)
        request = job.request("measure", candidate.variant, plan=plan.to_dict())
        try:
            with self.telemetry.watching() as watch:
                answer = job.launch(request, candidate.python, job.folder, silent)
        except AccelError as error:
            failed = dataclasses.replace(verification, failure=Failure.of(error))
            return [self.maker.failed(failed, round_index, order_index)], {}
        with np.load(job.folder / ARRAYS, allow_pickle=False) as arrays:
            samples = {kind: arrays[kind] for kind in arrays.files}
        return self.maker.measured(verification, round_index, order_index, answer, samples, watch, first)


def run_rounds(sets: Sequence[Rounds]) -> None:
    """Run what is not on record yet, round after round, the variants of all sets in one order (`plan.order`)."""
    plan, progress = sets[0].maker.plan, sets[0].progress
    several = len(sets) > 1
    done, total = 0, sum(len(one.runnable) for one in sets) * plan.rounds
    step = "bench " + ", ".join(one.maker.job.bundle.name for one in sets)
    for round_index in itertools.count():
        # By a set's place too: two models may have variants of one name, and be of one name themselves.
        turns = {f"{place} {name}" if several else name: (one, name) for place, one in enumerate(sets) for name in one.due(round_index)}
        if not turns:
            break
        total = max(total, done + len(turns))
        plans = {id(one): one.of_round(round_index) for one, _ in turns.values()}
        for order_index, turn in enumerate(order(list(turns), round_index, plan.seed)):
            one, name = turns[turn]
            progress(f"bench {one.maker.job.bundle.name} {name}", done, total)
            one.turn(name, plans[id(one)], round_index, order_index)
            done += 1
    if total:
        progress(step, done, total)


def due(rows: Sequence[Row], runnable: Sequence[str], round_index: int, plan: MeasurementPlan) -> list[str]:
    """Who runs in a round: all of `runnable` in one of the plan's, then, up to `max_rounds`, those that were UNSTABLE until then."""
    if round_index < plan.rounds:
        return list(runnable)
    if round_index >= plan.max_rounds:
        return []
    before = [row for row in rows if row["round"] is not None and row["round"] < round_index]
    return [name for name in runnable if _disagrees([row for row in before if row["variant"] == name])]


def _disagrees(runs: Sequence[Row]) -> bool:
    # More runs help no variant that failed in one of them: it enters no comparison.
    if any(row["verdict"] in ("ERROR", "INVALID") for row in runs):
        return False
    kinds = ([row for row in runs if row["latency_kind"] == kind] for kind in REPEATED_FOR)
    return any(stability.of_runs(of_kind) == stability.UNSTABLE for of_kind in kinds)
