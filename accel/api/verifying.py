"""Hold every variant of a bundle against the FP32 reference on the real test set."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accel import device as devices
from accel.api import bundles, outcome
from accel.api.benching import bench_settings
from accel.api.settings import resolve
from accel.bench.candidates import Job, threads_on
from accel.bench.launch import spawn
from accel.bench.verification import Verification, verify_variants
from accel.errors import AccelError
from accel.progress import Progress, silent


@dataclasses.dataclass(frozen=True)
class Verified:
    """What verification found.

    Attributes:
        rows: one mapping a variant: the fields of VerifyResult (percent, counts; None where not known), `verdict`, `reason`, `cached`.
        problem: what the command ends with: a failed gate, or something missing; None if every variant passed.
    """

    rows: tuple[dict[str, Any], ...]
    problem: AccelError | None

    @property
    def passed(self) -> bool:
        return self.problem is None


def verify(
    bundle: Path | str = "resnet18",
    variant: str | Sequence[str] = "all",
    *,
    data: str | None = None,
    metric: str = "top1",
    max_drop: float | None = None,
    min_top1: float | None = None,
    batch: int = 1,
    device: str | None = None,
    trusted: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> Verified:
    """Top-1 of every variant on all test images, beside the eager FP32 reference; what is known of the same bytes is looked up.

    Args:
        bundle: a folder `NAME.accel`, or a model's name in the engines folder; a shipped model is exported first if need be.
        variant: `all`, runtimes or variants, as `onnxruntime:fp16`.
        data: `cifar10`, `imagefolder:DIR`, `npz:FILE` or `pkg.mod:iterable`; None is the dataset that the model was trained on.
        metric: `top1` or `pkg.mod:function`.
        max_drop: points that the metric may fall; min_top1: its floor in percent. None takes the setting.
        batch: of the engines, and at which they are run.
        trusted: run code of a bundle that somebody else exported.
        force: run again what is known.

    Raises:
        UsageError, BundleMissing, ArtifactError, DeviceUnavailable: nothing was run.
    """
    names = [variant] if isinstance(variant, str) else list(variant)
    settings = resolve({"verify.data": data, "verify.max_drop": max_drop, "verify.min_top1": min_top1, "device": device})
    chosen = devices.parse(settings["device"])
    opened = bundles.open_or_export(bundle, names, engines_dir=settings["engines_dir"], device=chosen, progress=progress)
    variants = bundles.choose(opened, names, chosen, baseline=False, trusted=trusted)
    record = bench_settings(settings, metric=metric, command="")
    with tempfile.TemporaryDirectory(prefix="accel-verify-") as scratch:
        threads = threads_on(chosen, settings["bench.threads"])
        job = Job(opened, chosen, batch, threads, record, Path(scratch), spawn)
        found = verify_variants(job, variants, progress, again=force)
    # What was only looked up may lie on a disk that cannot be written.
    if not all(item.cached or item.result is None for item in found):
        settings.save(opened.path)
    faults = [
        outcome.Fault(str(item.candidate.variant), item.failure.verdict, item.failure.reason, item.failure.remedy, item.failure.exit_code)
        for item in found
        if item.failure is not None
    ]
    return Verified(tuple(_row(item) for item in found), outcome.error_of(faults, names, nothing_ran=len(faults) == len(found)))


def _row(item: Verification) -> dict[str, Any]:
    result = {} if item.result is None else item.result.to_dict()
    failure = item.failure
    verdict, reason, remedy = ("OK", "", None) if failure is None else (failure.verdict, failure.reason, failure.remedy)
    drop = None if item.result is None else item.result.drop
    facts = {"verdict": verdict, "reason": reason, "remedy": remedy, "cached": item.cached, "drop": drop}
    return {"variant": str(item.candidate.variant), **result, **facts}
