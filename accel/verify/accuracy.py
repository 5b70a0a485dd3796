"""Top-1 beside the FP32 reference: how far it fell, how many predictions flipped, and whether that could be chance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from accel.errors import UsageError, of_users_code
from accel.types import Array

Metric = Callable[[Array, Array], float]
"""`fn(outputs, labels) -> percent`: outputs are float32, one row a sample, of the bundle's first output; higher is better."""

MIN_TOP1: Mapping[str, float] = {"cifar10": 85.0}
"""Dataset → the top-1 that its users need at least, in percent; other datasets have no floor."""


@dataclasses.dataclass(frozen=True)
class Gates:
    """What an engine must hold to pass, in percentage points.

    Attributes:
        max_drop: the largest fall below the reference.
        small_drop, alpha: a fall over `small_drop` fails too if McNemar's p is under `alpha`: small, and not chance.
        min_top1: the floor for the engine itself; None has no floor.
    """

    max_drop: float = 0.5
    small_drop: float = 0.1
    alpha: float = 0.01
    min_top1: float | None = None


@dataclasses.dataclass(frozen=True)
class VerifyResult:
    """The accuracy of one engine's bytes on one dataset, and whether it is good enough.

    Attributes:
        top1, top1_reference: in percent (of `metric`); None where the model is no classifier ("n/a") and parity alone was judged.
        n_test: how many samples were run.
        n_flips: samples that the engine predicts differently from the reference.
        mcnemar_p: exact and two-sided, over the discordant pairs.
        max_abs_err, max_rel_err: of the outputs against the reference's; None if one is not finite.
        reason: why it failed; empty if it passed.
    """

    top1: float | None
    top1_reference: float | None
    n_test: int
    n_flips: int | None
    mcnemar_p: float | None
    max_abs_err: float | None
    max_rel_err: float | None
    passed: bool
    reason: str = ""
    metric: str = "top1"

    @property
    def drop(self) -> float | None:
        """Points below the reference; negative for a gain."""
        return None if self.top1 is None or self.top1_reference is None else self.top1_reference - self.top1

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VerifyResult:
        """Read `to_dict`'s mapping; keys that other readers added are left alone."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})


def mcnemar(lost: int, gained: int) -> float:
    """The exact two-sided p of McNemar's test: min(1, 2·P(X ≤ min(lost, gained))), X ~ Binomial(lost + gained, 1/2).

    Args:
        lost, gained: samples that only the reference, or only the engine, has right.

    The sum runs over Python's integers, so it is exact for any number of pairs; only the last division rounds.
    """
    pairs, few = lost + gained, min(lost, gained)
    term = total = 1
    for k in range(few):
        term = term * (pairs - k) // (k + 1)
        total += term
    return min(1.0, 2 * total / (1 << pairs))


def judge(
    outputs: Array, reference: Array, labels: Array, gates: Gates, *, metric: Metric | None = None, metric_name: str = "top1"
) -> VerifyResult:
    """Compare an engine's outputs on a labelled dataset with the FP32 reference's on the same samples, in the same order.

    Args:
        outputs, reference: float32, N×C (any shape with N rows under a `metric` of one's own).
        labels: int64, N.
        metric: replaces top-1; there are then no flips and no p, and the gates hold on its percent.

    Raises:
        UsageError: the three do not belong together, the metric fails or answers no number, or a label is no class of the model's.
    """
    if outputs.shape != reference.shape or len(labels) != len(outputs) or not len(outputs):
        raise UsageError(
            f"outputs {outputs.shape}, reference {reference.shape} and {len(labels)} labels do not belong together",
            remedy="verify again, so that reference.npz is written for this dataset",
        )
    if metric is None and outputs.ndim != 2:
        raise UsageError(f"top-1 needs N×C outputs and these are {outputs.shape}", remedy="name a metric: --metric package.module:function")
    n_test = len(outputs)
    if metric is None and int(labels.max()) >= outputs.shape[1]:
        # Such a sample can never be right: a score would say of the engine what is true of the labels.
        raise UsageError(
            f"the labels go up to {int(labels.max())}, and the model has {outputs.shape[1]} classes, numbered from 0",
            remedy="number the labels as the model's outputs are, the first 0; or name the classes in the data",
        )
    if not np.isfinite(outputs).all():
        # argmax of a NaN is an index like any other: such an engine must not get a score at all.
        reason = f"the outputs of {_bad_rows(outputs)} of {n_test} samples are not finite"
        return VerifyResult(None, None, n_test, None, None, None, None, passed=False, reason=reason, metric=metric_name)
    errors = _errors(outputs, reference)
    if metric is not None:
        score, wanted_score = (_score(metric, metric_name, answers, labels) for answers in (outputs, reference))
        result = VerifyResult(score, wanted_score, n_test, None, None, *errors, True)
    else:
        predicted, wanted = outputs.argmax(axis=1), reference.argmax(axis=1)
        right, right_reference = predicted == labels, wanted == labels
        result = VerifyResult(
            top1=100.0 * int(right.sum()) / n_test,
            top1_reference=100.0 * int(right_reference.sum()) / n_test,
            n_test=n_test,
            n_flips=int((predicted != wanted).sum()),
            mcnemar_p=mcnemar(int((right_reference & ~right).sum()), int((right & ~right_reference).sum())),
            max_abs_err=errors[0],
            max_rel_err=errors[1],
            passed=True,
        )
    return gate(dataclasses.replace(result, metric=metric_name), gates)


def _score(metric: Metric, name: str, answers: Array, labels: Array) -> float:
    try:
        score = float(metric(answers, labels))
    except Exception as error:
        raise of_users_code(f"the metric {name} failed", error) from error
    if not math.isfinite(score):
        # No gate holds a NaN: it would pass.
        raise UsageError(f"the metric {name} answered {score}", remedy="let it return a percentage")
    return score


def gate(result: VerifyResult, gates: Gates) -> VerifyResult:
    """Apply `gates` to numbers that were measured before; a result without a score keeps its verdict."""
    if result.top1 is None or result.drop is None:
        return result
    # Percentages of the same n differ by multiples of 100/n: rounding only removes the float's own noise at the limit.
    drop, p = round(result.drop, 9), result.mcnemar_p
    reasons = []
    if drop > gates.max_drop:
        reasons.append(f"{result.metric} fell by {drop:.2f} points to {result.top1:.2f} %; at most {gates.max_drop:g} are allowed")
    elif drop > gates.small_drop and p is not None and p < gates.alpha:
        reasons.append(f"{result.metric} fell by {drop:.2f} points to {result.top1:.2f} %, and that is no chance (McNemar p = {p:.2g})")
    if gates.min_top1 is not None and result.top1 < gates.min_top1:
        reasons.append(f"{result.metric} is {result.top1:.2f} %; at least {gates.min_top1:g} % are needed")
    return dataclasses.replace(result, passed=not reasons, reason="; ".join(reasons))


def from_parity(parity: Mapping[str, Any], n_test: int) -> VerifyResult:
    """What can be said of a model that is no classifier, or of one without labelled images: parity alone, top-1 "n/a"."""
    reason = str(parity.get("reason", ""))
    errors = parity.get("max_abs_err"), parity.get("max_rel_err")
    return VerifyResult(None, None, n_test, None, None, *errors, passed=parity["status"] == "passed", reason=reason, metric="parity")


def _bad_rows(outputs: Array) -> int:
    return int((~np.isfinite(outputs)).reshape(len(outputs), -1).any(axis=1).sum())


def _errors(outputs: Array, reference: Array) -> tuple[float | None, float | None]:
    if not np.isfinite(reference).all():
        return None, None
    largest = float(np.abs(outputs.astype(np.float64) - reference).max())
    return largest, largest / (float(np.abs(reference).max()) or 1.0)
