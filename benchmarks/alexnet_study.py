"""The AlexNet study: eager, TorchScript trace and ONNX over the whole test set, and FP32 against AMP in training.

    python benchmarks/alexnet_study.py --out results/h200/alexnet

Trains `alexnet` by its own recipe in FP32 (IEEE, without TF32) and in AMP, for every seed one after the other and every other seed in
reverse order, both without torch.compile (--compile: both with it). Then it exports the FP32 training of the first seed, or CHECKPOINT, to
TorchScript and ONNX in FP32, verifies each format (`accel verify`) and lets each answer the whole test set, in batches of 1 and of 100.

An inference run is a process of its own that loads the engine as `accel.load` does and times whole passes over the test set, from
preprocessed float32 images in host memory to logits in host memory: copies included, preprocessing not. Its top-1 is of the very passes
that are timed. A repeat runs all formats, every other one backwards; ratios are formed within a repeat. TorchScript is traced, its
BatchNorm folded.

OUT/study.json is written after every part and OUT/alexnet.md with it: our figures beside those of the users' document. The same command
again leaves out what is there and resumes a training that was interrupted; what somebody wrote between the page's `why` marks stays.
OUT/work (checkpoints and engines) need not be kept.

Exit code 0: all was measured; 1: a part was not (the page says why); otherwise that of the error.
"""

from __future__ import annotations

import argparse
import functools
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accel import device as devices
from accel import trainers
from accel.checkpoint import read_checkpoint
from accel.engines import Bundle
from accel.errors import AccelError, BundleMissing, GateError
from accel.files import write_text
from accel.runtimes.loaded import open_cached
from accel.trainers import Recipe, write_recipe
from accel.types import Variant
from accel.verify.data import labels_of, open_data, preparation
from accel.verify.predict import batches
from benchmarks import studies, trainings
from benchmarks.alexnet_page import AMP, FP32, VARIANTS, page, results, shown, training_part, verify_part
from benchmarks.studies import Measure, Record, Request

ROOT = Path(__file__).resolve().parents[1]

WARM_S = 0.25
"""For so long, at least, an engine answers before it is timed."""

QUICK_IMAGES = 40
"""Of the test set, that --quick answers."""

TRAINER = (sys.executable, "-m", "accel", "train")


def measure(request: Request) -> dict[str, Any]:
    """Time whole passes of one engine over the test set, in this process.

    Raises:
        AccelError: it cannot be opened here, or its answers are not finite.
    """
    bundle = Bundle.open(request["bundle"])
    samples = open_data(request["data"] or bundle.checkpoint.dataset)
    size = request["batch"]
    given = [np.ascontiguousarray(batch) for batch in batches(samples, preparation(bundle), size, bundle.inputs[0])]
    variant = Variant.parse(request["variant"])
    with open_cached(bundle.path, variant, request["device"], request["threads"], batch=size) as engine:
        until, calls = time.perf_counter() + WARM_S, 0
        while calls < 10 or time.perf_counter() < until:
            engine(given[calls % len(given)])
            calls += 1
        taken: list[float] = []
        for _ in range(request["passes"]):
            answers = []
            begun = time.perf_counter()
            for batch in given:
                answers.append(engine(batch))
            taken.append(time.perf_counter() - begun)
        explained = engine.explain()
    logits = np.concatenate(answers)
    if not np.isfinite(logits).all():
        raise GateError(f"{variant} answered with logits that are not finite")
    labels = labels_of(samples)
    top1 = None if labels is None else 100 * float((logits.argmax(axis=1) == labels).mean())
    facts = {key: explained[key] for key in ("engine", "runtime_version")}
    return {"passes_s": taken, "seconds": statistics.median(taken), "images": len(samples), "top1": top1, **facts}


def train(folder: Path, recipe: Recipe, device: str, trainer: Sequence[str]) -> dict[str, Any]:
    """Train into `folder` in a process of its own, or finish what was begun there.

    Raises:
        ConfigError: the folder holds another training. AccelError: it failed; with the last line of its log.
    """
    found = trainings.state(folder, recipe)
    if found != trainings.DONE:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder.with_name(f"{folder.name}.recipe.toml")
        write_recipe(recipe, file)
        typed = [recipe.model, "--recipe", str(file), "--out", str(folder), "--device", device]
        typed += ["--resume"] if found == trainings.UNFINISHED else []
        log = folder.with_name(f"{folder.name}.log")
        with open(log, "ab") as stream:
            stream.write(f"$ {shlex.join([*trainer, *typed])}\n".encode())
            stream.flush()
            code = subprocess.run([*trainer, *typed], stdout=stream, stderr=stream, env=environment(), check=False).returncode
        if code:
            raise AccelError(f"the training ended with {code}: {studies.complaint(log.read_text(encoding='utf-8', errors='replace'))}")
    facts, rows = trainings.facts(folder), trainings.log_rows(folder)
    pauses = log_starts(folder) - 1
    loss = float(rows[-1]["train_loss"]) if rows and rows[-1].get("train_loss") else None
    kept = {key: facts[key] for key in ("train_s", "images_per_s", "top1", "peak_mib", "device")}
    return {**kept, "train_loss": loss, "epochs": facts["epochs_done"], "amp": recipe.amp, "resumed": max(pauses, 0)}


def environment() -> dict[str, str]:
    """This process's, with this checkout first on the path of modules."""
    given = dict(os.environ)
    return {**given, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [given.get("PYTHONPATH")])])}


def log_starts(folder: Path) -> int:
    """How often the training was begun or resumed."""
    log = folder.with_name(f"{folder.name}.log")
    return log.read_text(encoding="utf-8", errors="replace").count("\n$ ") + 1 if log.is_file() else 1


def export(model: Path, out: Path, batch: int, device: str) -> Path:
    """The bundle of `model` with an FP32 engine in both formats for this batch."""
    from accel import api

    done = api.export(str(model), ["torchscript", "onnx"], precision="fp32", batch=batch, out=out, device=device)
    return Path(done[0].bundle)


def verify(bundle: Path, batch: int, options: argparse.Namespace, device: str) -> dict[str, Any]:
    """What `accel verify` says of the three, by variant. That top-1 must not fall is its gate here, not how high it is."""
    from accel import api

    found = api.verify(bundle, list(VARIANTS), data=options.data, min_top1=0.0, batch=batch, device=device)
    keys = ("verdict", "reason", "top1", "top1_reference", "n_flips", "n_test", "max_rel_err")
    return {"variants": {row["variant"]: {key: row.get(key) for key in keys} for row in found.rows}}


def study(options: argparse.Namespace, ask: Measure) -> bool:
    """Measure what is not measured yet; whether everything is."""
    device = devices.parse(options.device)
    base = recipe_of(options)
    given = None if options.checkpoint is None else read_checkpoint(options.checkpoint).sha256
    settings = {
        "device": device.partition(":")[0],
        "recipe": base.to_dict(),
        "amp": options.amp,
        "checkpoint": given,
        "passes": options.passes,
        "threads": options.threads,
        "data": options.data,
        "quick": options.quick,
    }
    record = Record(options.out / "study.json", settings, device)
    parts: list[str] = []

    def take(part: str, measured: Any) -> None:
        parts.append(part)
        if not record.done(part):
            found = record.take(part, measured, functools.partial(results, record))
            print(f"{part}: {found.get('not_run', 'done')}", file=sys.stderr, flush=True)
            write_page(options.out, record)

    work = options.out / "work"
    if options.quick:
        options.data = few(options.data or base.dataset, work / "few.npz")
    if given is None:
        for seed in range(options.seeds):
            for precision in studies.order((FP32, AMP), seed):
                recipe = base.replaced({"seed": seed, "amp": options.amp if precision == AMP else "off"})
                folder = work / "train" / f"{precision}-s{seed}"
                training = functools.partial(train, folder, recipe, device, options.trainer)
                take(training_part(precision, seed), studies.alone(device, training))
    model = options.checkpoint or work / "train" / f"{FP32}-s0"
    for batch in options.batch:
        infer(record, take, model, batch, options, device, ask)
    record.write(results(record))
    write_page(options.out, record)
    print("\n".join(shown(record)))
    return all(map(record.done, parts))


def infer(record: Record, take: Any, model: Path, batch: int, options: argparse.Namespace, device: str, ask: Measure) -> None:
    """Export, verify and time one batch size; where there is no engine, each part says why."""
    folder = options.out / "work" / "engines" / f"batch{batch}"
    runs = [(variant, repeat) for repeat in range(options.repeats) for variant in studies.order(VARIANTS, repeat)]
    wanted = {verify_part(batch), *(run_part(*run, batch) for run in runs)}
    bundle: Path | None = None
    problem: AccelError | None = None
    if not all(map(record.done, wanted)):
        try:
            if not (model / "checkpoint.json").is_file():
                raise BundleMissing(f"there is no checkpoint {model.name}", remedy="train it, or name one with --checkpoint")
            bundle = export(model, folder, batch, device)
        except AccelError as error:
            problem = error

    def measured(what: Any) -> Any:
        def body() -> dict[str, Any]:
            if problem is not None:
                raise problem
            return dict(what())

        return body

    take(verify_part(batch), measured(lambda: verify(bundle, batch, options, device)))
    for variant, repeat in runs:
        request = {"bundle": str(bundle), "variant": variant, "device": device, "batch": batch}
        request |= {"data": options.data, "passes": options.passes, "threads": options.threads}
        take(run_part(variant, repeat, batch), measured(studies.alone(device, functools.partial(ask, request))))


def run_part(variant: str, repeat: int, batch: int) -> str:
    return f"{variant} batch {batch} #{repeat}"


def few(data: str, file: Path) -> str:
    """The first images of a test set, as data of their own."""
    samples = open_data(data)
    chosen = range(min(QUICK_IMAGES, len(samples)))
    labels = labels_of(samples)
    arrays = {"images": np.stack([samples[index] for index in chosen])}
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **arrays, **({} if labels is None else {"labels": labels[: len(chosen)]}))
    return f"npz:{file}"


def write_page(out: Path, record: Record) -> None:
    file = out / "alexnet.md"
    write_text(file, page(record, file.read_text(encoding="utf-8") if file.is_file() else ""))


def recipe_of(options: argparse.Namespace) -> Recipe:
    """What all trainings share; seed and amp are each one's own."""
    own = trainers.default_recipe(options.model).replaced({"compile": options.compile, "amp": "off", "epochs": options.epochs})
    if options.quick:
        own = own.replaced({"limit": 18, "batch_size": 16, "epochs": 1, "split": "45k/5k"})
    return own.replaced(studies.assignments(options.set), "--set")


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="export this one, and train nothing")
    parser.add_argument("--model", default="alexnet")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 100], help="sizes to answer the test set in")
    parser.add_argument("--seeds", type=int, help="trainings of each precision; 2. More may be added to what is there")
    parser.add_argument("--epochs", type=int, help="the recipe's")
    parser.add_argument("--amp", default="bf16", choices=("bf16", "fp16"))
    parser.add_argument("--compile", action="store_true", help="train both with torch.compile")
    parser.add_argument("--repeats", type=int, help="inference processes of each format; 3. More may be added")
    parser.add_argument("--passes", type=int, help="over the test set in each of them; 3")
    parser.add_argument("--threads", type=int, help="of inference on a CPU")
    parser.add_argument("--data", help="the test set, as accel verify takes it; default the checkpoint's")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe, for both precisions")
    parser.add_argument("--trainer", type=shlex.split, default=TRAINER, metavar="COMMAND", help="in the place of PYTHON -m accel train")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it works: its numbers say nothing")
    options = parser.parse_args(words)
    usual = {"seeds": 2, "repeats": 3, "passes": 3}
    for key, value in usual.items():
        if getattr(options, key) is None:
            setattr(options, key, 1 if options.quick else value)
    if min(options.seeds, options.repeats, options.passes, *options.batch) < 1:
        parser.error("--seeds, --repeats, --passes and --batch must be at least 1")
    return options


def main(words: Sequence[str] | None = None, ask: Measure | None = None) -> int:
    options = parse(words)
    try:
        return 0 if study(options, ask or studies.in_process(__file__)) else 1
    except AccelError as error:
        print(f"alexnet_study: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(studies.child(measure) if sys.argv[1:] == ["--child"] else main())
