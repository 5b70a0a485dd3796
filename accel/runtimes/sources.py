"""From a bundle and a variant to all that a runtime needs, with files and compatibility checked first."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping

from accel import device as devices
from accel.engines import Bundle, compat, trust
from accel.engines.module import build_module
from accel.runtimes.table import check, demand, info, version
from accel.types import EngineSource, Variant

_ENTRY_PRECISION = {"tf32": "fp32"}
"""TF32 is a way to run FP32 files; no file is stored in it."""


def stored_precision(precision: str) -> str:
    """The precision of the file that a variant of `precision` runs."""
    return _ENTRY_PRECISION.get(precision, precision)


def engine_source(
    bundle: Bundle, variant: Variant, device: str, batch: int = 1, threads: int | None = None, parity_only: bool = False
) -> EngineSource:
    """Resolve `variant` in `bundle`; nothing is loaded yet.

    Args:
        device: `cpu` or `cuda:N`.
        batch: what a dynamic batch dimension is set to.
        threads: intra-op threads on a CPU.
        parity_only: compare numbers once, even on kernels that nobody would deploy.

    Raises:
        UnknownName, UsageError: the runtime, precision or option does not exist.
        RuntimeUnavailable: it runs on GPUs only.
        BundleMissing: the entry was not exported (the remedy is the command). CorruptArtifact: a file does not match its hash.
        UntrustedArtifact: a file that passes as data carries code.
        IncompatibleArtifact: the file is for another machine or version.
    """
    check(variant)
    # Only what no CPU ever runs: whether there are kernels for the rest is asked when the runtime is made.
    demand(variant, device, parity_only=True)
    row = info(variant.runtime)
    source = EngineSource(
        variant, device, inputs=bundle.inputs, outputs=bundle.outputs, batch=batch, threads=threads, parity_only=parity_only
    )
    if row.format is None:
        return dataclasses.replace(source, module=functools.partial(build_module, bundle.checkpoint))
    look = functools.partial(machine, device)
    entry = bundle.entry(row.format, stored_precision(variant.precision), batch, fits=lambda item: compat.fits(item, device, look))
    compat.check(entry, device, look, bundle.path)
    return dataclasses.replace(source, entry=entry, file=trust.checked_file(bundle, entry))


def machine(device: str) -> compat.Machine:
    """What engines may be tied to, of the machine that this process runs on.

    Raises:
        DeviceUnavailable: there is no such GPU.
    """
    if device == "cpu":
        return compat.Machine(libraries=_Libraries())
    gpu = devices.describe(device)
    return compat.Machine(gpu.name, gpu.compute_capability, _Libraries())


class _Libraries(Mapping[str, str | None]):
    """The versions of what a plan may be tied to, each looked for once a target names it: those of other formats name none."""

    def __getitem__(self, key: str) -> str | None:
        if key not in _TIED_TO:
            raise KeyError(key)
        return version(key)

    def __iter__(self) -> Iterator[str]:
        return iter(_TIED_TO)

    def __len__(self) -> int:
        return len(_TIED_TO)


_TIED_TO = ("tensorrt", "tensorrt-rtx")
"""Those of `accel.trt.FLAVORS`, written out: a load that runs none of them need not import it."""
