"""A worker: takes one trial of a shared study after another until there are as many as were wanted."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from accel.errors import (
    AccelError,
    ArtifactError,
    BundleMissing,
    DatasetMissing,
    DeviceUnavailable,
    DiskFull,
    MissingExtra,
    RuntimeUnavailable,
    UnknownName,
)
from accel.optional import require
from accel.progress import Progress, silent
from accel.sweeps import store
from accel.sweeps.space import Space

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler

logger = logging.getLogger(__name__)

SAMPLERS = ("tpe", "nsga2")
POPULATION = 12
"""Of NSGA-II: its default of 50 would make most sweeps one generation of random settings."""

STOPS: tuple[type[AccelError], ...] = (
    ArtifactError,
    BundleMissing,
    DatasetMissing,
    DeviceUnavailable,
    DiskFull,
    MissingExtra,
    RuntimeUnavailable,
    UnknownName,
)
"""Errors that every trial would have: the sweep ends with the first. All others of accel's are the setting's, and the next one is tried."""

HOPELESS = 5
"""Trials that have all failed, and none has not, after which a sweep ends."""

COUNTED = ("complete", "failed", "running")
"""States of trials that count towards the number that was wanted."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a setting is worth: top-1 in percent on held-out images, the median latency in microseconds, and what else is kept."""

    top1: float
    p50_us: float
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Objective = Callable[[str, Mapping[str, Any], int], Outcome]
"""(model, field → value, number of the trial) → what it is worth; raises AccelError."""


class Passed(Exception):
    """A trial that ends without a result, which was said already."""


def work(
    study: Study,
    spaces: Mapping[str, Space],
    objective: Objective,
    *,
    trials: int,
    min_top1: float | None = None,
    seed: int = 0,
    sampler: str = "tpe",
    take_over: bool = False,
    progress: Progress = silent,
) -> None:
    """Go on until the study has `trials` trials that are complete, failed or running elsewhere.

    Args:
        spaces: by model; of several, the model is searched too.
        min_top1: in percent; a complete trial below it is infeasible.
        take_over: first end the trials of processes of which this host cannot say whether they live.

    Raises:
        AccelError: one of STOPS, or HOPELESS. KeyboardInterrupt: the trial that ran will be begun again by whoever resumes.
    """
    optuna = require("optuna", extra="sweep")
    study.sampler = seeded(sampler, seed)
    exceptions = (optuna.exceptions.UpdateFinishedTrialError,)
    while True:
        if ended := store.reap(study, others=take_over):
            logger.info("trial %s: its process is dead; its setting is tried again", ", ".join(map(str, ended)))
        take_over = False
        found = [store.state(trial) for trial in study.get_trials(deepcopy=False)]
        progress("sweep", sum(state in ("complete", "failed") for state in found), trials)
        if found.count("failed") >= HOPELESS and not found.count("complete"):
            reason = next(row.user_attrs.get(store.REASON) for row in study.get_trials() if store.state(row) == "failed")
            raise AccelError(
                f"all {found.count('failed')} trials failed, the first because: {reason}", remedy="mend that, or change the --space"
            )
        if sum(state in COUNTED for state in found) >= trials:
            return
        try:
            study.optimize(lambda trial: _attempt(study, trial, spaces, objective, trials, min_top1), n_trials=1, catch=(Passed,))
        except exceptions:
            logger.warning("a trial was taken for dead while it ran (see the heartbeat); its result is not kept")


def _attempt(
    study: Study, trial: Trial, spaces: Mapping[str, Space], objective: Objective, trials: int, min_top1: float | None
) -> tuple[float, float]:
    trial.set_user_attr(store.WORKER, store.here())

    def end(how: str, reason: str) -> None:
        trial.set_user_attr(store.ENDED, how)
        trial.set_user_attr(store.REASON, reason)

    # Two workers may have asked for the last one at once: the later one gives way.
    before = [store.state(row) for row in study.get_trials(deepcopy=False) if row.number < trial.number]
    if sum(state in COUNTED for state in before) >= trials:
        end(store.SURPLUS, f"{trials} trials were there already")
        raise Passed
    model, values = chosen(trial, spaces)
    try:
        outcome = objective(model, values, trial.number)
    except STOPS as error:
        end(store.LOST, error.message)
        raise
    except AccelError as error:
        end(store.FAILED, error.message)
        logger.warning("trial %d failed: %s", trial.number, error.message)
        raise Passed from error
    except KeyboardInterrupt:
        end(store.LOST, "interrupted")
        store.again(study, trial)
        raise
    except Exception as error:
        # Not ours: it ends this worker with its traceback, and the study says of which trial it was.
        end(store.FAILED, f"{type(error).__name__}: {error}")
        raise
    for key, value in outcome.facts.items():
        trial.set_user_attr(key, value)
    if min_top1 is not None:
        trial.set_constraint("min_top1", min_top1 - outcome.top1)
    logger.info("trial %d: top-1 %.2f %%, host p50 %.4g µs", trial.number, outcome.top1, outcome.p50_us)
    return outcome.top1, outcome.p50_us


def chosen(trial: Trial, spaces: Mapping[str, Space]) -> tuple[str, dict[str, Any]]:
    """The model of a trial and the values of its fields. Of several models each has parameters of its own, as `resnet18.lr`."""
    models = list(spaces)
    several = len(models) > 1
    model = trial.suggest_categorical("model", models) if several else models[0]
    return model, {field: one.suggest(trial, f"{model}.{field}" if several else field) for field, one in spaces[model].items()}


def seeded(kind: str, seed: int) -> BaseSampler:
    """A sampler whose draws for a trial follow from the seed, the trial's number and the trials before it.

    So a sweep that was interrupted goes on as it would have, and workers that share a study and a seed do not draw the same settings.

    Raises:
        UnknownName: no such sampler.
    """
    samplers = require("optuna.samplers", extra="sweep")
    import numpy as np

    made: dict[str, Callable[[int], BaseSampler]] = {
        "tpe": lambda number: samplers.TPESampler(seed=number, multivariate=True, group=True, constant_liar=True),
        "nsga2": lambda number: samplers.NSGAIISampler(seed=number, population_size=POPULATION),
    }
    if kind not in made:
        raise UnknownName("sampler", kind, SAMPLERS)

    class Numbered(samplers.BaseSampler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.inner = made[kind](seed)

        def before_trial(self, study: Any, trial: Any) -> None:
            self.inner = made[kind](int(np.random.SeedSequence([seed, trial.number]).generate_state(1)[0]))
            self.inner.before_trial(study, trial)

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return self.inner.infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return self.inner.sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return self.inner.sample_independent(study, trial, param_name, param_distribution)

        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            self.inner.after_trial(study, trial, state, values)

    found: BaseSampler = Numbered()
    return found
