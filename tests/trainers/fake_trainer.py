"""Stands in for `accel train` in the tests of `benchmarks/train_all.py`: writes its files without learning anything.

The recipe's `limit` says what happens: 1 waits for an interrupt after the first epoch unless it resumes; 2 fails.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import tomllib

from accel.checkpoint import write_checkpoint
from accel.types import Checkpoint, TensorSpec


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for name in ("--recipe", "--out", "--device"):
        parser.add_argument(name, required=True)
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    recipe = tomllib.loads(Path(given.recipe).read_text())
    out = Path(given.out)
    if recipe["limit"] == 2:
        print("accel: the training loss became nan\n  to mend it: lower --lr")
        return 1
    for teacher in filter(None, recipe["teacher"].split(",")):
        if not (Path(teacher) / "checkpoint.json").is_file():
            print(f"accel: no checkpoint {teacher}")
            return 4
    out.mkdir(exist_ok=True)
    (out / "device.txt").write_text(f"{given.device} {os.environ['CUDA_VISIBLE_DEVICES']}")
    log = "epoch,images_per_s\n"
    for epoch in range(1, recipe["epochs"] + 1):
        log += f"{epoch},{1000 * epoch}\n"
        (out / "log.partial.csv").write_text(log)
        (out / "state.pt").write_bytes(b"")
        if recipe["limit"] == 1 and not given.resume:
            signal.pause()
    tested = recipe["split"] == "full"
    facts = {"top1": 90.5 if tested else None, "val_top1": None if tested else 90.25, "train_s": 12.5, "device": given.device}
    (out / "run.json").write_text(json.dumps({**facts, "compilation": {"compile_s": 0.0}}))
    (out / "log.partial.csv").rename(out / "log.csv")
    spec = TensorSpec("input", ("batch", 3, 32, 32))
    checkpoint = Checkpoint(out, "", given.model, "nowhere:build", 10, spec, spec, recipe=recipe, seed=recipe["seed"], top1=facts["top1"])
    weights = np.random.default_rng(recipe["seed"]).integers(0, 2**16, 8192).astype(np.uint16)
    write_checkpoint(checkpoint, {"weight": weights.view(np.float16)})
    (out / "state.pt").unlink()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
