"""Export a model to engines: write, hold against the golden samples, and only then add to the bundle."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accel import device as devices
from accel import engines, exporters, runtimes
from accel.api import models
from accel.api.settings import resolve
from accel.engines import Bundle, Golden, module, trust
from accel.errors import BundleMissing, CorruptArtifact, MissingError, ParityError, UsageError
from accel.exporters import ExportPlan, ExportRequest
from accel.files import scratch_folder
from accel.progress import Progress, silent
from accel.types import Checkpoint, EngineEntry, EngineSource, Variant
from accel.verify import parity

KEPT, ADDED, PLANNED = "kept", "added", "planned"


@dataclasses.dataclass(frozen=True)
class Exported:
    """What became of one engine.

    Attributes:
        status: `added`; `kept` (it was there, whole, from the same weights and options); `planned` (a dry run).
        entry: None if it is only planned.
    """

    bundle: Path
    plan: ExportPlan
    status: str
    entry: EngineEntry | None = None

    def to_row(self) -> dict[str, Any]:
        """One line of a table; sizes in MB (10^6 bytes), an estimate for a planned engine."""
        row = {"engine": self.plan.name, "status": self.status, "file": str(self.bundle / self.plan.files[0]), "opset": self.plan.opset}
        if self.entry is None:
            return {**row, "size_mb": self.plan.size_bytes / 1e6}
        size = sum((self.bundle / file).stat().st_size for file in self.entry.files)
        parity = {key: self.entry.parity.get(key) for key in ("max_rel_err", "limit", "reason")}
        return {**row, "size_mb": size / 1e6, "parity": self.entry.parity["status"], **parity, "built_s": self.entry.built_s}


def export(
    model: str = "resnet18",
    to: str | Sequence[str] = "onnx",
    *,
    precision: str | None = None,
    opset: int | None = None,
    batch: int | str | None = None,
    out: Path | str | None = None,
    weights: Path | str | None = None,
    input: str | None = None,
    name: str | None = None,
    device: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> list[Exported]:
    """Export `model` into the bundle `OUT/NAME.accel`, one engine for each format of `to`.

    Args:
        model: a shipped name, a checkpoint or bundle folder, or `package.module:factory`.
        to: `onnx`, `torchscript`, `aoti`, or several.
        precision: `fp32` or `fp16`; None takes the setting, as it does for opset, batch, out and device.
        batch: a fixed batch size or `dynamic`.
        weights, input: of a factory: its `.safetensors`, and the input as `1x3x224x224`.
        name: of the bundle, where the model's own is not wanted.
        device: where the engine is run to be held against the golden samples; `aoti` is compiled for it.
        dry_run: say what would be written, write nothing.
        force: export anew what is there, and replace a bundle of another model.

    Returns:
        What became of each format, in the order asked for.

    Raises:
        UsageError: a request that cannot be carried out; UnknownName for a model, format or precision that does not exist.
        ParityError: an engine disagrees with the golden samples; it was not added.
        MissingExtra, DiskFull, ArtifactError: as their names say.
    """
    formats = [to] if isinstance(to, str) else list(to)
    if not formats:
        raise UsageError("no format was named", remedy=f"name one of: {', '.join(sorted(exporters.EXPORTERS))}")
    for format in formats:
        exporters.get(format)
    flags = {"export.precision": precision, "export.opset": opset, "export.batch": _text(batch), "engines_dir": _text(out)}
    settings = resolve({**flags, "device": device})
    with tempfile.TemporaryDirectory(prefix="accel-export-") as scratch:
        checkpoint = models.resolve(model, Path(scratch), weights=_path(weights), shape=input, name=name)
        job = _Job(Path(settings["engines_dir"]) / f"{checkpoint.name}.accel", checkpoint, devices.parse(settings["device"]), force)
        request = ExportRequest(
            module=job.module,
            inputs=(checkpoint.input,),
            outputs=(checkpoint.output,),
            precision=settings["export.precision"],
            folder=Path(scratch),
            batch=_batch(settings["export.batch"]),
            device=job.device,
        )
        # An opset that was typed is held against every format; one from the settings is about those that have opsets.
        opsets = [settings["export.opset"] if exporters.FORMATS[format].opsets else opset for format in formats]
        requests = [dataclasses.replace(request, opset=wanted) for wanted in opsets]
        plans = [exporters.plan(format, item) for format, item in zip(formats, requests, strict=True)]
        if dry_run:
            return [Exported(job.path, plan, PLANNED) for plan in plans]
        done = []
        for number, (plan, item) in enumerate(zip(plans, requests, strict=True)):
            progress(f"export {checkpoint.name}", number, len(plans))
            done.append(job.run(plan, item))
    # A bundle that was only looked at may lie on a disk that cannot be written.
    if any(item.status == ADDED for item in done):
        settings.save(job.path)
    return done


_PARITY_REMEDIES = {
    "fp16": "export it in fp32, or keep the layers that overflow in FP32 inside the module",
    "fp32": "see `accel doctor`; --device cpu compares on the CPU instead, and tells the file from the GPU's arithmetic",
}


class _Job:
    """The exports of one call into one bundle; nothing of the bundle exists before its first engine has passed parity."""

    def __init__(self, path: Path, checkpoint: Checkpoint, device: str, force: bool) -> None:
        self.path, self.checkpoint, self.device, self.force = path, checkpoint, device, force
        self.bundle = self._open()
        # What somebody else put into the bundle is not vouched for because this user adds an engine to it.
        self.vouched = self.bundle is None or trust.is_trusted(self.bundle)

    @functools.cached_property
    def module(self) -> Any:
        return module.build_module(self.checkpoint)

    @functools.cached_property
    def golden(self) -> Golden:
        """The bundle's own, so that every engine of it was held against the same samples."""
        return models.golden_of(self.checkpoint, self.module) if self.bundle is None else self.bundle.golden()

    def run(self, plan: ExportPlan, request: ExportRequest) -> Exported:
        kept = self._kept(plan, asked_opset=request.opset)
        if kept is not None:
            return Exported(self.path, plan, KEPT, kept)
        with scratch_folder(self.path.parent, f"{self.path.name}.{plan.name}") as folder:
            entry = exporters.export(plan.format, dataclasses.replace(request, folder=folder))
            entry = dataclasses.replace(entry, parity=self._parity(entry, folder))
            if entry.parity["status"] == "failed":
                raise ParityError(
                    f"{entry.name} of {self.checkpoint.name} disagrees with the golden samples and was not added: {entry.parity['reason']}",
                    remedy=_PARITY_REMEDIES.get(entry.precision),
                )
            engines.create(self.path, self.checkpoint, self.golden, replace=self.force and self.bundle is None)
            self.bundle = engines.add(self.path, entry, folder)
        if self.vouched:
            trust.record(self.bundle)
        return Exported(self.path, plan, ADDED, entry)

    def _open(self) -> Bundle | None:
        """The bundle that will be added to; None if there is none yet, or one that `force` replaces."""
        try:
            bundle = Bundle.open(self.path)
            if engines.holds(bundle, self.checkpoint):
                return bundle
        except BundleMissing:
            if not self.path.exists():
                return None
            raise UsageError(f"{self.path} exists and is no bundle", remedy="choose another folder with --out, or remove it") from None
        except CorruptArtifact as error:
            if self.force:
                return None
            raise CorruptArtifact(error.message, remedy="export with --force to replace the bundle, or restore it") from error
        if self.force:
            return None
        raise UsageError(
            f"{self.path} holds another model than {self.checkpoint.name} with these weights",
            remedy="--force replaces it; --out or --name keeps both",
        )

    def _kept(self, plan: ExportPlan, asked_opset: int | None) -> EngineEntry | None:
        """The engine that is there already, if it is whole and what was asked for."""
        if self.bundle is None or self.force:
            return None
        kind = self.device.partition(":")[0]
        for entry in self.bundle.entries:
            if exporters.FORMATS[plan.format].per_device and entry.target.get("device") != kind:
                continue
            if entry.name == plan.name and asked_opset in (None, entry.opset):
                try:
                    self.bundle.file(entry)
                except CorruptArtifact:
                    return None
                return entry
        return None

    def _parity(self, entry: EngineEntry, folder: Path) -> dict[str, Any]:
        runtime = next(name for name, info in runtimes.RUNTIMES.items() if info.format == entry.format)
        source = EngineSource(
            variant=Variant(runtime, entry.precision),
            device=self.device,
            inputs=(self.checkpoint.input,),
            outputs=(self.checkpoint.output,),
            batch=int(size) if isinstance(size := entry.inputs[0].shape[0], int) else 1,
            entry=entry,
            file=folder / next(iter(entry.files)).removeprefix(f"{entry.name}/"),
            parity_only=True,
        )
        try:
            return parity.run(source, self.golden)
        except MissingError as error:
            # The file is right or wrong whether or not this machine can run it; an engine that was not run is never ranked.
            return {"status": "not run", "reason": error.message}


def _batch(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _path(value: Path | str | None) -> Path | None:
    return None if value is None else Path(value).expanduser()
