"""Make an engine anew for this machine, from what its bundle has, and keep it beside the one that is for another."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path

from accel import device as devices
from accel import engines, runtimes
from accel.engines import Bundle, entry_name, trust
from accel.errors import CorruptArtifact, RuntimeUnavailable
from accel.files import scratch_folder
from accel.types import EngineEntry, Variant

logger = logging.getLogger(__name__)


def rebuild(bundle: Bundle, variant: Variant, batch: int | str, device: str) -> EngineEntry:
    """Export the engine of `variant` again on this machine and add it to `bundle` under a name of its own.

    The name ends with the GPU and the library's version, as `tensorrt-fp16-nvidia-h200-8-6-0`; what was there stays as it is.
    Whoever resolves the variant afterwards gets the one that fits.

    Args:
        batch: of the engine, a number or `dynamic`.
        device: `cpu` or `cuda:N`, where it is built and held against the golden samples.

    Returns:
        The new entry, whose parity was passed here.

    Raises:
        ParityError, PrecisionError: the new engine is not right; nothing was added.
        RuntimeUnavailable: it could not be held against the golden samples here.
        MissingExtra, BundleMissing, DiskFull: what the export needs is not there.
    """
    format = runtimes.info(variant.runtime).format
    if format is None:
        raise CorruptArtifact(f"{variant} runs no file of {bundle.path}", remedy="load it without rebuild")
    logger.info("building %s of %s again for %s", format, bundle.path, devices.name(device))
    vouched = trust.is_trusted(bundle)
    place = bundle.path.resolve()
    with scratch_folder(place.parent, f"{place.name}.rebuild") as scratch:
        # The export works on a copy: whatever happens to it, the bundle keeps its engine for the other machine.
        copy = Path(shutil.copytree(place, scratch / f"{bundle.name}.accel", ignore=shutil.ignore_patterns(".*")))
        made = _export(copy, format, variant.precision, batch, device)
        if made.parity.get("status") != "passed":
            raise RuntimeUnavailable(
                f"{made.name} was built for {device} and could not be held against the golden samples: {made.parity.get('reason')}",
                remedy="see `accel doctor`; an engine that was not run here is not kept",
            )
        tag = f"{devices.name(device)} {runtimes.version(variant.runtime) or ''}"
        kept = _renamed(made, entry_name(format, variant.precision, batch, tag))
        added = engines.add(bundle.path, kept, copy / made.name)
    if vouched:
        trust.record(added)
    return kept


def _export(bundle: Path, format: str, precision: str, batch: int | str, device: str) -> EngineEntry:
    from accel.api.exporting import export

    # Forced: an engine of the same name is there, and is the one that does not fit.
    (done,) = export(str(bundle), format, precision=precision, batch=batch, out=bundle.parent, device=device, force=True)
    if done.entry is None:
        raise CorruptArtifact(f"the export of {bundle} wrote no {format} engine", remedy=f"accel export {bundle.stem} --to {format}")
    return done.entry


def _renamed(entry: EngineEntry, name: str) -> EngineEntry:
    files = {f"{name}/{path.removeprefix(f'{entry.name}/')}": digest for path, digest in entry.files.items()}
    return dataclasses.replace(entry, name=name, files=files)
