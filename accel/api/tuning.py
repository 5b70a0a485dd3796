"""`accel tune`: find the fastest engine of a model on this machine that is right, and leave it in the bundle for `accel.load`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accel import device as devices
from accel import exporters, runtimes
from accel.api import bundles, outcome
from accel.api.benching import bench_settings
from accel.api.exporting import export
from accel.api.settings import resolve
from accel.api.tune_search import CONFIRMED, NOT_TRIED, Search, Tried
from accel.api.tune_steps import STEPS, Budget, Step, parse_budget
from accel.bench import decision
from accel.bench.clock import utc_now
from accel.bench.environment import snapshot
from accel.bench.launch import Launcher, spawn
from accel.bench.plan import MeasurementPlan
from accel.bench.settings import BenchSettings
from accel.engines import Bundle, strict, tuned
from accel.engines.manifest import MANIFEST_FILE
from accel.errors import AccelError, MissingExtra
from accel.files import sha256_bytes
from accel.optional import require
from accel.progress import Progress, silent

FOLDER = "tune"
"""Of the results folder: where the sets of a tuning are written."""


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What a tuning found.

    Attributes:
        bundle: the folder that holds the best engine, and `tuned.json`.
        rows: one mapping a candidate, in the order tried: the fields of `tune_search.Tried`.
        best: the variant that `accel.load` takes from now on; None if nothing passed.
        summary: the best engine, how much faster than the baseline it is, and the call that loads it.
        problem: what the command ends with, if nothing passed.
    """

    bundle: Path
    rows: tuple[dict[str, Any], ...]
    best: str | None
    summary: str
    problem: AccelError | None


def tune(
    model: Path | str = "resnet18",
    *,
    budget: str | float | None = None,
    max_drop: float | None = None,
    min_top1: float | None = None,
    data: str | None = None,
    metric: str = "top1",
    warmup: int | None = None,
    iterations: int | str | None = None,
    rounds: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    out: Path | str | None = None,
    engines_dir: Path | str | None = None,
    weights: Path | str | None = None,
    input: str | None = None,
    name: str | None = None,
    trusted: bool = False,
    command: str = "",
    progress: Progress = silent,
) -> Tuned:
    """Try the candidates of this device in order (`tune_steps.STEPS`), each against the best so far; keep what passes and is FASTER.

    A candidate that is not installed, refused or broken is a row that says why. After every row `tuned.json` in the bundle has the state:
    what was interrupted goes on with the same call, and `accel.load` takes the best so far.

    Args:
        model: as `accel.export` takes it; what is no bundle yet is exported first.
        budget: seconds, or `90s`, `10m`, `1h`: no candidate begins that would not fit, by what others took. None is no limit.
        max_drop, min_top1, data, metric: as `accel.verify` takes them.
        warmup, iterations, rounds, threads: as `accel.bench` takes them.
        out: where the sets get their folders; None is `tune` in the results folder.
        engines_dir, weights, input, name: as `accel.export` takes `out` and those.
        trusted: run code of a bundle that somebody else exported.
        command: what was typed, for the record.

    Raises:
        UsageError, BundleMissing, ArtifactError, DeviceUnavailable: nothing was run.
    """
    limit = Budget(parse_budget(budget) if isinstance(budget, str) else budget)
    require("scipy.stats", extra="bench")
    counts = {"warmup": warmup, "iterations": iterations, "rounds": rounds, "threads": threads}
    typed = {**{f"bench.{key}": value for key, value in counts.items()}, "device": device}
    gates = {"verify.data": data, "verify.max_drop": max_drop, "verify.min_top1": min_top1}
    settings = resolve({**typed, **gates, "engines_dir": None if engines_dir is None else str(engines_dir)})
    chosen = devices.parse(settings["device"])
    plan = MeasurementPlan.default(chosen, **{key: settings[f"bench.{key}"] for key in (*counts, "max_rounds")}, seed=settings["seed"])
    where: dict[str, Any] = {"out": engines_dir, "weights": weights, "input": input, "name": name, "device": chosen, "progress": progress}
    where["trusted"] = trusted
    opened = _bundle(model, Path(settings["engines_dir"]), where)
    steps = STEPS[chosen.partition(":")[0]]
    # Of a bundle without a checkpoint there is no module whose code would need trust.
    named = [step.variant for step in steps if opened.has_checkpoint or runtimes.info(step.variant.partition(":")[0]).format]
    bundles.choose(opened, named, chosen, baseline=False, trusted=trusted)
    record = bench_settings(settings, metric=metric, command=command)
    folder = Path(settings["results_dir"]) / FOLDER if out is None else Path(out)
    return search(opened, steps, plan, chosen, folder, record, limit, progress=progress, launch=spawn)


def search(
    bundle: Bundle,
    steps: Sequence[Step],
    plan: MeasurementPlan,
    device: str,
    out: Path,
    settings: BenchSettings,
    budget: Budget,
    *,
    progress: Progress = silent,
    launch: Launcher = spawn,
) -> Tuned:
    """Tune an open bundle, with the state on record after every row; `launch` is how workers are started. Raises as `Search.run`."""
    facts = _facts(bundle, plan, device, settings)
    key = sha256_bytes(strict.canonical(facts))
    before = tuned.read(bundle.path).get(key, {"rows": [], "best": None})
    known = [Tried.from_dict(row) for row in before["rows"]]
    found = Search(bundle, device, plan, settings, out, budget, launch, known, progress=progress)
    about = {name: facts[name] for name in ("machine", "device", "plan", "gates")}
    about |= {"environment": snapshot(device), "command": settings.command}

    def write(finished: bool = False) -> None:
        unreached = [] if finished else _unreached(found.rows, known)
        best = None if found.best is None else {"variant": found.best.variant, "identity": found.best.identity}
        if before["best"] and before["best"]["variant"] in {row.variant for row in unreached}:
            best = before["best"]
        rows = [dataclasses.asdict(row) for row in [*found.rows, *unreached]]
        tuned.record(bundle.path, key, {**about, "rows": rows, "best": best, "finished": finished, "updated_utc": utc_now()})

    found.note = write
    found.run(steps)
    write(finished=not any(row.verdict == NOT_TRIED for row in found.rows))
    return Tuned(
        bundle.path,
        tuple(dataclasses.asdict(row) for row in found.rows),
        None if found.best is None else found.best.variant,
        _summary(found),
        None if found.best is not None else _problem(found.rows, steps),
    )


def _bundle(model: Path | str, engines_dir: Path, where: Mapping[str, Any]) -> Bundle:
    """The bundle of `model`; one that is not there yet is made with the first engine that can be exported here."""
    path = bundles.locate(model, engines_dir)
    if (path / MANIFEST_FILE).is_file() and all(where[key] is None for key in ("out", "weights", "input", "name")):
        return Bundle.open(path)
    absent: MissingExtra | None = None
    for format in (format for format, info in exporters.FORMATS.items() if info.source is None):
        try:
            (done,) = export(str(model), format, precision="fp32", batch=1, **where)
            return Bundle.open(done.bundle)
        except MissingExtra as error:
            absent = absent or error
    raise absent or AccelError(f"no format can be made of {model}")


def _facts(bundle: Bundle, plan: MeasurementPlan, device: str, settings: BenchSettings) -> dict[str, Any]:
    """What two calls must have in common for one to go on from the other; what ran is told apart by its identity."""
    data = settings.data or (bundle.checkpoint.dataset if bundle.has_checkpoint else "")
    gates = {**dataclasses.asdict(settings.gates(data)), "data": data, "metric": settings.metric}
    return {"machine": devices.name(device), "device": device.partition(":")[0], "plan": plan.to_dict(), "gates": gates}


def _unreached(rows: Sequence[Tried], known: Sequence[Tried]) -> list[Tried]:
    """Of what was on record, that which this call has not come to yet: another interrupt must not lose it."""
    reached = {(row.variant, row.against) for row in rows}
    return [row for row in known if row.timed and (row.variant, row.against) not in reached]


def _summary(found: Search) -> str:
    best, baseline = found.best, found.baseline
    if best is None or baseline is None:
        return f"best: none; no candidate of {found.bundle.path} was verified and timed"
    skipped = sum(row.verdict == NOT_TRIED and row.step != CONFIRMED for row in found.rows)
    rest = f"; {skipped} not tried, see the table" if skipped else ""
    where = "" if found.device == "cuda:0" else f", device={found.device!r}"
    call = f"accel.load({str(found.bundle.path)!r}{where})"
    return f"best: {best.variant}, {_how_much(best, baseline, found.rows)}{rest}; load it: {call}"


def _how_much(best: Tried, baseline: Tried, rows: Sequence[Tried]) -> str:
    if best.variant == baseline.variant:
        return "the baseline: no other candidate was FASTER and right"
    row = next(row for row in reversed(rows) if (row.variant, row.against) == (best.variant, baseline.variant))
    if row.decision != decision.KEEP or row.ratio is None:
        return f"whose gain on {baseline.variant} is not decided: {row.why}"
    wide = f" ({1 / row.ratio_hi:.2f} to {1 / row.ratio_lo:.2f})" if row.ratio_lo and row.ratio_hi else ""
    return f"{1 / row.ratio:.2f}{wide} times as fast as {baseline.variant}"


def _problem(rows: Sequence[Tried], steps: Sequence[Step]) -> AccelError:
    faults = [outcome.Fault(row.variant, row.verdict, row.why, row.remedy) for row in rows]
    return outcome.error_of(faults, [step.variant for step in steps]) or AccelError("no candidate could be measured")
