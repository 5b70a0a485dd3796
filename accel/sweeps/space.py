"""What is searched: a table of ranges and choices, and the file that changes it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from optuna import Trial

Spec = dict[str, Any]

SPACE: dict[str, Spec] = {
    "lr": {"times": [0.25, 4.0], "log": True},
    "weight_decay": {"times": [0.2, 5.0], "log": True},
    "label_smoothing": {"low": 0.0, "high": 0.2},
    "cutout": {"choices": [0, 4, 8, 12, 16]},
    "mixup": {"choices": [0.0, 0.1, 0.2, 0.4]},
    "ema_decay": {"choices": [0.0, 0.99, 0.995, 0.998, 0.999]},
    "epochs": {"times": [0.5, 1.0]},
}
"""Field of a recipe → where it is searched. `times`: from and to these multiples of what the model's own recipe has; a field that is 0
there is left alone. `log`: evenly on a logarithmic scale."""

KEYS = ({"low", "high"}, {"low", "high", "log"}, {"times"}, {"times", "log"}, {"choices"})
"""What a parameter's table may hold."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One field: `choices`, or the numbers from `low` to `high`, both included, whole ones if `low` is an int."""

    low: float = 0
    high: float = 0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def suggest(self, trial: Trial, name: str) -> Any:
        if self.choices:
            return trial.suggest_categorical(name, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def to_dict(self) -> dict[str, Any]:
        return {"choices": list(self.choices)} if self.choices else {"low": self.low, "high": self.high, "log": self.log}


Space = dict[str, Parameter]


def read_space(path: Path) -> dict[str, Any]:
    """A TOML file with a table for each field (`[lr]`, `low = 0.1`, `high = 1.0`, `log = true`), or `mixup = false` to leave one alone.

    `[resnet18.lr]` is of that model only.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the space {path} cannot be read ({error.strerror})", remedy="name an existing file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the space {path} is not TOML: {error}", remedy="mend that line") from error


def of_model(
    model: str, own: Mapping[str, Any], changes: Mapping[str, Any], *, models: tuple[str, ...], check: Callable[[str, Any], Any]
) -> Space:
    """What is searched of one model: SPACE, then `changes` for all models, then those for this one.

    Args:
        own: the values of its recipe.
        changes: what `read_space` read, or the same from elsewhere.
        models: the names that are models, not fields.
        check: (field, value) → the value as the recipe has it; raises ConfigError.

    Raises:
        ConfigError: names the field.
    """
    for_all = {key: value for key, value in changes.items() if key not in models}
    for_one = changes.get(model, {})
    if not isinstance(for_one, Mapping):
        raise ConfigError(f"the space has {model} = {for_one!r}", remedy=f"write tables as [{model}.lr]")
    wanted = {**SPACE, **for_all, **for_one}
    typed = {*for_all, *for_one}
    found = {}
    for field, spec in wanted.items():
        if spec is False:
            continue
        parameter = _parameter(field, spec, own)
        if parameter is None and field in typed:
            raise ConfigError(f"{model} has {field} = 0, of which `times` makes nothing", remedy="give low and high")
        if parameter is not None:
            found[field] = _checked(field, parameter, check)
    if not found:
        raise ConfigError(f"nothing of {model} is left to search", remedy="leave a field in the space")
    return found


def _parameter(field: str, spec: Any, own: Mapping[str, Any]) -> Parameter | None:
    if not isinstance(spec, Mapping) or set(spec) not in KEYS:
        raise ConfigError(f"the space has {field} = {spec!r}", remedy="give low and high, or times, or choices; log = true beside numbers")
    if "choices" in spec:
        if not isinstance(spec["choices"], list) or not spec["choices"]:
            raise ConfigError(f"the choices of {field} are {spec['choices']!r}", remedy="give a list")
        return Parameter(choices=tuple(spec["choices"]))
    log = bool(spec.get("log", False))
    if field not in own:
        raise ConfigError(f"the space has {field}, which no recipe has", remedy=f"use one of: {', '.join(own)}")
    if "times" in spec:
        if not own[field]:
            return None
        spec = {"low": own[field] * spec["times"][0], "high": own[field] * spec["times"][1]}
    low, high = spec["low"], spec["high"]
    if isinstance(own[field], int):
        low, high = max(round(low), 1 if log else 0), round(high)
    if not low <= high or (log and low <= 0):
        raise ConfigError(f"{field} is searched from {low} to {high}{' (log)' if log else ''}", remedy="give low above 0 and below high")
    return Parameter(low, high, log)


def _checked(field: str, parameter: Parameter, check: Callable[[str, Any], Any]) -> Parameter:
    if parameter.choices:
        return Parameter(choices=tuple(check(field, value) for value in parameter.choices))
    return Parameter(check(field, parameter.low), check(field, parameter.high), parameter.log)
