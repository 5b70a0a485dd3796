"""A worker of a sweep in a process of its own: `sweep_worker.py STORAGE TRIALS [HANG_AT]`; what a setting is worth follows from it alone.

At its trial HANG_AT, counted from 1, it says `hanging` and waits to be killed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from accel import api
from accel.sweeps.study import Outcome

SPACE = {"lr": {"low": 0.01, "high": 1.0, "log": True}, "cutout": {"choices": [0, 8]}}
SPACE |= dict.fromkeys(["weight_decay", "label_smoothing", "mixup", "ema_decay", "epochs"], False)


def worth(values: Mapping[str, Any]) -> Outcome:
    return Outcome(top1=90 - 10 * abs(values["lr"] - 0.3), p50_us=100 + values["cutout"] + 50 * values["lr"])


def main(storage: str, trials: int, hang_at: int = 0) -> None:
    begun = 0

    def objective(model: str, values: Mapping[str, Any], number: int) -> Outcome:
        nonlocal begun
        begun += 1
        print(f"{number} {values['lr']!r}", flush=True)
        if begun == hang_at:
            print("hanging", flush=True)
            sys.stdin.read()  # nothing comes
        return worth(values)

    api.sweep("resnet18", trials=trials, storage=storage, resume=True, space=SPACE, objective=objective, device="cpu")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(sys.argv[1], *map(int, sys.argv[2:]))
