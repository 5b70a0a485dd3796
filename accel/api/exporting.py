"""Export a model to engines: write, hold against the golden samples, and only then add to the bundle."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accel import device as devices
from accel import exporters
from accel.api import onnx_models, origins
from accel.api.export_job import ExportJob
from accel.api.settings import resolve
from accel.errors import UsageError
from accel.exporters import BuildOptions, ExportPlan, ExportRequest
from accel.progress import Progress, silent
from accel.types import EngineEntry

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
        share = self.entry.precision_proof.get("share")
        built = {"precision_share": share, "built_s": self.entry.built_s}
        return {**row, "size_mb": size / 1e6, "parity": self.entry.parity["status"], **parity, **built}


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
    flavor: str | None = None,
    options: BuildOptions | None = None,
    embed_preprocess: bool = False,
    dry_run: bool = False,
    force: bool = False,
    trusted: bool = False,
    progress: Progress = silent,
) -> list[Exported]:
    """Export `model` into the bundle `OUT/NAME.accel`, one engine for each format of `to`.

    Args:
        model: a shipped name, a checkpoint or bundle folder, an ONNX file, or `package.module:factory`. A bundle, or an ONNX file inside
            of one, is added to where it is, unless `out` or `name` moves it; of any other ONNX file a bundle is made.
        to: `onnx`, `torchscript`, `aoti`, `tensorrt` (`trt`), `tensorrt-rtx`, `fused`, or several. Plans are built from the bundle's
            ONNX engine, which is exported first if it is missing; torch is needed only then. `fused` is made from the model, or without
            torch from that ONNX engine.
        precision: `fp32` or `fp16`; None takes the setting, as it does for opset, batch, out and device.
        batch: a fixed batch size or `dynamic`.
        weights, input: of a factory: its `.safetensors`, and the input as `1x3x224x224`.
        name: of the bundle, where the model's own is not wanted.
        device: where the engine is run to be held against the golden samples; `aoti` and `fused` are compiled for it,
            `tensorrt` built on it.
        flavor: `rtx` turns `tensorrt` into `tensorrt-rtx`.
        options: of formats that are built by an optimiser.
        embed_preprocess: put the bundle's preprocessing into the model: its public input is then uint8 N×H×W×C, pixels as they are, for
            every engine of the bundle.
        dry_run: say what would be written, write nothing.
        force: export anew what is there, and replace a bundle of another model.
        trusted: build the module of a bundle that somebody else exported, or of a checkpoint, which calls the factory that it names.

    Returns:
        What became of each format, in the order asked for.

    Raises:
        UsageError: a request that cannot be carried out; UnknownName for a model, format or precision that does not exist.
        UntrustedArtifact: the module of a bundle that nobody vouches for is needed; a checkpoint names code that is not accel's.
        ParityError: an engine disagrees with the golden samples; it was not added.
        MissingExtra, DiskFull, ArtifactError: as their names say.
    """
    formats = _formats(to, flavor)
    flags = {"export.precision": precision, "export.opset": opset, "export.batch": _text(batch), "engines_dir": _text(out)}
    settings = resolve({**flags, "device": device})
    with tempfile.TemporaryDirectory(prefix="accel-export-") as scratch:
        origin = origins.find(
            model,
            Path(scratch),
            Path(settings["engines_dir"]),
            weights=_path(weights),
            shape=input,
            name=name,
            moved=name is not None or out is not None,
            pixels=embed_preprocess,
            trusted=trusted,
        )
        job = ExportJob(origin, devices.parse(settings["device"]), force, settings.table("bench.python"))
        request = ExportRequest(
            module=None,
            inputs=origin.inputs,
            outputs=origin.outputs,
            precision=settings["export.precision"],
            folder=Path(scratch),
            batch=_batch(_of_file(origin) if batch is None else None, settings["export.batch"]),
            model=origin.typed,
            device=job.device,
            options=options or BuildOptions(),
            progress=progress,
        )
        # An opset that was typed is held against every format; one from the settings is about those that have opsets.
        opsets = [settings["export.opset"] if exporters.FORMATS[format].opsets else opset for format in formats]
        requests = [
            job.complete(format, dataclasses.replace(request, opset=wanted)) for format, wanted in zip(formats, opsets, strict=True)
        ]
        plans = [job.plan(format, item) for format, item in zip(formats, requests, strict=True)]
        if dry_run:
            return [Exported(job.path, plan, PLANNED) for plan in plans]
        done = []
        for number, (plan, item) in enumerate(zip(plans, requests, strict=True)):
            progress(f"export {origin.name}", number, len(plans))
            entry, added = job.run(plan.format, item, opset=settings["export.opset"])
            done.append(Exported(job.path, plan, ADDED if added else KEPT, entry))
    # A bundle that was only looked at may lie on a disk that cannot be written.
    if any(item.status == ADDED for item in done):
        settings.save(job.path)
    return done


def _formats(to: str | Sequence[str], flavor: str | None) -> list[str]:
    names = [to] if isinstance(to, str) else list(to)
    if not names:
        raise UsageError("no format was named", remedy=f"name one of: {', '.join(sorted(exporters.EXPORTERS))}")
    formats = [exporters.resolve(name, flavor) for name in names]
    for format in formats:
        exporters.get(format)
    return formats


def _of_file(origin: origins.Origin) -> int | str | None:
    """The batch size that an ONNX file is fixed to; None where it, or the user, may choose."""
    if origin.onnx is None:
        return None
    batch = onnx_models.batch_of(origin.onnx)
    return batch if isinstance(batch, int) else None


def _batch(fixed: int | str | None, text: str) -> int | str:
    if fixed is not None:
        return fixed
    return int(text) if text.isdecimal() else text


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _path(value: Path | str | None) -> Path | None:
    return None if value is None else Path(value).expanduser()
