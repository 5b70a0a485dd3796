"""From what a user types for BUNDLE to an open bundle and its variants."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from accel import exporters, runtimes, trainers
from accel.api.exporting import export
from accel.engines import Bundle, module, trust
from accel.errors import BundleMissing, MissingError, UnsupportedOperator
from accel.progress import Progress, silent
from accel.types import Variant

logger = logging.getLogger(__name__)

BASELINE = Variant("eager", "fp32")


def locate(bundle: Path | str, engines_dir: Path | str) -> Path:
    """The folder of `bundle`: a path as it is given, or the name of a model in `engines_dir`; it need not exist."""
    path = Path(bundle).expanduser()
    if path.exists() or len(path.parts) > 1:
        return path
    return Path(engines_dir) / f"{path.name.removesuffix('.accel')}.accel"


def open_bundle(bundle: Path | str, engines_dir: Path | str) -> Bundle:
    """Open what `locate` finds.

    Raises:
        BundleMissing: there is none; names those that are there. ArtifactError: it cannot be used.
    """
    path = locate(bundle, engines_dir)
    try:
        return Bundle.open(path)
    except BundleMissing as error:
        there = sorted(str(item) for item in Path(engines_dir).glob("*.accel"))
        found = f"; {engines_dir} has {', '.join(there)}" if there else ""
        raise BundleMissing(error.message + found, remedy=error.remedy) from error


def open_or_export(
    bundle: Path | str, names: Sequence[str], *, engines_dir: Path | str, device: str, progress: Progress = silent
) -> Bundle:
    """Open the bundle; a model that accel ships and that was never exported is exported first, for the runtimes that are named.

    For `all`, a format whose exporter this machine lacks, or that cannot express the model, is left out, and the log says so; a runtime
    that was named needs its own.
    """
    path = locate(bundle, engines_dir)
    if path.exists() or path.stem not in trainers.MODELS or path.parent != Path(engines_dir):
        return open_bundle(bundle, engines_dir)
    precisions = ["fp32"] if device == "cpu" else ["fp32", "fp16"]
    for precision in precisions:
        for format, required in _formats(names, device).items():
            if precision not in exporters.FORMATS[format].precisions:
                continue
            try:
                export(path.stem, format, precision=precision, out=engines_dir, device=device, progress=progress)
            except (MissingError, UnsupportedOperator) as error:
                if required:
                    raise
                logger.warning("%s was not exported to %s in %s: %s", path.stem, format, precision, error)
    return Bundle.open(path)


def _formats(names: Sequence[str], device: str) -> dict[str, bool]:
    """What to export for `names` → whether they cannot do without it.

    What runs on GPUs only is no part of the toolkit: for `all` it is tried where it is installed, and a row less where it fails. So is
    what a compiler of this machine has to build.
    """
    asked = {word for name in names if (word := name.partition(":")[0]) != "all"}
    found = {row.format: True for row in map(runtimes.info, sorted(asked)) if row.format is not None}
    if "all" in names:
        for name, row in runtimes.RUNTIMES.items():
            if row.format is not None and (not row.gpu_only or (device != "cpu" and runtimes.version(name))):
                found.setdefault(row.format, not (row.gpu_only or exporters.FORMATS[row.format].per_device))
    # Without an engine file to make (eager, compile) there is still a checkpoint to put into a bundle.
    return dict(sorted(found.items())) or {"onnx": True}


def choose(bundle: Bundle, names: Sequence[str], device: str, *, baseline: bool, trusted: bool) -> list[Variant]:
    """The variants that `names` mean for `bundle`, with `eager:fp32` before them where a baseline is wanted and can be had.

    Raises:
        UnknownName, UsageError, BundleMissing: as `runtimes.variants`.
        UntrustedArtifact: one would run code of a bundle that nobody vouches for.
        CorruptArtifact: a file that one of them runs is not what accel.json names: nothing of such a bundle is run.
    """
    found = runtimes.variants(bundle, names, device)
    if baseline and bundle.has_checkpoint and BASELINE not in found:
        found.insert(0, BASELINE)
    formats = {runtimes.info(variant.runtime).format for variant in found}
    if None in formats:
        trust.demand_module(bundle, trusted)
        module.look_where_started()
    for entry in bundle.entries:
        if entry.format in formats:
            trust.demand_engine(bundle, entry, trusted)
            bundle.file(entry)
    return found
