from __future__ import annotations

import numpy as np
import pytest

from accel.errors import UnknownName, UsageError
from accel.verify.parity import LIMITS, compare

GOLDEN = {"logits": np.array([[10.0, 0.0, -5.0], [1.0, 2.0, 4.0]], np.float32)}


def shifted(relative: float) -> dict[str, np.ndarray]:
    moved = GOLDEN["logits"].copy()
    moved[0, 2] += relative * 10
    return {"logits": moved}


@pytest.mark.parametrize("precision", LIMITS)
def test_each_precision_has_its_limit_and_both_sides_of_it(precision):
    limit = LIMITS[precision]

    assert compare(shifted(0.9 * limit), GOLDEN, precision)["status"] == "passed"
    failed = compare(shifted(1.1 * limit), GOLDEN, precision)
    assert failed["status"] == "failed"
    assert failed["max_rel_err"] == pytest.approx(1.1 * limit, rel=1e-2)
    assert failed["limit"] == limit


@pytest.mark.parametrize(("margin", "status", "mismatches"), [(0.35, "passed", 0), (0.45, "failed", 1)])
def test_the_argmax_must_agree_where_the_golden_margin_exceeds_twice_the_limit(margin, status, mismatches):
    # fp16 at a scale of 10: absolute limit 0.2, so margins over 0.4 are decided. Each of the two logits moves by 0.23·margin/0.45.
    golden = {"logits": np.array([[1.0, 1.0 + margin, 10.0 - 20]], np.float32)}
    crossing = {"logits": golden["logits"] + np.array([[margin * 0.51, -margin * 0.51, 0]], np.float32)}

    found = compare(crossing, golden, "fp16")

    assert (found["status"], found["argmax_mismatches"]) == (status, mismatches)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_never_pass(value):
    outputs = {"logits": GOLDEN["logits"].copy()}
    outputs["logits"][1, 1] = value

    found = compare(outputs, GOLDEN, "bf16")
    backwards = compare(GOLDEN, outputs, "bf16")

    assert (found["status"], found["max_rel_err"]) == ("failed", None)
    assert "1 of 6 values of the engine's output are not finite" in found["reason"]
    assert backwards["status"] == "failed"


def test_a_missing_or_misshapen_output_fails():
    assert "no such output" in compare({}, GOLDEN, "fp32")["reason"]
    assert "(1, 3)" in compare({"logits": GOLDEN["logits"][:1]}, GOLDEN, "fp32")["reason"]


def test_outputs_that_are_no_logits_are_held_by_their_error_alone():
    boxes = {"boxes": np.ones((2, 5, 4), np.float32)}

    assert compare(boxes, boxes, "fp32") == {
        "status": "passed",
        "reason": "",
        "max_abs_err": 0.0,
        "max_rel_err": 0.0,
        "limit": 1e-4,
        "argmax_mismatches": 0,
    }


def test_parity_needs_golden_outputs_and_a_known_precision():
    with pytest.raises(UsageError):
        compare({}, {}, "fp32")
    with pytest.raises(UnknownName):
        compare(GOLDEN, GOLDEN, "int4")
