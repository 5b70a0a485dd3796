"""What data loading, torch.compile and AMP each do to a training, alone and together, and what torch.compile does to inference.

    python benchmarks/training_ablation.py --out results/h200/training-ablation

The baseline is what tutorials write: FP32, no compilation, and a DataLoader without workers that crops, flips, hides a square and
normalises image by image in the training process. Every other configuration changes what its name says and nothing else. FP32 is IEEE:
TF32 is forbidden, as `accel train --no-amp` forbids it. Batch size, optimiser and layout are the model's own recipe's (--set changes them
for all).

Every run is a process of its own, with the loop of `accel train`. Its first epoch warms up; then epochs with the loader and epochs in which
one batch that lies on the device is given again and again alternate. Of a run count

    images/s    the median of the epochs with the loader, closed by waiting for the device
    GPU MiB     the most that torch held on the device; `host MiB`: the most that the training process (not its workers) held resident
    data wait   the share of these epochs in which the loop waited for images to be read (`data_wait_s` of accel's log). A GPU may have been
                at work on earlier batches meanwhile, and augmenting on the device is not in it
    data cost   by how much shorter an epoch is when no batch has to be made: what reading, copying and augmenting really cost
                the training; less than 0 is noise

A repeat runs all configurations, every other one backwards, and ratios are formed within a repeat. OUT/ablation.json is written after every
run and OUT/ablation.md with it; the same command again leaves out what is there. Inference is `accel bench` of eager:fp32 and torch.compile
in one set (OUT/inference), or, with --inference-set, what a set of the same model has of these variants: it must be of the record's kind of
GPU, driver (major) and torch, and the page says which session it is of. Where all trainings are in the record, that needs neither their GPU
nor torch:

    python benchmarks/training_ablation.py --out results/h200/training-ablation --device cuda:0 --inference-set results/h200/SET

Exit code 0: all was measured; 1: a part was not (the table says why); otherwise that of the error.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accel import device as devices
from accel import trainers
from accel.bench.environment import peak_resident_mib
from accel.errors import AccelError, ConfigError, UnknownName
from accel.trainers import Recipe, backend, run, workers
from accel.trainers.data import Data, open_data, source
from accel.trainers.loop import fit
from accel.trainers.objective import autocast_dtype
from accel.trainers.ranks import ALONE
from accel.trainers.subset import split
from accel.trainers.views import Source
from accel.types import Array
from benchmarks import ablation_inference, studies
from benchmarks.ablation_results import BASELINE, EAGER, INFERENCE, results, shown, write_page
from benchmarks.studies import Measure, Record, Request, number

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Configuration:
    """Attributes:
    loader: `plain` (image by image on the CPU), or one of `accel train --loader`.
    readers: whether processes of their own read; of `gpu` it means nothing.
    """

    loader: str = "plain"
    readers: bool = False
    compile: bool = False
    amp: bool = False


CONFIGURATIONS = {
    BASELINE: Configuration(),
    "plain, workers": Configuration(readers=True),
    "loader workers": Configuration("workers", readers=True),
    "loader gpu": Configuration("gpu"),
    "compile": Configuration(compile=True),
    "amp": Configuration(amp=True),
    "gpu + compile": Configuration("gpu", compile=True),
    "gpu + amp": Configuration("gpu", amp=True),
    "all": Configuration("gpu", compile=True, amp=True),
}
COMPILED = ("compile:fp32", "compile:fp32+reduce-overhead")
QUICK = {"images": 32, "batch_size": 16, "pairs": 1, "repeats": 1}


class Plain(Source):
    """Images that are cropped, flipped, cut out and normalised one by one on the CPU, by a DataLoader of `readers` processes."""

    def __init__(self, data: Data, learned: Array, recipe: Recipe, device: torch.device, readers: int) -> None:
        import torch

        labels = torch.from_numpy(data.train.labels[learned]).to(device)
        size = (data.preprocess.height, data.preprocess.width)
        super().__init__(labels, recipe, size=size, generator=torch.Generator(), ranks=ALONE)
        self._dtype = autocast_dtype(recipe)
        self._parts: list[Array] = []
        read = functools.partial(one_by_one, data.train.read, learned, recipe, data.colours)
        self._loader = workers.loader(read, self._parts, readers, device)

    def begin(self, epoch: int) -> None:
        import torch

        order = torch.randperm(len(self), generator=self._generator)
        self._order = order.to(self.device)
        self._parts[:] = [order.numpy()[self._of_batch(index)] for index in range(len(order) // self._share)]
        self.waited_s = 0.0
        self._read = self._waited_for(lambda: workers.received(self._loader))

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        images = self._waited_for(lambda: next(self._read))
        # The dtype afterwards: changed on the way, it would be changed on the CPU, and the copy no longer be from pinned memory.
        return images.to(self.device, non_blocking=True).to(self._dtype), self._labels[self._order[self._of_batch(index)]]


def one_by_one(read: Any, learned: Array, recipe: Recipe, colours: Any, numbers: Array) -> Array:
    """float32 B×H×W×3: each image on its own, as a transform of a tutorial does it."""
    draw = np.random.default_rng([recipe.seed, *numbers[:4].tolist()])
    mean, std = (np.asarray(values, np.float32) for values in colours)
    pad, hole = recipe.crop_padding, recipe.cutout
    made = []
    for position in numbers:
        image = read(learned[position : position + 1])[0]
        height, width, _ = image.shape
        image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
        top, left = draw.integers(0, 2 * pad + 1, 2)
        image = image[top : top + height, left : left + width]
        if draw.random() < 0.5:
            image = image[:, ::-1]
        image = (image.astype(np.float32) / 255 - mean) / std
        if hole:
            row, column = draw.integers(0, height), draw.integers(0, width)
            image[max(0, row - hole // 2) : row + hole // 2, max(0, column - hole // 2) : column + hole // 2] = 0
        made.append(image)
    return np.stack(made)


class Alternating:
    """A source as `fit` takes it, whose epochs 2, 4, … (counted from 0) give the first batch of the epoch before again and again."""

    def __init__(self, real: Source) -> None:
        self._real, self._given, self._held = real, False, None
        self.device, self.example = real.device, real.example
        self.state_dict, self.load_state_dict = real.state_dict, real.load_state_dict

    def __len__(self) -> int:
        return len(self._real)

    @property
    def waited_s(self) -> float:
        return 0.0 if self._given else self._real.waited_s

    def begin(self, epoch: int) -> None:
        self._given = held(epoch)
        if not self._given:
            self._held = None
            self._real.begin(epoch)

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        if self._given:
            return self._held
        batch = self._real.batch(index)
        if self._held is None:
            self._held = tuple(part.clone() for part in batch)  # a part of an epoch's tensor would keep the whole of it
        return batch


def held(epoch: int) -> bool:
    """Epoch 0 warms up; of every further pair the first has the loader."""
    return epoch > 0 and epoch % 2 == 0


def measure(request: Request) -> dict[str, Any]:
    """One run in this process.

    Raises:
        AccelError: it cannot be run as it was asked for, or failed.
    """
    import torch

    recipe, chosen = Recipe(**request["recipe"]), Configuration(**request["configuration"])
    target = backend.resolve(request["device"], recipe)
    if recipe.compile and target.type != "cuda":
        raise AccelError("accel does not compile a training on a CPU")
    data = open_data(recipe)
    learned, _ = split(data.train.labels, recipe, sorted_by_class=data.sorted_by_class)
    readers = workers.count() if chosen.readers else 0
    torch.manual_seed(recipe.seed)
    module = prepared(recipe, data, learned, target)
    if chosen.loader == "plain":
        real: Source = Plain(data, learned, recipe, target, readers)
    else:
        real = source(data, learned, recipe, target, autocast_dtype(recipe), ALONE)
    epochs: list[dict[str, Any]] = []
    views: Any = Alternating(real)
    trained = fit(module, views, recipe, on_epoch=epochs.append)
    if recipe.compile and not trained.compilation["used"]:
        raise AccelError(str(trained.compilation["reason"]))
    peak = round(torch.cuda.max_memory_allocated(target) / 2**20) if target.type == "cuda" else None
    return {**summary(epochs), "peak_mib": peak, "host_mib": peak_resident_mib(), "readers": readers, "compilation": trained.compilation}


def prepared(recipe: Recipe, data: Data, learned: Array, target: torch.device) -> nn.Module:
    """The module as `accel train` begins with it."""
    import torch

    factory = trainers.MODELS[recipe.model]
    module = run.build(factory, len(data.classes)).to(target)
    run.initialise(factory, module, lambda: torch.from_numpy(data.train.read(learned[: run.FIRST_IMAGES])).to(target), data.colours)
    return module.to(memory_format=torch.channels_last) if recipe.channels_last else module


def summary(epochs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What counts of a run, beside the epochs themselves (s)."""
    loaded = [row for number, row in enumerate(epochs) if number and not held(number)]
    given = [row["epoch_s"] for number, row in enumerate(epochs) if held(number)]
    return {
        "images_per_s": statistics.median(row["images_per_s"] for row in loaded),
        "data_wait": sum(row["data_wait_s"] for row in loaded) / sum(row["epoch_s"] for row in loaded),
        "data_cost": 1 - statistics.median(given) / statistics.median(row["epoch_s"] for row in loaded),
        "epochs": [
            {**{key: row[key] for key in ("images_per_s", "epoch_s", "data_wait_s")}, "held": held(number)}
            for number, row in enumerate(epochs)
        ],
    }


def study(options: argparse.Namespace, ask: Measure) -> bool:
    """Measure what is not measured yet; whether everything is."""
    chosen = [BASELINE, *(name for name in CONFIGURATIONS if name != BASELINE and (not options.only or name in options.only))]
    parts = {f"{name} #{repeat}": name for repeat in range(options.repeats) for name in studies.order(chosen, repeat)}
    record, device = opened(options, parts)
    # Asked before hours of training: a set that does not fit is an error.
    given = from_a_set(options, record) if options.inference_set else None
    summarise = functools.partial(results, record)
    for part, name in parts.items():
        if not record.done(part):
            request = request_of(CONFIGURATIONS[name], asked_recipe(options), device, options)
            found = record.take(part, studies.alone(device, functools.partial(ask, request)), summarise)
            print(f"{part}: {found.get('not_run') or number(found['images_per_s'], 0, ' images/s')}", file=sys.stderr, flush=True)
            write_page(options.out, record)
    if given is not None:
        record.put(INFERENCE, given, summarise)
    elif not options.no_inference and not record.done(INFERENCE):
        record.take(INFERENCE, functools.partial(inference, options, device), summarise)
    record.write(summarise())
    write_page(options.out, record)
    print("\n".join(shown(record)))
    return all(map(record.done, [*parts, *([] if options.no_inference else [INFERENCE])]))


def opened(options: argparse.Namespace, parts: Iterable[str]) -> tuple[Record, str]:
    """The record, and the device where its parts are measured.

    With --inference-set, where nothing is left to be measured, the record is not held against this machine.

    Raises:
        ConfigError: the record is of other settings or of another machine. DeviceUnavailable: there is no such GPU.
    """
    path = options.out / "ablation.json"
    if options.inference_set and path.is_file():
        device = json.loads(path.read_text(encoding="utf-8"))["settings"]["device"] if options.device == "auto" else options.device
        record = Record(path, settings(options, device), None)
        if all(map(record.done, parts)):
            return record, device
    device = devices.parse(options.device)
    return Record(path, settings(options, device), device), device


def settings(options: argparse.Namespace, device: str) -> dict[str, Any]:
    """What must not change within a record."""
    recipe = asked_recipe(options).to_dict()
    return {"device": device.partition(":")[0], "recipe": recipe, "pairs": options.pairs, "amp": options.amp, "quick": options.quick}


def from_a_set(options: argparse.Namespace, record: Record) -> dict[str, Any] | None:
    """The figures of --inference-set; None where the record has them already.

    Raises:
        ConfigError: it has others. What `ablation_inference.taken` raises.
    """
    variants = variants_on(record.settings["device"])
    found = ablation_inference.taken(options.inference_set, record.settings["recipe"]["model"], variants, record.machine)
    known = record.measured(INFERENCE)
    if known is None:
        return found
    if (known["set"], known["p50_us"]) != (found["set"], found["p50_us"]):
        raise ConfigError(
            f"{record.path} has inference figures already, of the set {known['set']}, and {options.inference_set} is {found['set']}",
            remedy="leave --inference-set out, or name another --out",
        )
    return None


def asked_recipe(options: argparse.Namespace) -> Recipe:
    """The recipe of the baseline; the configurations change its loader, compile and amp."""
    plain = {"limit": options.images, "batch_size": options.batch_size, "amp": "off", "compile": False}
    own = trainers.default_recipe(options.model).replaced(plain)
    return own.replaced({**studies.assignments(options.set), "epochs": 1 + 2 * options.pairs}, "--set")


def request_of(configuration: Configuration, recipe: Recipe, device: str, options: argparse.Namespace) -> dict[str, Any]:
    loader = "workers" if configuration.loader == "workers" else "gpu"
    changes = {"amp": options.amp if configuration.amp else "off", "compile": configuration.compile, "loader": loader}
    changed = recipe.replaced(changes)
    return {"recipe": changed.to_dict(), "configuration": dataclasses.asdict(configuration), "device": device}


def inference(options: argparse.Namespace, device: str) -> dict[str, Any]:
    """p50 of a call at batch 1 (µs, host clock) in every round of one set, by variant."""
    from accel import api

    variants = variants_on(device)
    bundle = options.bundle
    if bundle is None:
        bundle = api.export(options.model, "onnx", precision="fp32", out=options.out / "work" / "engines", device=device)[0].bundle
    plan: dict[str, Any] = {"iterations": 20, "warmup": 5, "rounds": 1} if options.quick else {}
    where: dict[str, Any] = {"device": device, "out": options.out / INFERENCE, "data": options.data, "command": studies.command()}
    done = api.bench(bundle, variants, **plan, **where)
    found = ablation_inference.p50_by_round(done.results.rows)
    if lacking := [variant for variant in variants if variant not in found]:
        reasons = [fault.reason for fault in done.faults if fault.variant in lacking]
        raise AccelError(f"{', '.join(lacking)}: {'; '.join(reasons) or 'not measured'}")
    return {"set": done.results.folder.name, "p50_us": found}


def variants_on(device: str) -> list[str]:
    # CUDA graphs are for GPUs.
    return [EAGER, *(COMPILED if device != "cpu" else COMPILED[:1])]


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--repeats", type=int, help="of every configuration; 3. More may be added to what is there")
    parser.add_argument("--pairs", type=int, help="timed epochs with the loader, and as many without; 2")
    parser.add_argument("--images", type=int, help="train images an epoch; 25600, 0 for all")
    parser.add_argument("--batch-size", type=int, help="the recipe's")
    parser.add_argument("--amp", default="bf16", choices=("bf16", "fp16"))
    parser.add_argument("--only", action="append", metavar="NAME", help=f"beside the baseline: {', '.join(CONFIGURATIONS)}")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe, for all configurations")
    parser.add_argument("--no-inference", action="store_true")
    parser.add_argument("--inference-set", type=Path, metavar="DIR", help="that accel bench has measured: its inference is taken")
    parser.add_argument("--bundle", type=Path, help="for inference; default the shipped weights of --model, exported into OUT/work")
    parser.add_argument("--data", help="the test set that inference is verified on, as accel bench takes it")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it works: its numbers say nothing")
    options = parser.parse_args(words)
    usual = {"images": 25600, "pairs": 2, "repeats": 3, "batch_size": None}
    for key, value in {**usual, **(QUICK if options.quick else {})}.items():
        if getattr(options, key) is None:
            setattr(options, key, value)
    if min(options.repeats, options.pairs) < 1:
        parser.error("--repeats and --pairs must be at least 1")
    if options.inference_set and (options.no_inference or options.bundle or options.data):
        parser.error("--inference-set measures no inference: without --no-inference, --bundle and --data")
    return options


def main(words: Sequence[str] | None = None, ask: Measure | None = None) -> int:
    options = parse(words)
    try:
        for name in options.only or ():
            if name not in CONFIGURATIONS:
                raise UnknownName("configuration", name, list(CONFIGURATIONS))
        return 0 if study(options, ask or studies.in_process(__file__)) else 1
    except AccelError as error:
        print(f"training_ablation: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(studies.child(measure) if sys.argv[1:] == ["--child"] else main())
