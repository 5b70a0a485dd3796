"""Which engine of a bundle a service should run on this machine, and why: measured ones first, then a stated order."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

from accel import device as devices
from accel import runtimes
from accel.engines import Bundle, batch_of, compat, identity, measured, tuned, verified
from accel.errors import MissingError, UsageError
from accel.types import EngineEntry, EngineSource, Variant

ORDER: dict[str, tuple[str, ...]] = {
    "cuda": (
        *("tensorrt:fp16", "tensorrt-rtx:fp16", "fused:fp16", "onnxruntime:fp16", "torchscript:fp16"),
        *("tensorrt:fp32", "tensorrt-rtx:fp32", "onnxruntime:fp32", "torchscript:fp32", "eager:fp32"),
    ),
    "cpu": ("onnxruntime:fp32", "torchscript:fp32", "eager:fp32"),
}
"""What `auto` tries on each kind of device where nothing was measured: engines that passed verification here in this order, then those
that passed parity, then the checkpoint itself."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """One variant that might be loaded, and why it would be."""

    variant: Variant
    batch: int
    why: str


def choices(bundle: Bundle, runtime: str, place: str) -> Iterator[Choice]:
    """The variants to try on `place` (`cpu` or `cuda:N`), best first; found out one by one, as they are asked for.

    Args:
        runtime: `auto`, a runtime, or a variant, which is then the only one.

    Raises:
        UnknownName, UsageError: the table of runtimes does not have it.
    """
    if ":" in runtime:
        variant = Variant.parse(runtime)
        runtimes.check(variant)
        yield Choice(variant, batch(bundle, variant, place), "asked for by name")
        return
    in_order = [variant for variant in map(Variant.parse, ORDER[place.partition(":")[0]]) if runtime in ("auto", variant.runtime)]
    ordered = _ordered(bundle, in_order or [Variant(runtime, "fp32")], place)
    if runtime != "auto":
        yield from ordered
        return
    seen: set[Variant] = set()
    first = next(ordered, None)
    for choice in itertools.chain(_tuned(bundle, place), _measured(bundle, place, first), [first] if first else [], ordered):
        if choice.variant not in seen:
            seen.add(choice.variant)
            yield choice


def _ordered(bundle: Bundle, variants: list[Variant], place: str) -> Iterator[Choice]:
    known = verified.read(bundle.path)
    sound, module = [], []
    for variant in variants:
        size, found = batch(bundle, variant, place), entry(bundle, variant, place)
        if found is not None and found.parity.get("status") == "passed":
            result = known.get(identify(bundle, variant, size, found, place), {}) if known else {}
            if result.get("passed"):
                score = f": {result['metric']} {result['top1']:.2f} %" if result.get("top1") is not None else ""
                yield Choice(variant, size, f"the first in the order that passed verification on this device{score}")
            else:
                sound.append(Choice(variant, size, "passed parity with the golden samples; accel verify has not passed it on this device"))
        elif runtimes.info(variant.runtime).format is None and bundle.has_checkpoint:
            module.append(Choice(variant, size, "the checkpoint itself, through torch"))
    yield from [*sound, *module]


def _tuned(bundle: Bundle, place: str) -> Iterator[Choice]:
    """The engine that `accel tune` found fastest on a machine like this one, if the same bytes would run under the same version."""
    tuning = tuned.latest(bundle.path, devices.name(place))
    if tuning is None:
        return
    why = f"the fastest that passed verification, as accel tune measured on {tuning['machine']} ({tuning['updated_utc']})"
    yield from _same(bundle, tuning["best"], place, why)


def _measured(bundle: Bundle, place: str, first: Choice | None) -> Iterator[Choice]:
    """What the last set of `accel bench` on a machine like this one measured, fastest first.

    A set that left out what the order would take says nothing of it, and is passed over.
    """
    found = measured.latest(bundle.path, devices.name(place))
    if found is None or first is None or str(first.variant) not in {row["variant"] for row in found["rows"]}:
        return
    where = f"that accel bench verified and measured on {found['machine']} ({found['measured_utc']})"
    for number, row in enumerate(found["rows"], start=1):
        rank = "the fastest" if number == 1 else f"number {number}"
        yield from _same(bundle, row, place, f"{rank} of {len(found['rows'])} {where}: {row['p50_us']:.1f} µs")


def _same(bundle: Bundle, row: dict[str, Any], place: str, why: str) -> Iterator[Choice]:
    """The variant of `row`, if what would run here now is what was measured, or would be if its runtime were installed.

    Without torch the ways of running the checkpoint are left out: no engine of the bundle is passed over for want of it.
    """
    try:
        variant = Variant.parse(row["variant"])
        runtimes.check(variant)
        installed = runtimes.version(variant.runtime)
        if runtimes.info(variant.runtime).format is None and installed is None:
            return
        size, found = batch(bundle, variant, place), entry(bundle, variant, place)
        version = installed or row.get("runtime_version")
        if identify(bundle, variant, size, found, place, version) == row["identity"]:
            yield Choice(variant, size, why)
    except (UsageError, MissingError):
        # A variant of a newer accel, or a module whose package is not here: the stated order has what is left.
        return


def entry(bundle: Bundle, variant: Variant, place: str) -> EngineEntry | None:
    """The engine of `bundle` that `variant` would run on `place`; None where there is none, or it runs the module."""
    kind = runtimes.info(variant.runtime).format, runtimes.stored_precision(variant.precision)
    fitting = [item for item in bundle.entries if (item.format, item.precision) == kind]
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    look = functools.cache(functools.partial(runtimes.machine, place))
    # What fits this machine first; batch 1 is what a request is, and an engine of another batch is better than none.
    rank = {item.name: (not compat.fits(item, place, look), batch_of(item) != 1, batch_of(item) != "dynamic") for item in fitting}
    return min(fitting, key=lambda item: rank[item.name])


def batch(bundle: Bundle, variant: Variant, place: str) -> int:
    """The batch at which `variant` would be run."""
    found = entry(bundle, variant, place)
    size = 1 if found is None else batch_of(found)
    return size if isinstance(size, int) else 1


def identify(bundle: Bundle, variant: Variant, size: int, found: EngineEntry | None, place: str, version: str | None = None) -> str:
    """The identity under which `variant` is on record, if it runs here under `version`; None is the version that is installed."""
    source = EngineSource(variant, place, bundle.inputs, bundle.outputs, batch=size, entry=found)
    checkpoint = bundle.checkpoint if found is None else None
    known = version or runtimes.version(variant.runtime) or ""
    return identity.variant_identity(source, checkpoint, known, devices.name(place))
