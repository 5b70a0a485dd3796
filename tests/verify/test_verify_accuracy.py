from __future__ import annotations

import math

import numpy as np
import pytest

from accel.errors import UsageError
from accel.verify.accuracy import Gates, VerifyResult, from_parity, judge, mcnemar

N = 1000


def one_hot(classes: np.ndarray) -> np.ndarray:
    return np.eye(10, dtype=np.float32)[classes]


LABELS = np.arange(N) % 10
REFERENCE = one_hot(LABELS)


def with_errors(count: int) -> np.ndarray:
    wrong = LABELS.copy()
    wrong[:count] = (wrong[:count] + 1) % 10
    return one_hot(wrong)


@pytest.mark.parametrize(
    ("lost", "gained", "p"), [(1, 9, 0.021484375), (9, 1, 0.021484375), (0, 0, 1.0), (5, 5, 1.0), (0, 1, 1.0), (0, 10, 2 / 1024)]
)
def test_mcnemar_is_the_exact_two_sided_binomial(lost, gained, p):
    assert mcnemar(lost, gained) == p


def test_mcnemar_is_exact_for_thousands_of_pairs():
    lost, gained = 1200, 1300
    expected = 2 * sum(math.comb(2500, k) for k in range(1201)) / 2**2500

    assert mcnemar(lost, gained) == pytest.approx(expected, rel=1e-12)
    assert 0 < mcnemar(2000, 3000) < 1e-40


def test_equal_predictions_pass_with_no_flips():
    result = judge(REFERENCE * 2, REFERENCE, LABELS, Gates(min_top1=85))

    assert (result.top1, result.top1_reference, result.n_test, result.n_flips, result.mcnemar_p) == (100, 100, N, 0, 1)
    assert (result.max_abs_err, result.max_rel_err, result.passed, result.reason) == (1, 1, True, "")


@pytest.mark.parametrize(("errors", "passed"), [(5, True), (6, False)])
def test_the_drop_may_be_half_a_point_and_no_more(errors, passed):
    result = judge(with_errors(errors), REFERENCE, LABELS, Gates())

    assert result.passed is passed
    assert passed or "0.60 points" in result.reason


@pytest.mark.parametrize(("errors", "passed"), [(7, True), (8, False)])
def test_a_smaller_drop_fails_when_it_is_no_chance(errors, passed):
    # 7 one-sided pairs: p = 0.0156; 8: p = 0.0078.
    result = judge(with_errors(errors), REFERENCE, LABELS, Gates(max_drop=5))

    assert result.passed is passed
    assert passed or "no chance" in result.reason


def test_a_tenth_of_a_point_is_allowed_however_certain():
    labels = np.arange(100_000) % 10
    wrong = labels.copy()
    wrong[:100] = (wrong[:100] + 1) % 10

    assert judge(one_hot(wrong), one_hot(labels), labels, Gates()).passed


@pytest.mark.parametrize(("floor", "passed"), [(99.5, True), (99.6, False)])
def test_the_floor_is_the_engines_own(floor, passed):
    result = judge(with_errors(5), REFERENCE, LABELS, Gates(min_top1=floor))

    assert (result.top1, result.passed) == (99.5, passed)


def test_outputs_that_are_not_finite_get_no_score():
    outputs = REFERENCE.copy()
    outputs[3, 2] = np.nan

    result = judge(outputs, REFERENCE, LABELS, Gates())

    assert (result.top1, result.passed) == (None, False)
    assert "1 of 1000" in result.reason


def test_a_metric_of_ones_own_replaces_top1():
    result = judge(REFERENCE, REFERENCE, LABELS, Gates(), metric=lambda outputs, labels: 42.0, metric_name="mine:fn")

    assert (result.metric, result.top1, result.n_flips, result.mcnemar_p, result.passed) == ("mine:fn", 42.0, None, None, True)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lambda outputs, labels: {}["f1"], "metric mine:fn failed: KeyError: 'f1'"),
        (lambda outputs, labels: "high", "metric mine:fn failed: ValueError"),
        (lambda outputs, labels: math.nan, "metric mine:fn answered nan"),
    ],
)
def test_a_metric_that_fails_or_answers_no_number_is_named_and_passes_nothing(metric, said):
    with pytest.raises(UsageError, match=said):
        judge(REFERENCE, REFERENCE, LABELS, Gates(), metric=metric, metric_name="mine:fn")


def test_a_model_that_is_no_classifier_has_parity_alone():
    result = from_parity({"status": "failed", "reason": "far off", "max_abs_err": 1.0, "max_rel_err": 0.5}, n_test=8)

    assert (result.top1, result.passed, result.reason, result.metric) == (None, False, "far off", "parity")


def test_a_result_survives_json():
    result = judge(with_errors(3), REFERENCE, LABELS, Gates())

    assert VerifyResult.from_dict({**result.to_dict(), "dataset": "cifar10"}) == result


def test_outputs_of_another_dataset_are_refused():
    with pytest.raises(UsageError, match="do not belong together"):
        judge(REFERENCE[:10], REFERENCE, LABELS, Gates())


def test_labels_that_are_no_classes_of_the_model_are_refused():
    # Counted from 1, or of another model: every sample of the last class would be wrong, and the engine would be blamed for it.
    outputs = np.eye(3, dtype=np.float32)

    with pytest.raises(UsageError, match="labels go up to 3, and the model has 3 classes, numbered from 0"):
        judge(outputs, outputs, np.array([1, 2, 3]), Gates())
