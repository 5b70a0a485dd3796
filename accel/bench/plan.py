"""How much is measured, and in which order."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

from accel.errors import UsageError

AUTO = "auto"
"""What is typed for `iterations` to have a set find its own number."""
CHOICES = (500, 1000, 2000)
"""The numbers of samples that an adaptive set takes: the first in round 0, then the one that `accel.bench.sampling` finds enough."""
MOST = {"iterations": 10_000_000, "threads": 1024}
"""Beyond these a slip of the finger takes the machine's memory: 100,000 threads of ONNX Runtime held 16 GB and never began."""


@dataclasses.dataclass(frozen=True)
class MeasurementPlan:
    """The numbers of a set; every variant of it gets the same.

    Attributes:
        warmup: calls thrown away before the first sample of a process.
        iterations: samples of each latency kind in each run; those of the first round if `adaptive`.
        e2e_iterations: samples of e2e_us where they are fewer; None takes `iterations`.
        adaptive: from the second round on, the number of samples is one of CHOICES, found in the first.
        rounds: fresh processes per variant; a run is a round.
        max_rounds: a variant whose runs disagree (UNSTABLE) gets further ones up to so many.
        block: samples between two garbage collections; `discard` calls after each are thrown away.
        inputs: distinct inputs that are rotated, prepared once.
        batch: samples per call.
        l2: `hot` leaves the GPU's L2 cache as the last call did; `cold` fills it with other data before every sample.
        idle_ms: also measure calls after a sleep of so many milliseconds (`paced_us`); None does not.
        rebuild: every run gets empty compile caches of its own, so that each build is a cold one.
        threads: intra-op threads; None leaves a CPU runtime its default and is 1 beside a GPU.
        name: what tables call it.
    """

    warmup: int = 200
    iterations: int = 2000
    rounds: int = 3
    seed: int = 0
    batch: int = 1
    threads: int | None = None
    block: int = 200
    discard: int = 20
    inputs: int = 8
    l2: str = "hot"
    idle_ms: float | None = None
    rebuild: bool = False
    adaptive: bool = False
    max_rounds: int = 5
    e2e_iterations: int | None = None
    name: str = "full plan"

    def __post_init__(self) -> None:
        for field in ("iterations", "rounds", "batch", "block"):
            _at_least(field, getattr(self, field), 1)
        for field in ("warmup", "discard"):
            _at_least(field, getattr(self, field), 0)
        _at_least("inputs", self.inputs, 8)
        if self.max_rounds < self.rounds:
            asked = f"the plan asks for max_rounds = {self.max_rounds} and rounds = {self.rounds}"
            raise UsageError(asked, remedy=f"--max-rounds {self.rounds} or more, or fewer --rounds")
        for field in ("threads", "e2e_iterations"):
            if (value := getattr(self, field)) is not None:
                _at_least(field, value, 1)
        for field, most in MOST.items():
            if ((value := getattr(self, field)) or 0) > most:
                raise UsageError(f"the plan asks for {field} = {value}", remedy=f"at most {most} {field} are possible")
        if self.l2 not in ("hot", "cold"):
            raise UsageError(f"l2 was {self.l2!r}", remedy="--l2 hot, or --l2 cold")
        if self.idle_ms is not None and not 0 < self.idle_ms <= 10_000:
            raise UsageError(f"idle_ms was {self.idle_ms}", remedy="give milliseconds above 0 and up to 10000, as --idle-ms 33")

    @classmethod
    def cpu_quick(cls, **changes: Any) -> MeasurementPlan:
        """What a machine without a GPU gets by default: a few minutes instead of half an hour.

        It adds no runs where a variant is UNSTABLE, as nearly all are on a busy CPU: the demo has a time limit. End to end a CPU adds
        next to nothing to the call itself, so it is sampled less.
        """
        short = {"warmup": 20, "iterations": 200, "e2e_iterations": 50, "discard": 5, "max_rounds": 3, "name": "CPU quick plan"}
        return cls(**{**short, **changes})

    @classmethod
    def default(cls, device: str, **changes: Any) -> MeasurementPlan:
        """The plan of `device` with what the user asked otherwise (None: nothing); a changed count makes it a "custom plan".

        `iterations` may be AUTO. `rounds` alone raises `max_rounds` if need be, and a plan that adds no runs adds none to other rounds.
        """
        base = cls.cpu_quick() if device == "cpu" else cls()
        asked = {key: value for key, value in changes.items() if value is not None}
        if asked.get("iterations") == AUTO:
            asked |= {"iterations": CHOICES[0], "adaptive": True}
        if "iterations" in asked:
            asked.setdefault("e2e_iterations", None)
        if "rounds" in asked:
            adds_runs = base.max_rounds > base.rounds
            asked.setdefault("max_rounds", max(asked["rounds"], base.max_rounds) if adds_runs else asked["rounds"])
        changed = {key: value for key, value in asked.items() if value != getattr(base, key)}
        name = "custom plan" if changed.keys() & _COUNTS else base.name
        return dataclasses.replace(base, **{"name": name, **changed})

    def describe(self) -> str:
        """`CPU quick plan: warm-up 20, 200 iterations (50 end to end), 3 rounds`."""
        batch = f", batch {self.batch}" if self.batch != 1 else ""
        iterations = f"{CHOICES[0]} to {CHOICES[-1]}" if self.adaptive else str(self.iterations)
        fewer = f" ({self.e2e_iterations} end to end)" if self.e2e_iterations is not None else ""
        rounds = f"{self.rounds} round{'s' if self.rounds > 1 else ''}"
        rounds += f" (to {self.max_rounds} where UNSTABLE)" if self.max_rounds > self.rounds else ""
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}" if self.threads else ""
        threads += ", L2 cold" if self.l2 == "cold" else ""
        threads += f", paced at {self.idle_ms:g} ms" if self.idle_ms else ""
        threads += ", every build cold" if self.rebuild else ""
        return f"{self.name}: warm-up {self.warmup}, {iterations} iterations{fewer}, {rounds}{batch}{threads}"

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MeasurementPlan:
        return cls(**data)


def order(variants: Sequence[str], round_index: int, seed: int) -> list[str]:
    """The order of one round: every even round is shuffled anew from `seed`, the odd round after it is its reverse.

    So whatever drifts over two rounds (heat, a neighbour) meets each variant once early and once late.
    """
    shuffled = list(variants)
    random.Random(f"{seed}/{round_index // 2}").shuffle(shuffled)
    return shuffled[::-1] if round_index % 2 else shuffled


_COUNTS = {"warmup", "iterations", "adaptive", "rounds", "max_rounds", "block", "discard", "inputs"}


def _at_least(field: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"the plan asks for {field} = {value}", remedy=f"ask for at least {least}")
