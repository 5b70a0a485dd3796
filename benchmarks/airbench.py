"""airbench94's recipe in accel's own loop: seconds a run, and top-1 on CIFAR-10's test set without test-time augmentation.

    python benchmarks/airbench.py --out results/h100/airbench.json --check

One module is trained whole once to warm up, and then once for each seed, its weights drawn anew, as `accel train airbench94 --seed N` draws
them. The clock has two parts, each closed by waiting for the device: `prepare_s` is to whiten, normalise and draw the flips; `train_s` is
the loop's own, from the first augmentation to the last update. Their sum is `seconds`. Compilation comes before, evaluation after: FP32,
the weights of the last step. The script that the recipe is from counts the same work (and its test-time augmentation on top).

`--set split=45k/5k` tunes without the test set: what is measured then are the 5,000 held back.

Wanted are a mean top-1 of at least 93.1 % and a mean of at most 2.2 s, on an H100 or H200; with `--check` less is exit code 3.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accel import trainers
from accel.bench.environment import snapshot
from accel.errors import AccelError
from accel.trainers import Recipe, backend, run
from accel.trainers.data import Data, measurable, open_data
from accel.trainers.evaluate import Measured, top1
from accel.trainers.loop import fit
from accel.trainers.objective import autocast_dtype
from accel.trainers.subset import split
from accel.trainers.views import Views

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

MODEL, TOP1, SECONDS = "airbench94", 93.1, 2.2


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all runs share, on the device."""

    factory: str
    module: nn.Module
    data: Data
    train: tuple[Tensor, Tensor]
    test: Measured


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        recipe = read(options)
        target = backend.resolve(options.device, recipe)
        machine = snapshot(str(target))
        bench, source = opened(recipe, target)
        print(f"warm-up: {line(trained(bench, recipe, target))}", flush=True)
        rows = []
        for seed in range(options.seeds):
            rows.append(trained(bench, dataclasses.replace(recipe, seed=seed), target))
            print(line(rows[-1]), flush=True)
    except AccelError as error:
        print(f"airbench: {error}", file=sys.stderr)
        return error.exit_code
    found = judged(rows)
    print(verdict(found))
    if options.out:
        made_of = {"command": " ".join(sys.argv), "machine": machine, "dataset_sha256": source, "recipe": recipe.to_dict()}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({**made_of, "rows": rows, **found}, indent=1) + "\n", encoding="utf-8")
    return 3 if options.check and not found["within"] else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="runs, of the seeds 0, 1, …")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--recipe", type=Path, help="TOML whose keys replace those of the recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one key of the recipe; may be repeated")
    parser.add_argument("--check", action="store_true", help=f"exit 3 for less than {TOP1} %% or more than {SECONDS} s")
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    return options


def read(options: argparse.Namespace) -> Recipe:
    """The model's recipe with what the options replace in it."""
    recipe = trainers.default_recipe(MODEL)
    if options.recipe:
        recipe = trainers.read_recipe(options.recipe, base=recipe)
    pairs = (pair.partition("=")[::2] for pair in options.set)
    return recipe.replaced({key: value(text) for key, text in pairs}, "--set")


def value(text: str) -> Any:
    """A number or true and false as in JSON; anything else is a word."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def opened(recipe: Recipe, target: torch.device) -> tuple[Bench, str]:
    """The module and the images, and the hash of what they were read from."""
    import torch

    factory, data = trainers.MODELS[recipe.model], open_data(recipe)
    learned, held = split(data.train.labels, recipe)
    measured, chosen = (data.train, held) if data.test is None else (data.test, np.arange(len(data.test.labels)))
    module = run.build(factory, len(data.classes)).to(target)
    if recipe.channels_last:
        module = module.to(memory_format=torch.channels_last)
    train = torch.from_numpy(data.train.read(learned)).to(target), torch.from_numpy(data.train.labels[learned]).to(target)
    test = measurable(measured, chosen, data.preprocess, recipe, target)
    return Bench(factory, module, data, train, test), data.train.hashed()


def trained(bench: Bench, recipe: Recipe, target: torch.device) -> dict[str, Any]:
    """One run: its seconds, compilation and top-1, and the loss scale at its end: 65536, halved by every update that was skipped."""
    import torch

    # Into the memory of the module that is there: what was compiled for it is used again, and compile_s tells if it was not.
    torch.manual_seed(recipe.seed)
    fresh = run.build(bench.factory, len(bench.data.classes))
    bench.module.load_state_dict(fresh.state_dict())
    for parameter, other in zip(bench.module.parameters(), fresh.parameters(), strict=True):
        parameter.requires_grad_(other.requires_grad)

    pixels, labels = bench.train
    synchronise(target)
    started = time.monotonic()
    run.initialise(bench.factory, bench.module, lambda: pixels, bench.data.colours)
    classes = len(bench.data.classes)
    views = Views(pixels, labels, recipe, colours=bench.data.colours, dtype=autocast_dtype(recipe), num_classes=classes)
    synchronise(target)
    prepare_s = time.monotonic() - started
    scaler: dict[str, Any] = {}
    done = fit(bench.module, views, recipe, on_state=lambda state: scaler.update(state["optimizers"]["scaler"]))
    return {
        "seed": recipe.seed,
        "top1": round(top1(done.module, bench.test), 4),
        "prepare_s": round(prepare_s, 4),
        "train_s": round(done.train_s, 4),
        "seconds": round(prepare_s + done.train_s, 4),
        "loss_scale": scaler.get("scale"),
        "compilation": {**done.compilation, "compile_s": round(done.compilation["compile_s"], 2)},
    }


def synchronise(target: torch.device) -> None:
    import torch

    if target.type == "cuda":
        torch.cuda.synchronize(target)


def judged(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    accuracy, seconds = ([row[key] for row in rows] for key in ("top1", "seconds"))
    mean = {"top1": statistics.mean(accuracy), "seconds": statistics.mean(seconds)}
    spread = {"top1": statistics.stdev(accuracy), "seconds": statistics.stdev(seconds)} if len(rows) > 1 else None
    return {
        "mean": {key: round(number, 4) for key, number in mean.items()},
        "std": spread and {key: round(number, 4) for key, number in spread.items()},
        "wanted": {"top1": TOP1, "seconds": SECONDS},
        "within": mean["top1"] >= TOP1 and mean["seconds"] <= SECONDS,
    }


def line(row: dict[str, Any]) -> str:
    compilation = row["compilation"]
    how = f"compiled, {compilation['compile_s']:.1f} s before" if compilation["used"] else compilation["reason"]
    parts = f"{row['prepare_s']:.3f} to prepare + {row['train_s']:.3f} to train"
    return f"seed {row['seed']}   top-1 {row['top1']:6.2f} %   {row['seconds']:.3f} s ({parts}; {how})"


def verdict(found: dict[str, Any]) -> str:
    mean, std = found["mean"], found["std"] or {"top1": 0.0, "seconds": 0.0}
    return (
        f"mean ± std: top-1 {mean['top1']:.2f} ± {std['top1']:.2f} % (wanted {TOP1:g}), "
        f"{mean['seconds']:.3f} ± {std['seconds']:.3f} s (wanted {SECONDS:g}): {'ok' if found['within'] else 'MISSED'}"
    )


if __name__ == "__main__":
    sys.exit(main())
