"""What a set is told beside its plan: interpreters, data, gates and what to put on the record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from accel.verify.accuracy import MIN_TOP1, Gates


@dataclasses.dataclass(frozen=True)
class BenchSettings:
    """The choices of one `accel bench` or `accel verify`.

    Attributes:
        python: runtime → interpreter of its workers (`[bench.python]`); others run under this one.
        data: the test samples, as `cifar10` or `npz:FILE`; None is the dataset that the checkpoint names.
        metric: `top1` or `package.module:function`.
        max_drop: points that `metric` may fall below the reference.
        min_top1: the floor in percent; None is the dataset's own (MIN_TOP1).
        command: the command line to print beside the numbers.
        resolved: every resolved setting, saved with the results.
    """

    python: Mapping[str, str] = dataclasses.field(default_factory=dict)
    data: str | None = None
    metric: str = "top1"
    max_drop: float = 0.5
    min_top1: float | None = None
    command: str = ""
    resolved: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def gates(self, dataset: str) -> Gates:
        """The gates on `dataset`; the dataset's own floor is about top-1 and holds for no other metric."""
        own = MIN_TOP1.get(dataset) if self.metric == "top1" else None
        return Gates(max_drop=self.max_drop, min_top1=own if self.min_top1 is None else self.min_top1)
