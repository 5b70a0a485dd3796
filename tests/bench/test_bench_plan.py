from __future__ import annotations

import pytest

from accel.bench.plan import MeasurementPlan, order
from accel.errors import UsageError

NAMES = [f"v{index}" for index in range(8)]


def test_the_cpu_gets_the_quick_plan_and_says_so():
    assert MeasurementPlan.default("cpu").describe() == "CPU quick plan: warm-up 20, 200 iterations (50 end to end), 3 rounds"
    assert MeasurementPlan.default("cuda:0").describe() == "full plan: warm-up 200, 2000 iterations, 3 rounds (to 5 where UNSTABLE)"


def test_a_changed_count_makes_it_a_custom_plan():
    one = MeasurementPlan.default("cpu", threads=1).describe()
    assert one == "CPU quick plan: warm-up 20, 200 iterations (50 end to end), 3 rounds, 1 thread"
    assert MeasurementPlan.default("cpu", iterations=50).describe() == "custom plan: warm-up 20, 50 iterations, 3 rounds"
    assert MeasurementPlan.default("cpu", iterations=None, seed=3, batch=8).describe().startswith("CPU quick plan")


def test_a_count_that_is_asked_for_holds_end_to_end_too():
    assert MeasurementPlan.default("cpu", iterations=150).e2e_iterations is None
    assert MeasurementPlan.default("cpu", rounds=2).e2e_iterations == 50


def test_more_rounds_raise_the_most_rounds():
    def most(device, **changes):
        return MeasurementPlan.default(device, **changes).max_rounds

    assert [most("cuda:0"), most("cuda:0", rounds=2), most("cuda:0", rounds=6), most("cuda:0", rounds=6, max_rounds=8)] == [5, 5, 6, 8]
    # A CPU adds no runs unless it is asked to.
    assert [most("cpu"), most("cpu", rounds=2), most("cpu", rounds=6), most("cpu", max_rounds=4)] == [3, 2, 6, 4]
    with pytest.raises(UsageError, match="max_rounds = 2 and rounds = 3"):
        most("cuda:0", max_rounds=2)


def test_an_adaptive_plan_begins_with_the_least_number_and_says_so():
    plan = MeasurementPlan.default("cuda:0", iterations="auto")

    assert (plan.iterations, plan.adaptive) == (500, True)
    assert plan.describe() == "custom plan: warm-up 200, 500 to 2000 iterations, 3 rounds (to 5 where UNSTABLE)"


def test_an_odd_round_is_the_reverse_of_the_one_before():
    assert order(NAMES, 1, seed=5) == order(NAMES, 0, seed=5)[::-1]
    assert order(NAMES, 2, seed=5) != order(NAMES, 0, seed=5)
    assert sorted(order(NAMES, 2, seed=5)) == NAMES


def test_the_order_repeats_from_its_seed():
    assert order(NAMES, 0, seed=0) == order(NAMES, 0, seed=0)
    assert order(NAMES, 0, seed=0) != order(NAMES, 0, seed=1)


def test_a_plan_survives_json():
    plan = MeasurementPlan.default("cpu", threads=2)

    assert MeasurementPlan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize("change", [{"iterations": 0}, {"rounds": 0}, {"warmup": -1}, {"inputs": 7}, {"threads": 0}, {"e2e_iterations": 0}])
def test_a_plan_that_measures_nothing_is_refused(change):
    with pytest.raises(UsageError, match=next(iter(change))):
        MeasurementPlan(**change)


@pytest.mark.parametrize(("field", "most"), [("iterations", 10_000_000), ("threads", 1024)])
def test_a_plan_that_no_machine_has_the_memory_for_is_refused(field, most):
    MeasurementPlan(**{field: most})
    with pytest.raises(UsageError, match=f"{field} = {most + 1}\n.*at most {most}"):
        MeasurementPlan(**{field: most + 1})
