"""Time the engines of a bundle, or of several side by side: each verified first, each in processes of its own, all on one record."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from accel import device as devices
from accel.api import against_itself, bundles, outcome, tracking
from accel.api.settings import resolve
from accel.bench import report
from accel.bench.coordinate import run_set, run_sets
from accel.bench.plan import MeasurementPlan
from accel.bench.results import CSV, JSONL, ResultSet, Row
from accel.bench.settings import BenchSettings
from accel.bench.summary import HEADLINE, lines
from accel.config import Settings
from accel.engines import Bundle, measured
from accel.errors import AccelError, UsageError
from accel.files import write_text
from accel.progress import Progress, silent
from accel.tracking import Tracker, followed

logger = logging.getLogger(__name__)

OK = "OK"
TABLE = "table.md"


@dataclasses.dataclass(frozen=True)
class Benched:
    """Sets that ran to their end.

    Attributes:
        sets: one a bundle: rows and samples, and the folder where they lie: results.jsonl, results.csv, samples.npz, table.md,
            settings.json.
        faults: the variants that have no good row.
        notes: of an A/A set, the floor of each variant and of the machine; of several sets, how they are held against each other.
        problem: what the command ends with: a failed gate, or something asked for that is missing; None if all is well.
    """

    sets: tuple[ResultSet, ...]
    faults: tuple[outcome.Fault, ...]
    problem: AccelError | None
    notes: tuple[str, ...] = ()

    @property
    def results(self) -> ResultSet:
        """The set, of the first bundle if there were several."""
        return self.sets[0]


def bench(
    bundle: Path | str | Sequence[Path | str] = "resnet18",
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
        bundle: a folder `NAME.accel`, or a model's name in the engines folder; a shipped model is exported first if need be. Several are
            timed side by side: each gets a set of its own, and a round runs the variants of all before the next begins.
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
        UsageError, BundleMissing, ArtifactError, DeviceUnavailable: nothing was run. MissingError: the tracking store cannot be reached;
            several sets are logged when they are finished, and are there all the same.
    """
    asked = [bundle] if isinstance(bundle, str | Path) else list(bundle)
    if not asked:
        raise UsageError("no bundle was named", remedy="name one or more, as resnet18")
    if aa and len(asked) > 1:
        raise UsageError(f"--aa runs the variants of one bundle, and {len(asked)} were named", remedy="name one")
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
    opened = [bundles.open_or_export(item, names, engines_dir=settings["engines_dir"], device=chosen, progress=progress) for item in asked]
    if again := [item.path for place, item in enumerate(opened) if item.path in [other.path for other in opened[:place]]]:
        raise UsageError(f"{again[0]} is named twice", remedy="name it once; --aa runs a bundle against itself")
    variants = [bundles.choose(item, names, chosen, baseline=baseline and not aa, trusted=trusted) for item in opened]
    record = bench_settings(settings, metric=metric, command=command)
    folder = Path(settings["results_dir"])
    followers = [tracking.tracker(settings, "bench", tags={"accel.model": item.name, "accel.command": command}) for item in opened]
    if len(opened) == 1:
        with _tracked(followers[0], opened[0], plan, chosen) as finish:
            sets = [run_set(opened[0], variants[0], plan, chosen, folder, record, verify=verify, progress=progress)]
            _keep(opened[0], sets[0], settings, remember=not aa)
            finish(sets[0])
    else:
        pairs = list(zip(opened, variants, strict=True))
        sets = run_sets(pairs, plan, chosen, folder, record, verify=verify, progress=progress)
        for item, results in zip(opened, sets, strict=True):
            _keep(item, results, settings)
        for follower, item, results in zip(followers, opened, sets, strict=True):
            with _tracked(follower, item, plan, chosen) as finish:
                finish(results)
    faults: list[outcome.Fault] = []
    problem = None
    for item, results in zip(opened, sets, strict=True):
        name = item.name if len(sets) > 1 else ""
        own = dict.fromkeys(_fault(row) for row in results.rows if row["verdict"] != OK)
        unexpected = [fault for fault in own if verify or fault.verdict != "UNVERIFIED"]
        nothing_ran = all(row["verdict"] in ("MISSING", "REFUSED") for row in results.rows)
        problem = problem or outcome.error_of(unexpected, names, nothing_ran=nothing_ran, model=name)
        faults += own
    if not aa:
        return Benched(tuple(sets), tuple(faults), problem, _side_by_side(sets))
    notes, mistrusted = against_itself.conclude(sets[0])
    return Benched(tuple(sets), tuple(faults), mistrusted or problem, notes)


def _side_by_side(sets: Sequence[ResultSet]) -> tuple[str, ...]:
    if len(sets) == 1:
        return ()
    words = " ".join(shlex.quote(str(results.folder)) for results in sets[:2])
    return (f"timed side by side: `accel compare {words}` says which is faster",)


@contextlib.contextmanager
def _tracked(follower: Tracker, bundle: Bundle, plan: MeasurementPlan, device: str) -> Iterator[Callable[[ResultSet], None]]:
    """A run of the tracking store, if there is one, and what it is told of the finished set."""
    with followed(follower):
        follower.start(f"{bundle.name} {device}", tracking.parameters(bundle.name, device, plan))

        def finish(results: ResultSet) -> None:
            follower.finish(*tracking.of_set(results), [(results.folder / name, "") for name in (JSONL, CSV, TABLE)])

        yield finish


def _keep(bundle: Bundle, results: ResultSet, settings: Settings, *, remember: bool = True) -> None:
    """What lies beside the record of a finished set, and what its bundle knows of it."""
    if remember:
        _remember(bundle, results)
    settings.save(results.folder)
    write_text(results.folder / TABLE, report.render([results], "markdown"))


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
