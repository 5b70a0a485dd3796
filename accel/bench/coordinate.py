"""Run a set, or several side by side: verify what is unverified, then round after round every variant once, each in a fresh process."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accel import device as devices
from accel import locking
from accel.bench import checking, flags, floors, stability
from accel.bench.candidates import Failure, Job, threads_on
from accel.bench.clock import utc_now
from accel.bench.environment import snapshot
from accel.bench.launch import Launcher, spawn
from accel.bench.plan import MeasurementPlan
from accel.bench.results import JSONL, SET, ResultSet, read_description, read_rows
from accel.bench.rounds import Rounds, run_rounds
from accel.bench.rows import RowMaker
from accel.bench.settings import BenchSettings
from accel.bench.telemetry import Telemetry
from accel.bench.verification import Verification, verify_variants
from accel.engines import Bundle
from accel.errors import CorruptArtifact, MissingError
from accel.files import cache_dir
from accel.progress import Progress, silent
from accel.types import Variant

logger = logging.getLogger(__name__)


def run_set(
    bundle: Bundle,
    variants: Sequence[Variant],
    plan: MeasurementPlan,
    device: str,
    out_folder: Path,
    settings: BenchSettings | None = None,
    *,
    verify: bool = True,
    progress: Progress = silent,
    launch: Launcher = spawn,
) -> ResultSet:
    """Verify and time `variants` of `bundle` on `device` (`cpu` or `cuda:N`).

    The set gets a folder of its own in `out_folder`, `MODEL-DEVICE-TIME`. If one there holds the same set unfinished (same bundle,
    variants, plan, device), it is continued: what is on record is not run again. One set runs on a device at a time; a second waits.
    A variant that cannot run, or whose worker fails, gets a row that says why, and the others go on. What the runs of a variant say
    together (`stability`), and the machine's A/A floor for so many, is written into their rows when all have ended, or at an interrupt.

    Args:
        verify: False times unverified engines and marks their rows.
        progress: told how many runs are done; while verifying, how many samples.
        launch: how a worker is started.

    Raises:
        AccelError: what concerns the whole set: a bundle that is damaged, a dataset that cannot be read, a full disk.
        KeyboardInterrupt: what was recorded stays; the same call continues.
    """
    (result,) = run_sets([(bundle, variants)], plan, device, out_folder, settings, verify=verify, progress=progress, launch=launch)
    return result


def run_sets(
    models: Sequence[tuple[Bundle, Sequence[Variant]]],
    plan: MeasurementPlan,
    device: str,
    out_folder: Path,
    settings: BenchSettings | None = None,
    *,
    verify: bool = True,
    progress: Progress = silent,
    launch: Launcher = spawn,
) -> list[ResultSet]:
    """Verify and time several models side by side: a set for each, in the order of `models`, whose rounds are one session.

    A round runs the variants of all models in one order before the next begins, so that a variant of one model may be held against one
    of another, round by round. The sets have the same `session` in their description. Args and Raises as `run_set`.
    """
    settings = settings or BenchSettings()
    threads = threads_on(device, plan.threads)
    with locking.held(device_lock(device), f"a benchmark on {device}"):
        results = open_sets(models, plan, device, Path(out_folder), settings)
        known = floors.read(floors.Machine.of(results[0].description["environment"]))
        jobs = [
            Job(bundle, device, plan.batch, threads, settings, result.folder / "work", launch)
            for (bundle, _), result in zip(models, results, strict=True)
        ]
        verified = [
            _verified(result, job, variants, progress, verify=verify)
            for result, job, (_, variants) in zip(results, jobs, models, strict=True)
        ]
        machine = snapshot(device)
        checked = _self_check(results, jobs[0], progress)
        if checked["passed"] is False:
            # Nothing that this harness measured here could be believed: no variant is timed.
            refused = Failure.refused([flags.Refused("SELF_CHECK", f"the harness failed its self-check: {checked['failures']}")])
            verified = [{name: dataclasses.replace(item, failure=refused) for name, item in of.items()} for of in verified]
        makers = [
            RowMaker(job, plan, result.description["set_id"], machine, checked["floors_us"])
            for result, job in zip(results, jobs, strict=True)
        ]
        for result, maker, verifications in zip(results, makers, verified, strict=True):
            _record_not_run(result, maker, verifications.values())
        try:
            with Telemetry(machine["gpu_uuid"]) as telemetry:
                run_rounds([Rounds(*of, telemetry, progress) for of in zip(results, makers, verified, strict=True)])
                for result in results:
                    result.describe(environment={**result.description["environment"], "nvml": telemetry.describe()})
        finally:
            # An interrupted set is judged by the runs that it has: nobody may ever come to finish it.
            for result in results:
                result.replace(floors.filled(stability.judged(result.rows), known))
        for result, job in zip(results, jobs, strict=True):
            result.describe(state="finished", finished_utc=utc_now())
            shutil.rmtree(job.folder, ignore_errors=True)
    return results


def _verified(result: ResultSet, job: Job, variants: Sequence[Variant], progress: Progress, *, verify: bool) -> dict[str, Verification]:
    found = {str(item.candidate.variant): item for item in verify_variants(job, variants, progress, verify=verify)}
    who = {name: item.candidate for name, item in found.items() if item.candidate.identity}
    result.describe(identities={name: {"sha256": item.identity, "runtime_version": item.runtime_version} for name, item in who.items()})
    return found


def device_lock(device: str) -> Path:
    """The lock file that keeps a second benchmark of this user off `device`.

    A GPU is known by its UUID: under CUDA_VISIBLE_DEVICES one GPU has several ordinals, and one ordinal means several GPUs.
    """
    name = device if device == "cpu" else devices.uuid(device)
    return cache_dir() / "locks" / f"bench-{name}.lock"


def set_key(bundle: Bundle, variants: Sequence[Variant], plan: MeasurementPlan, device: str, beside: Sequence[str] = ()) -> str:
    """What makes two calls the same set; `beside` are the keys, without it, of all sets of its session if there are several."""
    facts = [bundle.manifest_sha256, sorted(map(str, variants)), plan.to_dict(), device, *([list(beside)] if beside else [])]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def open_sets(
    models: Sequence[tuple[Bundle, Sequence[Variant]]], plan: MeasurementPlan, device: str, out_folder: Path, settings: BenchSettings
) -> list[ResultSet]:
    """A set for each model: those of the newest unfinished session of the same models in `out_folder`, else new ones."""
    beside = [set_key(bundle, variants, plan, device) for bundle, variants in models] if len(models) > 1 else []
    opened: list[ResultSet] = []
    for bundle, variants in models:
        opened.append(open_set(bundle, variants, plan, device, out_folder, settings, beside, opened))
    return opened


def open_set(
    bundle: Bundle,
    variants: Sequence[Variant],
    plan: MeasurementPlan,
    device: str,
    out_folder: Path,
    settings: BenchSettings,
    beside: Sequence[str] = (),
    partners: Sequence[ResultSet] = (),
) -> ResultSet:
    """The newest unfinished set with the same key in `out_folder`, else a new one.

    Args:
        beside: as `set_key` takes it.
        partners: the sets of its session that are open; the first of them has its name.
    """
    session = partners[0].description["session"] if partners else None
    taken = {partner.folder for partner in partners}
    key = set_key(bundle, variants, plan, device, beside)
    for path in sorted(out_folder.glob(f"*/{SET}"), reverse=True):
        try:
            description = read_description(path)
        except CorruptArtifact as error:
            logger.warning("this set cannot be gone on with: %s", error.message)
            continue
        of_session = session is None or (description.get("session") == session and path.parent not in taken)
        if description.get("key") == key and description.get("state") == "running" and of_session:
            rows = read_rows(path.parent / JSONL) if (path.parent / JSONL).is_file() else []
            return ResultSet(path.parent, description, rows)
    started = utc_now()
    stamp = started.replace("-", "").replace(":", "")
    base = f"{bundle.name}-{device.replace(':', '')}-{stamp}"
    names = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
    folder = next(out_folder / name for name in names if not (out_folder / name).exists())
    result = ResultSet(folder, {}, [])
    result.describe(
        schema_version=1,
        key=key,
        set_id=folder.name,
        session=(session or folder.name) if beside else None,
        state="running",
        started_utc=started,
        finished_utc=None,
        model=bundle.name,
        bundle=str(bundle.path),
        bundle_sha256=bundle.manifest_sha256,
        device=device,
        variants=[str(variant) for variant in variants],
        plan=plan.to_dict(),
        command=settings.command,
        environment=snapshot(device),
        settings=dict(settings.resolved),
    )
    return result


def _self_check(results: Sequence[ResultSet], job: Job, progress: Progress) -> dict[str, Any]:
    """The self-check of a session, made once and kept in the description of its sets; `passed` is None where it cannot be made.

    Its floors are the machine's only where a machine was checked: the simulated rig of a CPU has none.
    """
    of_sets = [result.description.get("self_check") for result in results]
    known: dict[str, Any] | None = next((found for found in of_sets if found is not None), None)
    if known is None:
        try:
            progress(f"self-check of the harness on {job.device}", 0.0, None)
            found = checking.check(job.device, job.settings.python, job.folder, job.launch)
            known = {**found.to_dict(), "failures": found.failures}
        except MissingError as error:
            known = {"passed": None, "failures": "", "not_run": error.message, "floors_us": {}}
        if job.device == "cpu":
            known["floors_us"] = {}
    for result, has in zip(results, of_sets, strict=True):
        if has is None:
            result.describe(self_check=known)
    return known


def _record_not_run(result: ResultSet, maker: RowMaker, verifications: Any) -> None:
    recorded = {variant for variant, _ in result.recorded()}
    for item in verifications:
        if not item.runnable and str(item.candidate.variant) not in recorded:
            result.append([maker.not_run(item)], {})
