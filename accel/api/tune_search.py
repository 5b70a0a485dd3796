"""The search of `accel tune`: one candidate after another, each exported, verified and timed beside the best so far in one set."""

from __future__ import annotations

import dataclasses
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accel import runtimes
from accel.api import rebuilding
from accel.api.exporting import export
from accel.api.tune_steps import Budget, Step, wider
from accel.bench import decision, pairing
from accel.bench.candidates import Candidate, Failure, Job, resolve, threads_on
from accel.bench.comparison import VERDICTS, estimate, judge
from accel.bench.coordinate import run_set
from accel.bench.launch import Launcher, interpreter
from accel.bench.plan import MeasurementPlan
from accel.bench.results import ResultSet
from accel.bench.settings import BenchSettings
from accel.bench.summary import HEADLINE, Line, lines
from accel.bench.verification import Verification, verify_variants
from accel.engines import Bundle
from accel.errors import AccelError, DiskFull, GateError, IncompatibleArtifact, PrecisionError
from accel.progress import Progress, silent
from accel.types import Variant

logger = logging.getLogger(__name__)

NOT_TRIED = "NOT TRIED"
"""The verdict of a candidate that the budget kept from running; the others are those of rows and of comparisons."""

CONFIRMED = "confirmation"
"""What the table calls the last set: the best against the baseline, where no set has held them together yet."""


@dataclasses.dataclass(frozen=True)
class Tried:
    """One candidate; None where there is nothing to say.

    Attributes:
        identity: of what ran, as `engines.identity` hashes it.
        against: the best when it was tried, which it had to beat; None for the baseline.
        top1, top1_reference, n_flips: percent and count, of its verification.
        p50_us, against_p50_us: median host latency in the set of the two, all rounds pooled.
        ratio, ratio_lo, ratio_hi: candidate over `against`, paired over rounds, with its 95 % interval; below 1 is faster.
        verdict: of the comparison; of the candidate where there is none (OK for a baseline, MISSING, INVALID, NOT TRIED, …).
        decision, why: by `accel.bench.decision.RULE`.
        set_id: the set that timed it.
        took_s: to export, verify and time it.
    """

    step: str
    variant: str
    identity: str = ""
    against: str | None = None
    against_identity: str | None = None
    top1: float | None = None
    top1_reference: float | None = None
    n_flips: int | None = None
    p50_us: float | None = None
    against_p50_us: float | None = None
    ratio: float | None = None
    ratio_lo: float | None = None
    ratio_hi: float | None = None
    rounds: int | None = None
    verdict: str = NOT_TRIED
    decision: str = decision.REFINE
    why: str = ""
    remedy: str | None = None
    refusals: tuple[str, ...] = ()
    set_id: str | None = None
    took_s: float = 0.0

    @property
    def timed(self) -> bool:
        """Whether it was measured and judged: such a row is read from the record and not run again."""
        return self.verdict in VERDICTS or self.decision == decision.BASE

    @property
    def failed_gate(self) -> bool:
        return decision.failed_gate(self.verdict, self.refusals)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tried:
        known = {field.name for field in dataclasses.fields(cls)}
        values = {key: value for key, value in data.items() if key in known}
        return cls(**{**values, "refusals": tuple(values.get("refusals", ()))})


@dataclasses.dataclass
class Search:
    """One tuning of one bundle on one device.

    Attributes:
        settings: gates, data and interpreters, for verification and sets.
        out: where the sets get their folders.
        known: rows on record of the same machine, plan, gates and data.
        note: called after every row, to put the state on record.
        launch: how a worker is started.
        rows: what was tried, in order.
        baseline, best: the first that passed and was timed, and the fastest of those that were kept; None before there is one.
    """

    bundle: Bundle
    device: str
    plan: MeasurementPlan
    settings: BenchSettings
    out: Path
    budget: Budget
    launch: Launcher
    known: Sequence[Tried] = ()
    note: Callable[[], None] = lambda: None
    progress: Progress = silent
    rows: list[Tried] = dataclasses.field(default_factory=list)
    baseline: Tried | None = None
    best: Tried | None = None

    def run(self, steps: Sequence[Step]) -> None:
        """Try every step; where the gate of one fails, the next wider precision in its place.

        Raises:
            AccelError: what concerns them all: a damaged bundle, data that cannot be read, a full disk.
            KeyboardInterrupt: the rows so far are on record.
        """
        failed: set[tuple[str, str]] = set()
        for step in steps:
            variant: Variant | None = Variant.parse(step.variant)
            while variant is not None:
                kind = variant.runtime, variant.precision
                if kind not in failed:
                    row = self._try(step.what, variant, self.best)
                    self._settle(row)
                    if not row.failed_gate:
                        break
                    failed.add(kind)
                variant = wider(variant)
            if self.best is None and self.rows[-1].verdict == "UNVERIFIED":
                # Without data every other would be unverified too.
                return
        if self.best and self.baseline and self.best.against not in (None, self.baseline.variant):
            row = self._try(CONFIRMED, Variant.parse(self.best.variant), self.baseline)
            if row.decision == decision.DROP:
                self.best = self.baseline
            self._settle(row, final=True)

    def _settle(self, row: Tried, *, final: bool = False) -> None:
        self.rows.append(row)
        if row.decision == decision.BASE:
            self.baseline = self.best = row
        elif row.decision == decision.KEEP and not final:
            self.best = row
        logger.info("%s %s: %s, %s", self.bundle.name, row.variant, row.decision, row.why or f"p50 {row.p50_us:.1f} µs")
        self.note()

    def _try(self, what: str, variant: Variant, parent: Tried | None) -> Tried:
        began = self.budget.now_s()
        row = Tried(what, str(variant))
        if parent:
            row = dataclasses.replace(row, against=parent.variant, against_identity=parent.identity)
        candidate = self._resolved(variant)
        for known in self.known:
            if known.timed and candidate.identity and _same(known, row, candidate.identity):
                self._spent(variant, known)
                return dataclasses.replace(known, step=what)
        if candidate.failure and (candidate.failure.verdict == "REFUSED" or not self._installed(variant)):
            return _unfit(row, candidate.failure)
        refusal = self.budget.refusal(variant.runtime) if parent else None
        if refusal:
            return _unfit(row, Failure(NOT_TRIED, refusal, "run the same command again, or with a larger --budget: it goes on from here"))
        failure = self._make(candidate) if candidate.failure else None
        if failure is None:
            row, failure = self._verified(row, variant)
        row = self._timed(row, parent) if failure is None else _unfit(row, failure)
        row = dataclasses.replace(row, took_s=round(self.budget.now_s() - began, 3))
        if row.timed:
            self._spent(variant, row)
        return row

    def _spent(self, variant: Variant, row: Tried) -> None:
        # The baseline is timed alone, every other beside what it has to beat.
        self.budget.spend(variant.runtime, row.took_s * (1 if row.against else 2))

    def _resolved(self, variant: Variant) -> Candidate:
        with tempfile.TemporaryDirectory(prefix="accel-tune-") as scratch:
            return resolve(self._job(Path(scratch)), [variant])[0]

    def _job(self, scratch: Path) -> Job:
        # As in a set: on a CPU, compiled code is made for a number of threads.
        threads = threads_on(self.device, self.plan.threads)
        return Job(self.bundle, self.device, self.plan.batch, threads, self.settings, scratch, self.launch)

    def _installed(self, variant: Variant) -> bool:
        """Whether its runtime is there; of another interpreter's only its worker can tell."""
        return interpreter(variant.runtime, self.settings.python) != sys.executable or runtimes.version(variant.runtime) is not None

    def _make(self, candidate: Candidate) -> Failure | None:
        """The engine file of a candidate that the bundle lacks, or has for another machine alone; why there is none, or None."""
        variant, failure = candidate.variant, candidate.failure
        format = runtimes.info(variant.runtime).format
        if format is None or failure is None:
            return failure
        precision = runtimes.stored_precision(variant.precision)
        try:
            if failure.exit_code == IncompatibleArtifact.exit_code:
                entry = self.bundle.entry(format, precision, self.plan.batch)
                rebuilding.rebuild(self.bundle, entry, self.device, runtimes.version(variant.runtime) or "")
            else:
                # Whose code it is was asked before the search began.
                where: dict[str, Any] = {"device": self.device, "progress": self.progress, "trusted": True}
                export(str(self.bundle.path), format, precision=precision, batch=self.plan.batch, **where)
        except DiskFull:
            raise
        except GateError as error:
            name = "PRECISION" if isinstance(error, PrecisionError) else "CORRECTNESS"
            return dataclasses.replace(Failure.of(error), verdict="INVALID", refusals=(name,))
        except AccelError as error:
            return Failure.of(error)
        self.bundle = Bundle.open(self.bundle.path)
        return None

    def _verified(self, row: Tried, variant: Variant) -> tuple[Tried, Failure | None]:
        with tempfile.TemporaryDirectory(prefix="accel-tune-") as scratch:
            found: Verification = verify_variants(self._job(Path(scratch)), [variant], self.progress)[0]
        result = found.result
        known = {} if result is None else {name: getattr(result, name) for name in ("top1", "top1_reference", "n_flips")}
        return dataclasses.replace(row, identity=found.candidate.identity, **known), found.failure

    def _timed(self, row: Tried, parent: Tried | None) -> Tried:
        variants = [Variant.parse(name) for name in (row.against, row.variant) if name is not None]
        how: dict[str, Any] = {"progress": self.progress, "launch": self.launch}
        return judged(row, run_set(self.bundle, variants, self.plan, self.device, self.out, self.settings, **how))


def judged(row: Tried, results: ResultSet) -> Tried:
    """`row` with what its set says: medians, the ratio to what it had to beat, verdict and decision."""
    found = {line.variant: line for line in lines(results.rows, results.samples())}
    line, parent = found[row.variant], found.get(row.against or "")
    medians: dict[str, Any] = {"p50_us": _p50(line), "against_p50_us": _p50(parent)}
    row = dataclasses.replace(row, **medians, set_id=results.description["set_id"], verdict=line.verdict)
    if line.verdict != "OK":
        refused = {name for item in results.rows if item["variant"] == row.variant for name in item["refusals"] or ()}
        return _unfit(row, Failure(line.verdict, line.reason or "", line.remedy, refusals=tuple(sorted(refused))))
    if row.against is None:
        return dataclasses.replace(row, decision=decision.BASE, rounds=line.rounds)
    good, left_out = pairing.sides(results.rows, HEADLINE)
    sides = [good.get((line.model, name)) for name in (row.against, row.variant)]
    pair = pairing.Pair(sides[0], sides[1]) if sides[0] and sides[1] else None
    ratios = pair.log_ratios() if pair and not pair.differences() else None
    if pair is None or not ratios:
        lost = left_out.get((line.model, row.against), "the two share no round, machine or inputs")
        return dataclasses.replace(row, why=f"not compared: {row.against} has no good run in this set ({lost})")
    (verdict,) = judge([estimate(ratios)], [pair.floor])
    decided, why = decision.against(verdict, row.against)
    item = verdict.estimate
    ratio: dict[str, Any] = {"ratio": item.ratio, "ratio_lo": item.lo, "ratio_hi": item.hi, "rounds": item.rounds}
    return dataclasses.replace(row, **ratio, verdict=verdict.verdict, decision=decided, why=why)


def _p50(line: Line | None) -> float | None:
    latency = line.latency.get(HEADLINE) if line else None
    return latency.p50_us if latency else None


def _unfit(row: Tried, failure: Failure) -> Tried:
    decided, why = decision.unfit(failure.verdict, failure.reason, failure.refusals)
    return dataclasses.replace(
        row, verdict=failure.verdict, decision=decided, why=why, remedy=failure.remedy, refusals=tuple(failure.refusals)
    )


def _same(known: Tried, row: Tried, identity: str) -> bool:
    """Whether a row on record is of the same bytes, held against the same bytes."""
    return (known.identity, known.against, known.against_identity) == (identity, row.against, row.against_identity)
