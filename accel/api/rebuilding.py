"""Make an engine anew for this machine, from what its bundle has, and keep it beside the one that is for another."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from accel import device as devices
from accel import engines
from accel.engines import Bundle, batch_of, entry_name, trust
from accel.engines.compat import again
from accel.errors import CorruptArtifact, RuntimeUnavailable
from accel.exporters import BuildOptions
from accel.files import scratch_folder
from accel.types import EngineEntry

logger = logging.getLogger(__name__)


def rebuild(bundle: Bundle, entry: EngineEntry, device: str, version: str) -> EngineEntry:
    """Export `entry` again on this machine, with the options that it was built with, and add it to `bundle` under a name of its own.

    The name ends with the device's and the library's version, as `tensorrt-fp16-nvidia-h200-8-6-0`; what was there stays as it is.
    Whoever resolves the variant afterwards gets the one that fits.

    Args:
        device: `cpu` or `cuda:N`, where it is built and held against the golden samples.
        version: of the library that will run it.

    Returns:
        The new entry, whose parity was passed here.

    Raises:
        ParityError, PrecisionError: the new engine is not right; nothing was added.
        RuntimeUnavailable: it could not be held against the golden samples here.
        MissingExtra, BundleMissing, DiskFull: what the export needs is not there.
    """
    logger.info("building %s of %s again for %s", entry.name, bundle.path, devices.name(device))
    vouched = trust.is_trusted(bundle)
    place = bundle.path.resolve()
    with scratch_folder(place.parent, f"{place.name}.rebuild") as scratch:
        # The export works on a copy: whatever happens to it, the bundle keeps its engine for the other machine.
        copy = Path(shutil.copytree(place, scratch / f"{bundle.name}.accel", ignore=shutil.ignore_patterns(".*")))
        made = _export(copy, entry, device)
        if made.parity.get("status") != "passed":
            raise RuntimeUnavailable(
                f"{made.name} was built for {device} and could not be held against the golden samples: {made.parity.get('reason')}",
                remedy="see `accel doctor`; an engine that was not run here is not kept",
            )
        kept = _renamed(made, entry_name(entry.format, entry.precision, batch_of(entry), f"{devices.name(device)} {version}"))
        added = engines.add(bundle.path, kept, copy / made.name)
    if vouched:
        trust.record(added)
    return kept


def _export(bundle: Path, entry: EngineEntry, device: str) -> EngineEntry:
    from accel.api.exporting import export

    options = BuildOptions.of(json.loads(entry.toolchain.get("options", "{}")))
    # For the GPU that is here, and once: several builds are for whoever chooses the best of them.
    options = dataclasses.replace(options, compute_capabilities=(), builds=1)
    what: dict[str, Any] = {"precision": entry.precision, "batch": batch_of(entry), "opset": entry.opset, "options": options}
    # Forced: an engine of the same name is there, and is the one that does not fit. Trusted: whoever was about to run it has asked.
    (done,) = export(str(bundle), entry.format, **what, out=bundle.parent, device=device, force=True, trusted=True)
    if done.entry is None:
        raise CorruptArtifact(f"the export of {bundle} wrote no {entry.format} engine", remedy=again(entry, bundle))
    return done.entry


def _renamed(entry: EngineEntry, name: str) -> EngineEntry:
    files = {f"{name}/{path.removeprefix(f'{entry.name}/')}": digest for path, digest in entry.files.items()}
    return dataclasses.replace(entry, name=name, files=files)
