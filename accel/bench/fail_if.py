"""`--fail-if`: limits on a comparison, as `p50>+5%`; crossing one is what turns a user's CI red."""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Callable

from accel.bench.pairing import Pair
from accel.errors import UsageError

LATENCIES = {name: f"{name}_us" for name in ("mean", "min", "p50", "p95", "p99", "max")}
POINTS = {"top1": "top1"}
"""Metric → column."""

GRAMMAR = (
    "METRIC OP LIMIT, where METRIC is mean, min, p50, p95, p99, max or top1, OP is >, >=, < or <=, and LIMIT is a change with its sign "
    "(+5%, +20us; for top1 points, -0.1) or a value without one (500us; for top1 percent, 94.5); as in 'p50>+5%', 'p50>500us', 'top1<-0.1'"
)
_PATTERN = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*([+-]?)\s*(\d+(?:\.\d+)?|\.\d+)\s*(%|us|µs|)\s*")
_CROSSED: dict[str, Callable[[float, float], bool]] = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_ALLOWED = {">": "at most", ">=": "less than", "<": "at least", "<=": "more than"}


@dataclasses.dataclass(frozen=True)
class Gate:
    """One limit.

    Attributes:
        text: as typed.
        metric: a key of LATENCIES or POINTS.
        comparison: the operator that must not hold.
        limit: percent, microseconds or points, as `unit` says.
        unit: `%`, `us`, or nothing for points.
        change: whether B's change against A is limited, and not B's own value.
    """

    text: str
    metric: str
    comparison: str
    limit: float
    unit: str
    change: bool

    def measured(self, pair: Pair) -> float | None:
        """What is held against the limit, in its unit; None where the rows do not have it.

        A change in percent is the geometric mean of the rounds' ratios; other values are medians over the rounds.
        """
        if self.unit == "%":
            logs = pair.log_ratios(LATENCIES[self.metric])
            return None if logs is None else 100 * math.expm1(sum(logs) / len(logs))
        column = LATENCIES.get(self.metric) or POINTS[self.metric]
        a, b = pair.a.middle(column), pair.b.middle(column)
        if b is None or (self.change and a is None):
            return None
        return b - a if self.change and a is not None else b

    def failure(self, pair: Pair) -> str | None:
        """The sentence that says variant, measured and allowed; None if the gate holds. What was not measured never passes."""
        found = self.measured(pair)
        if found is None:
            return f"{pair.b.variant}: {self.metric} was not measured (too few samples?), so {self.text} cannot be checked"
        # Nine digits: 95.0 − 95.1 in floats is a hair more than 0.1 points.
        if not _CROSSED[self.comparison](round(found, 9), self.limit):
            return None
        return f"{pair.b.variant}: {self.metric} {self._shown(found)}, allowed is {_ALLOWED[self.comparison]} {self._shown(self.limit)}"

    def _shown(self, value: float) -> str:
        number = f"{value:+.4g}" if self.change else f"{value:.6g}"
        return {"%": f"{number} %", "us": f"{number} µs", "": f"{number} {'points' if self.change else '%'}"}[self.unit]


def parse(text: str) -> Gate:
    """Read one `--fail-if`.

    Raises:
        UsageError: it is malformed; the grammar is in the remedy.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise _malformed(text, "it cannot be read")
    metric, comparison, sign, number, unit = match.groups()
    unit = unit.replace("µs", "us")
    if metric not in LATENCIES | POINTS:
        raise _malformed(text, f"there is no metric called {metric!r}")
    if metric in POINTS and unit:
        raise _malformed(text, f"{metric} is counted in points and takes no unit")
    if metric in LATENCIES and not unit:
        raise _malformed(text, f"{metric} needs % or us")
    if unit == "%" and not sign:
        raise _malformed(text, "a percentage is a change and needs its sign")
    return Gate(text.strip(), metric, comparison, float(sign + number), unit, bool(sign))


def _malformed(text: str, why: str) -> UsageError:
    return UsageError(f"--fail-if {text!r}: {why}", remedy=f"write {GRAMMAR}")
