"""Run a set: verify what is unverified, then round after round every variant once, each in a fresh process, on record at once."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accel import locking
from accel.bench.candidates import Failure, Job
from accel.bench.clock import utc_now
from accel.bench.environment import snapshot
from accel.bench.launch import ARRAYS, Launcher, spawn
from accel.bench.plan import MeasurementPlan, order
from accel.bench.results import JSONL, SET, ResultSet, read_rows
from accel.bench.rows import RowMaker
from accel.bench.settings import BenchSettings
from accel.bench.verification import Verification, verify_variants
from accel.engines import Bundle
from accel.errors import AccelError
from accel.files import cache_dir
from accel.optional import require
from accel.progress import Progress, silent
from accel.types import Array, Variant


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
    A variant that cannot run, or whose worker fails, gets a row that says why, and the others go on.

    Args:
        verify: False times unverified engines and marks their rows.
        progress: told how many runs are done; while verifying, how many samples.
        launch: how a worker is started.

    Raises:
        AccelError: what concerns the whole set: a bundle that is damaged, a dataset that cannot be read, a full disk.
        KeyboardInterrupt: what was recorded stays; the same call continues.
    """
    require("scipy.stats", extra="bench")  # every row's intervals need it: said now, and not after the first run
    settings = settings or BenchSettings()
    threads = plan.threads if plan.threads is not None or device == "cpu" else 1
    with locking.held(device_lock(device), f"a benchmark on {device}"):
        result = open_set(bundle, variants, plan, device, Path(out_folder), settings)
        job = Job(bundle, device, plan.batch, threads, settings, result.folder / "work", launch)
        verifications = {str(item.candidate.variant): item for item in verify_variants(job, variants, progress, verify=verify)}
        maker = RowMaker(job, plan, result.description["set_id"], snapshot(device))
        _record_not_run(result, maker, verifications.values())
        _run_rounds(result, maker, verifications, progress)
        result.describe(state="finished", finished_utc=utc_now())
        shutil.rmtree(job.folder, ignore_errors=True)
    return result


def device_lock(device: str) -> Path:
    """The lock file that keeps a second benchmark of this user off `device`."""
    return cache_dir() / "locks" / f"bench-{device.replace(':', '')}.lock"


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
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
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


def _record_not_run(result: ResultSet, maker: RowMaker, verifications: Any) -> None:
    recorded = {variant for variant, _ in result.recorded()}
    for item in verifications:
        if not item.runnable and str(item.candidate.variant) not in recorded:
            result.append([maker.not_run(item)], {})


def _run_rounds(result: ResultSet, maker: RowMaker, verifications: dict[str, Verification], progress: Progress) -> None:
    runnable = [name for name, item in verifications.items() if item.runnable]
    total, done = len(runnable) * maker.plan.rounds, 0
    recorded = result.recorded()
    for round_index in range(maker.plan.rounds):
        for order_index, name in enumerate(order(runnable, round_index, maker.plan.seed)):
            if (name, round_index) not in recorded:
                progress(f"bench {maker.job.bundle.name} {name}", done, total)
                result.append(*_run_once(maker, verifications[name], round_index, order_index))
            done += 1
    if total:
        progress(f"bench {maker.job.bundle.name}", done, total)


def _run_once(maker: RowMaker, verification: Verification, round_index: int, order_index: int) -> tuple[list[Any], dict[str, Array]]:
    job, candidate = maker.job, verification.candidate
    request = job.request("measure", candidate.variant, plan=maker.plan.to_dict())
    try:
        answer = job.launch(request, candidate.python, job.folder, silent)
    except AccelError as error:
        failed = dataclasses.replace(verification, failure=Failure.of(error))
        return [maker.failed(failed, round_index, order_index)], {}
    with np.load(job.folder / ARRAYS, allow_pickle=False) as arrays:
        samples = {kind: arrays[kind] for kind in arrays.files}
    return maker.measured(verification, round_index, order_index, answer, samples)
