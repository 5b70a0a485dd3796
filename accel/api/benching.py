"""Time the engines of a bundle: each verified first, each in processes of its own, all on one record."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from accel import device as devices
from accel.api import against_itself, bundles, outcome, tracking
from accel.api.settings import resolve
from accel.bench import report
from accel.bench.coordinate import run_set
from accel.bench.plan import MeasurementPlan
from accel.bench.results import CSV, JSONL, ResultSet, Row
from accel.bench.settings import BenchSettings
from accel.bench.summary import HEADLINE, lines
from accel.config import Settings
from accel.engines import Bundle, measured
from accel.errors import AccelError
from accel.files import write_text
from accel.progress import Progress, silent
from accel.tracking import followed

logger = logging.getLogger(__name__)

OK = "OK"
TABLE = "table.md"


@dataclasses.dataclass(frozen=True)
class Benched:
    """A set that ran to its end.

    Attributes:
        results: rows and samples, and the folder where they lie: results.jsonl, results.csv, samples.npz, table.md, settings.json.
        faults: the variants that have no good row.
        notes: of an A/A set, the floor of each variant and of the machine.
        problem: what the command ends with: a failed gate, or something asked for that is missing; None if all is well.
    """

    results: ResultSet
    faults: tuple[outcome.Fault, ...]
    problem: AccelError | None
    notes: tuple[str, ...] = ()


def bench(
    bundle: Path | str = "resnet18",
    runtime: str | Sequence[str] | None = None,
    *,
    warmup: int | None = None,
    iterations: int | str | None = None,
    rounds: int | None = None,
    max_rounds: int | None = None,
    batch: int = 1,
    threads: int | None = None,
    l2: str = "hot",
    idle_ms: float | None = None,
    rebuild: bool = False,
    device: str | None = None,
    out: Path | str | None = None,
    verify: bool = True,
    baseline: bool = True,
    aa: bool = False,
    data: str | None = None,
    metric: str = "top1",
    max_drop: float | None = None,
    min_top1: float | None = None,
    trusted: bool = False,
    track: str | None = None,
    command: str = "",
    progress: Progress = silent,
) -> Benched:
    """Verify and time variants of `bundle`; a set that was interrupted is continued by the same call.

    Args:
        bundle: a folder `NAME.accel`, or a model's name in the engines folder; a shipped model is exported first if need be.
        runtime: `all` (None), runtimes (`onnxruntime`: every precision that the bundle has) or variants (`onnxruntime:fp16`).
        warmup, iterations, rounds, max_rounds, threads: None takes the setting, and that the plan of the device; `iterations` may be
            `auto`.
        l2: `cold` fills the GPU's L2 cache with other data before every sample.
        idle_ms: also time calls after a sleep of so many milliseconds, what a service sees that is called now and then (`paced_us`).
        rebuild: give every run empty compile caches, so that each `build_s` is a cold build; it takes as much longer.
        out: where the set gets its folder.
        verify: False leaves unverified engines unverified, and marks them.
        baseline: whether `eager:fp32` runs beside what was named.
        aa: run what was named against itself and nothing beside it, to learn the A/A floor of the machine (`accel.api.against_itself`);
            `rounds` are then 20 or a larger even number.
        data, metric, max_drop, min_top1: as `accel.verify` takes them.
        trusted: run code of a bundle that somebody else exported.
        track: `mlflow` logs the finished set there as well (`accel.api.tracking`); None takes the setting.
        command: what was typed, for the record.

    Raises:
        UsageError, BundleMissing, ArtifactError, DeviceUnavailable: nothing was run. MissingError: the tracking store cannot be reached.
    """
    if aa:
        rounds = max_rounds = against_itself.count_rounds(runtime, rounds, max_rounds)
    names = [runtime] if isinstance(runtime, str) else ["all"] if runtime is None else list(runtime)
    counts = {"warmup": warmup, "iterations": iterations, "rounds": rounds, "max_rounds": max_rounds, "threads": threads}
    typed = {**{f"bench.{name}": value for name, value in counts.items()}, "device": device}
    gates = {"verify.data": data, "verify.max_drop": max_drop, "verify.min_top1": min_top1}
    settings = resolve({**typed, **gates, "results_dir": None if out is None else str(out), "track.to": track})
    chosen = devices.parse(settings["device"])
    plan = MeasurementPlan.default(
        chosen,
        **{name: settings[f"bench.{name}"] for name in counts},
        batch=batch,
        l2=l2,
        idle_ms=idle_ms,
        rebuild=rebuild,
        seed=settings["seed"],
        name=against_itself.PLAN_NAME if aa else None,
    )
    opened = bundles.open_or_export(bundle, names, engines_dir=settings["engines_dir"], device=chosen, progress=progress)
    variants = bundles.choose(opened, names, chosen, baseline=baseline and not aa, trusted=trusted)
    record = bench_settings(settings, metric=metric, command=command)
    follower = tracking.tracker(settings, "bench", tags={"accel.model": opened.name, "accel.command": command})
    with followed(follower):
        follower.start(f"{opened.name} {chosen}", tracking.parameters(opened.name, chosen, plan))
        results = run_set(opened, variants, plan, chosen, Path(settings["results_dir"]), record, verify=verify, progress=progress)
        if not aa:
            _remember(opened, results)
        settings.save(results.folder)
        write_text(results.folder / TABLE, report.render([results], "markdown"))
        follower.finish(*tracking.of_set(results), [(results.folder / name, "") for name in (JSONL, CSV, TABLE)])
    faults = dict.fromkeys(_fault(row) for row in results.rows if row["verdict"] != OK)
    unexpected = [fault for fault in faults if verify or fault.verdict != "UNVERIFIED"]
    nothing_ran = all(row["verdict"] in ("MISSING", "REFUSED") for row in results.rows)
    problem = outcome.error_of(unexpected, names, nothing_ran=nothing_ran)
    if not aa:
        return Benched(results, tuple(faults), problem)
    notes, mistrusted = against_itself.conclude(results)
    return Benched(results, tuple(faults), mistrusted or problem, notes)


def bench_settings(settings: Settings, *, metric: str, command: str) -> BenchSettings:
    """What the bench room is told of the resolved settings."""
    return BenchSettings(
        python=settings.table("bench.python"),
        data=settings["verify.data"] or None,
        metric=metric,
        max_drop=settings["verify.max_drop"],
        min_top1=settings["verify.min_top1"],
        command=command,
        resolved=settings.to_dict(),
    )


def _remember(bundle: Bundle, results: ResultSet) -> None:
    """Leave in the bundle how fast its engines were here, for `accel.load`; a bundle that cannot be written stays as it is."""
    of, identities = results.description, results.description.get("identities", {})
    rows = []
    for line in lines(results.rows, results.samples()):
        latency, who = line.latency.get(HEADLINE), identities.get(line.variant)
        if line.verdict == OK and who is not None and latency is not None and latency.p50_us is not None:
            known = {"identity": who["sha256"], "runtime_version": who["runtime_version"]}
            rows.append({"variant": line.variant, **known, "p50_us": latency.p50_us})
    if not rows:
        return
    about = {"latency": HEADLINE, "set_id": of["set_id"], "command": of["command"], "measured_utc": of["finished_utc"]}
    try:
        measured.record(bundle.path, devices.name(of["device"]), of["plan"]["batch"], rows, **about)
    except OSError as error:
        logger.warning("%s cannot be written, so accel.load will not know of this set: %s", bundle.path, error)


def _fault(row: Row) -> outcome.Fault:
    return outcome.Fault(row["variant"], row["verdict"], row["reason"] or "", row["remedy"], row["exit_code"] or None)
