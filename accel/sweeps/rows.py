"""What is shown of a study: a row a trial, and which trials no other beats in both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accel.sweeps import store

if TYPE_CHECKING:
    from optuna import Study

COLUMNS = ("trial", "state", "front", "top1", "p50_us")


def rows(study: Study) -> list[dict[str, Any]]:
    """Every trial but those that gave way, by number: COLUMNS, its model and fields, then `reason`.

    `state` is `infeasible` where a complete trial is below the floor of accuracy. `front` marks the trials that no feasible one beats in
    one objective without being worse in the other.
    """
    front = {trial.number for trial in study.best_trials}
    found = []
    for trial in study.get_trials(deepcopy=False):
        state = store.state(trial)
        if state == store.SURPLUS:
            continue
        if state == "complete" and any(value > 0 for value in trial.constraints.values()):
            state = "infeasible"
        top1, p50 = trial.values or (None, None)
        shown = {"trial": trial.number, "state": state, "front": "*" if trial.number in front else "", "top1": top1, "p50_us": p50}
        fields = {name.partition(".")[2] or name: value for name, value in trial.params.items()}
        found.append({**shown, **fields, "reason": trial.user_attrs.get(store.REASON)})
    return found


def columns(found: list[dict[str, Any]]) -> list[str]:
    """Of a table of `rows`: the reason last, and only if there is one."""
    names = dict.fromkeys(name for row in found for name in row)
    names.pop("reason", None)
    return [*names, *(["reason"] if any(row["reason"] for row in found) else [])]
