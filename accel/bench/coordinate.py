"""Run a set: verify what is unverified, then round after round every variant once, each in a fresh process, on record at once."""

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
from accel.bench.rounds import Rounds
from accel.bench.rows import RowMaker
from accel.bench.settings import BenchSettings
from accel.bench.telemetry import Telemetry
from accel.bench.verification import verify_variants
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
    settings = settings or BenchSettings()
    threads = threads_on(device, plan.threads)
    with locking.held(device_lock(device), f"a benchmark on {device}"):
        result = open_set(bundle, variants, plan, device, Path(out_folder), settings)
        known = floors.read(floors.Machine.of(result.description["environment"]))
        job = Job(bundle, device, plan.batch, threads, settings, result.folder / "work", launch)
        verifications = {str(item.candidate.variant): item for item in verify_variants(job, variants, progress, verify=verify)}
        who = {name: item.candidate for name, item in verifications.items() if item.candidate.identity}
        result.describe(identities={name: {"sha256": item.identity, "runtime_version": item.runtime_version} for name, item in who.items()})
        machine = snapshot(device)
        checked = _self_check(result, job, progress)
        if checked["passed"] is False:
            # Nothing that this harness measured here could be believed: no variant is timed.
            refused = Failure.refused([flags.Refused("SELF_CHECK", f"the harness failed its self-check: {checked['failures']}")])
            verifications = {name: dataclasses.replace(item, failure=refused) for name, item in verifications.items()}
        maker = RowMaker(job, plan, result.description["set_id"], machine, checked["floors_us"])
        _record_not_run(result, maker, verifications.values())
        try:
            with Telemetry(machine["gpu_uuid"]) as telemetry:
                Rounds(result, maker, verifications, telemetry, progress).run()
                result.describe(environment={**result.description["environment"], "nvml": telemetry.describe()})
        finally:
            # An interrupted set is judged by the runs that it has: nobody may ever come to finish it.
            result.replace(floors.filled(stability.judged(result.rows), known))
        result.describe(state="finished", finished_utc=utc_now())
        shutil.rmtree(job.folder, ignore_errors=True)
    return result


def device_lock(device: str) -> Path:
    """The lock file that keeps a second benchmark of this user off `device`.

    A GPU is known by its UUID: under CUDA_VISIBLE_DEVICES one GPU has several ordinals, and one ordinal means several GPUs.
    """
    name = device if device == "cpu" else devices.uuid(device)
    return cache_dir() / "locks" / f"bench-{name}.lock"


def set_key(bundle: Bundle, variants: Sequence[Variant], plan: MeasurementPlan, device: str) -> str:
    """What makes two calls the same set."""
    facts = [bundle.manifest_sha256, sorted(map(str, variants)), plan.to_dict(), device]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def open_set(
    bundle: Bundle, variants: Sequence[Variant], plan: MeasurementPlan, device: str, out_folder: Path, settings: BenchSettings
) -> ResultSet:
    """The newest unfinished set with the same key in `out_folder`, else a new one."""
    key = set_key(bundle, variants, plan, device)
    for path in sorted(out_folder.glob(f"*/{SET}"), reverse=True):
        try:
            description = read_description(path)
        except CorruptArtifact as error:
            logger.warning("this set cannot be gone on with: %s", error.message)
            continue
        if description.get("key") == key and description.get("state") == "running":
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


def _self_check(result: ResultSet, job: Job, progress: Progress) -> dict[str, Any]:
    """The self-check of this set, made once and kept in its description; `passed` is None where it cannot be made.

    Its floors are the machine's only where a machine was checked: the simulated rig of a CPU has none.
    """
    known: dict[str, Any] | None = result.description.get("self_check")
    if known is None:
        try:
            progress(f"self-check of the harness on {job.device}", 0.0, None)
            found = checking.check(job.device, job.settings.python, job.folder, job.launch)
            known = {**found.to_dict(), "failures": found.failures}
        except MissingError as error:
            known = {"passed": None, "failures": "", "not_run": error.message, "floors_us": {}}
        if job.device == "cpu":
            known["floors_us"] = {}
        result.describe(self_check=known)
    return known


def _record_not_run(result: ResultSet, maker: RowMaker, verifications: Any) -> None:
    recorded = {variant for variant, _ in result.recorded()}
    for item in verifications:
        if not item.runnable and str(item.candidate.variant) not in recorded:
            result.append([maker.not_run(item)], {})
