"""Verify variants through workers: every engine on all test samples, beside the reference; known results are looked up."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from accel.bench import proof
from accel.bench.candidates import Candidate, Failure, Job, resolve
from accel.bench.clock import utc_now
from accel.bench.fetching import Outputs, fetch_together, outputs_of, together
from accel.bench.flags import Refused
from accel.bench.launch import interpreter
from accel.engines import Reference, trust, verified, write_reference
from accel.errors import AccelError, DatasetMissing, MissingError, UntrustedArtifact, UsageError
from accel.progress import Progress, silent
from accel.types import Array, Variant
from accel.verify import accuracy
from accel.verify.accuracy import VerifyResult
from accel.verify.data import labels_of, open_data
from accel.verify.metric import resolve as resolve_metric

if TYPE_CHECKING:
    from accel.verify.data import Samples

logger = logging.getLogger(__name__)

REFERENCE = Variant("eager", "fp32")
NO_GOLDEN = Failure(
    "UNVERIFIED",
    "the bundle has no golden outputs, and no labelled data was named",
    "name data with --data, or export the ONNX file again with --force where onnxruntime is installed",
)
MODEL_BELOW = "the FP32 model itself is below that: train it further, or give the floor that it must have as --min-top1"
"""No other export mends it."""
NO_VERIFY = Failure("UNVERIFIED", "verification was not asked for", "leave out --no-verify")


@dataclasses.dataclass(frozen=True)
class Verification:
    """What is known of one variant before it is timed.

    Attributes:
        result: its accuracy (or its parity, for a model that is no classifier); None if it is not known.
        failure: why it must not run (REFUSED, MISSING, ERROR, INVALID) or why nothing is known (UNVERIFIED); None if it passed.
        cached: the result was looked up.
    """

    candidate: Candidate
    result: VerifyResult | None = None
    failure: Failure | None = None
    cached: bool = False

    @property
    def runnable(self) -> bool:
        return self.failure is None or self.failure.verdict == "UNVERIFIED"


def verify_variants(
    job: Job, variants: Sequence[Variant], progress: Progress = silent, *, verify: bool = True, again: bool = False
) -> list[Verification]:
    """Judge every variant; one that cannot run, or fails, carries a failure and does not stop the others.

    Args:
        verify: False only looks up what is known.
        again: True runs everything anew.
    """
    session = _Session(job, progress)
    candidates = resolve(job, variants)
    if verify:
        session.prefetch([item for item in candidates if not item.failure and (again or session.look_up(item) is None)])
    return [session.judge(candidate, verify=verify, again=again) for candidate in candidates]


class _Session:
    """One dataset, one reference, opened when the first variant needs them."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self.job, self.progress = job, progress
        bundle = job.bundle
        self.spec = job.settings.data or (bundle.checkpoint.dataset if bundle.has_checkpoint else "")
        self.gates = job.settings.gates(self.spec)
        self.metric = resolve_metric(job.settings.metric)
        self.known = verified.read(bundle.path)
        self.samples, self.absent = self._open()
        self.reference: Array | None = None
        self.fetched: dict[Variant, Outputs | AccelError] = {}

    def prefetch(self, candidates: Sequence[Candidate]) -> None:
        """Run the samples through several engines at once, where that is possible: nothing is timed here."""
        if self.samples is None or self.parity_only:
            return
        wanted = {candidate.variant: candidate.python for candidate in candidates}
        if wanted and self._stored_reference() is None and self.job.bundle.has_checkpoint:
            wanted = {REFERENCE: interpreter(REFERENCE.runtime, self.job.settings.python)} | wanted
        waiting = list(candidates)
        for variant, outputs in fetch_together(self.job, self.spec, together(self.job, wanted), self.progress):
            self.fetched[variant] = outputs
            if self._stored_reference() is None and REFERENCE not in self.fetched:
                continue
            # Judged, and so recorded, as soon as it can be: an interrupt loses only what is still running.
            for candidate in [item for item in waiting if item.variant in self.fetched]:
                waiting.remove(candidate)
                self.judge(candidate, verify=True, again=True)

    def judge(self, candidate: Candidate, *, verify: bool, again: bool) -> Verification:
        if candidate.failure:
            return Verification(candidate, failure=candidate.failure)
        known = None if again else self.look_up(candidate)
        if known is not None:
            return self._verdict(candidate, known, cached=True)
        if not verify:
            return Verification(candidate, failure=NO_VERIFY)
        try:
            return self._run(candidate)
        except AccelError as error:
            return Verification(candidate, failure=Failure.of(error))

    def _open(self) -> tuple[Samples | None, Failure | None]:
        if not self.spec:
            if not self.job.bundle.labels:
                return None, None
            return None, Failure("UNVERIFIED", "the bundle names no dataset to verify on", "name one with --data")
        try:
            if not self.job.settings.data:
                trust.demand_test_data(self.job.bundle)
            samples = open_data(self.spec)
        except (DatasetMissing, UntrustedArtifact) as error:
            return None, Failure("UNVERIFIED", error.message, error.remedy)
        if samples.labels is None:
            logger.warning("%s has no labels: parity with the golden samples is all that is judged", self.spec)
        return samples, None

    @property
    def parity_only(self) -> bool:
        """No labelled samples exist for this model; samples that are merely absent are another matter."""
        return self.absent is None and (self.samples is None or self.samples.labels is None)

    def look_up(self, candidate: Candidate) -> VerifyResult | None:
        data = self.known.get(candidate.identity)
        wanted = "parity" if self.parity_only else self.job.settings.metric
        if data is None or data.get("dataset") != self.spec or data.get("metric") != wanted:
            return None
        if self.samples is not None and data.get("dataset_sha256") != self.samples.sha256:
            return None
        return accuracy.gate(VerifyResult.from_dict(data), self.gates)

    def _run(self, candidate: Candidate) -> Verification:
        if self.samples is None or self.parity_only:
            return self._run_parity(candidate)
        samples, bundle = self.samples, self.job.bundle
        labels = matched_labels(samples, bundle.labels)
        try:
            reference = self._reference(candidate)
        except MissingError as error:
            # Without torch a reference cannot be made: what can still be held is parity.
            reason = f"there are no reference logits, and they cannot be made here: {error.message}"
            self.absent = Failure("UNVERIFIED", reason, error.remedy)
            self.samples = None
            return self._run_parity(candidate)
        outputs, facts = self._outputs(candidate.variant, candidate.python, self.job)
        result = accuracy.judge(
            outputs, reference.reshape(outputs.shape), labels, self.gates, metric=self.metric, metric_name=self.job.settings.metric
        )
        return self._finish(candidate, result, facts, dataset_sha256=samples.sha256)

    def _run_parity(self, candidate: Candidate) -> Verification:
        if not self.job.bundle.golden().outputs:
            return Verification(candidate, failure=self.absent or NO_GOLDEN)
        request = self.job.request("parity", candidate.variant)
        answer = self.job.launch(request, candidate.python, self.job.folder, self.progress)
        result = accuracy.from_parity(answer["parity"], n_test=len(self.job.bundle.golden()))
        if not self.absent:
            return self._finish(candidate, result, answer["facts"], dataset_sha256="")
        if not result.passed:
            return self._verdict(candidate, result)
        return Verification(candidate, failure=self._misfit(candidate, answer["facts"]) or self.absent)

    def _finish(self, candidate: Candidate, result: VerifyResult, facts: Mapping[str, Any], dataset_sha256: str) -> Verification:
        misfit = self._misfit(candidate, facts)
        if misfit:
            return Verification(candidate, result, misfit)
        # What fell back was not what the identity names: its result must not be found again.
        if not facts.get("fallback"):
            context = {"dataset": self.spec, "dataset_sha256": dataset_sha256, "variant": str(candidate.variant), "verified_utc": utc_now()}
            self.known[candidate.identity] = {**result.to_dict(), **context}
            verified.record(self.job.bundle.path, candidate.identity, self.known[candidate.identity])
        return self._verdict(candidate, result)

    def _misfit(self, candidate: Candidate, facts: Mapping[str, Any]) -> Failure | None:
        found = proof.mismatches(facts, candidate.variant, self.job.device)
        return Failure.refused(found) if found else None

    def _verdict(self, candidate: Candidate, result: VerifyResult, *, cached: bool = False) -> Verification:
        failure = None if result.passed else Failure.refused([Refused("CORRECTNESS", result.reason)])
        floor, own = self.gates.min_top1, result.top1_reference
        if failure is not None and floor is not None and own is not None and own < floor:
            failure = dataclasses.replace(failure, remedy=MODEL_BELOW)
        return Verification(candidate, result, failure, cached)

    def _reference(self, asked_by: Candidate) -> Array:
        """The FP32 reference on these samples: read, or made by the first verification (eager; a bare ONNX file's on the CPU)."""
        if self.reference is not None:
            return self.reference
        stored = self._stored_reference()
        if stored is not None:
            self.reference = stored.logits
            return self.reference
        bundle, samples = self.job.bundle, self.samples
        variant, job = REFERENCE, self.job
        if not bundle.has_checkpoint:
            variant, job = Variant("onnxruntime", "fp32"), dataclasses.replace(self.job, device="cpu")
        python = asked_by.python if variant == asked_by.variant else interpreter(variant.runtime, job.settings.python)
        outputs, facts = self._outputs(variant, python, job)
        wrong = proof.mismatches(facts, variant, job.device)
        if wrong:
            raise AccelError(f"the reference {variant} cannot be trusted: {wrong[0].reason}", remedy="run `accel doctor`")
        self.reference = outputs.reshape(len(outputs), -1)
        digest = bundle.checkpoint.sha256 if bundle.has_checkpoint else next(iter(bundle.entry("onnx", "fp32", job.batch).files.values()))
        if samples is not None:
            write_reference(bundle.path, Reference(self.reference, digest, samples.sha256))
        return self.reference

    def _stored_reference(self) -> Reference | None:
        stored = self.job.bundle.reference()
        if self.samples is None or stored is None or stored.dataset_sha256 != self.samples.sha256:
            return None
        return stored

    def _outputs(self, variant: Variant, python: str, job: Job) -> Outputs:
        """All outputs of a variant; what was fetched before, or as the reference's own pass, is not run twice."""
        fetched = self.fetched.get(variant) if job is self.job else None
        if fetched is None:

            def told(step: str, done: float, total: float | None = None) -> None:
                self.progress(f"verify {job.bundle.name} {variant}", done, total)

            fetched = outputs_of(job, self.spec, variant, python, silent if self.progress is silent else told)
            if variant == REFERENCE and job is self.job:
                self.fetched[variant] = fetched
        if isinstance(fetched, AccelError):
            raise fetched
        return fetched


def matched_labels(samples: Samples, names: tuple[str, ...]) -> Array:
    """The labels of `samples` as numbers of the model's classes, matched by name where both sides name them.

    Raises:
        UsageError: the samples have no labels, or classes that the model does not know.
    """
    labels = labels_of(samples)
    if labels is None:
        raise UsageError(f"{samples.name} has no labels", remedy="name labelled data with --data")
    if not names or not samples.classes or tuple(samples.classes) == tuple(names):
        return labels
    unknown = [name for name in samples.classes if name not in names]
    if unknown:
        raise UsageError(
            f"{samples.name} has the classes {', '.join(unknown[:5])}, which the model does not know",
            remedy=f"name the classes as the model does: {', '.join(names[:10])}",
        )
    table: Array = np.array([names.index(name) for name in samples.classes], dtype=np.int64)
    numbers: Array = table[labels]
    return numbers
