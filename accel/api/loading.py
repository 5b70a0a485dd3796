"""Open the engine that a service should run: the first of a stated order that is right and runs here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

from accel import device as devices
from accel import runtimes
from accel.api import rebuilding
from accel.api.settings import resolve
from accel.engines import Bundle, batch_of, compat, identity, trust, tuned, verified
from accel.errors import BundleMissing, IncompatibleArtifact, MissingError, RuntimeUnavailable, UntrustedArtifact, UsageError
from accel.preprocess import Preprocess
from accel.runtimes.loaded import Chosen, LoadedEngine, open_cached
from accel.types import RUNTIME_ALIASES, EngineEntry, EngineSource, Variant

ORDER: dict[str, tuple[str, ...]] = {
    "cuda": (
        *("tensorrt:fp16", "tensorrt-rtx:fp16", "onnxruntime:fp16", "torchscript:fp16"),
        *("tensorrt:fp32", "tensorrt-rtx:fp32", "onnxruntime:fp32", "torchscript:fp32", "eager:fp32"),
    ),
    "cpu": ("onnxruntime:fp32", "torchscript:fp32", "eager:fp32"),
}
"""What `auto` tries on each kind of device, after the engine that `accel tune` found fastest there: engines that passed verification
here in this order, then those that passed parity."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """One variant that might be loaded, and why it would be."""

    variant: Variant
    batch: int
    why: str


def load(
    path: Path | str,
    runtime: str = "auto",
    device: str = "auto",
    trusted: bool = False,
    *,
    threads: int | None = None,
    rebuild: bool = False,
) -> LoadedEngine:
    """Open a bundle for inference: numpy in, numpy out; torch CUDA tensors in, torch out; CuPy, Numba and PyCUDA arrays too.

    Args:
        path: a folder `NAME.accel`.
        runtime: `auto` (what `accel tune` measured to be the fastest on this machine, else the first of ORDER that is right), a runtime,
            or a variant as `onnxruntime:fp16`.
        device: `auto` (the setting, else the first GPU that works, else the CPU), `cpu`, `cuda` or `cuda:N`.
        trusted: run code of a bundle that this user did not export (TorchScript, and modules that are not ours).
        threads: intra-op threads on a CPU.
        rebuild: build an engine that is for another machine or version again from what the bundle has, hold it against the
            golden samples, and keep it beside the old one. The builder of a plan may take minutes.

    Returns:
        A handle on the engine; one that is loaded already is shared. Close it, or use it in a `with` block.

    Raises:
        BundleMissing: no bundle, or no such engine in it; names what there is.
        CorruptArtifact, IncompatibleArtifact, UntrustedArtifact: the engine must not be run here.
        RuntimeUnavailable, MissingExtra, DeviceUnavailable: nothing that was asked for runs here, each with its reason.
        ParityError, PrecisionError: what was rebuilt is not right, and was not kept.

    >>> with accel.load("engines/resnet18.accel") as engine:  # doctest: +SKIP
    ...     logits = engine(batch)  # float32 N×3×32×32 → N×10
    """
    place = devices.parse(resolve({"device": None if device == "auto" else device})["device"])
    bundle = _open(Path(path).expanduser())
    preprocess = Preprocess.from_dict(bundle.preprocess).pictures if bundle.preprocess else None
    name = RUNTIME_ALIASES.get(runtime, runtime)
    reasons: list[str] = []
    for choice in _choices(bundle, name, place):
        try:
            _demand_trust(bundle, choice, place, trusted)
            open_choice = functools.partial(
                open_cached,
                bundle.path,
                choice.variant,
                place,
                threads,
                batch=choice.batch,
                preprocess=preprocess,
                chosen=Chosen(choice.why),
            )
            try:
                return open_choice()
            except IncompatibleArtifact:
                misfit = _entry(bundle, choice.variant, place)
                if not rebuild or misfit is None:
                    raise
                rebuilding.rebuild(bundle, misfit, place, runtimes.version(choice.variant.runtime) or "")
                return open_choice()
        except (MissingError, IncompatibleArtifact, UntrustedArtifact) as error:
            if ":" in name:
                raise
            reasons.append(f"{choice.variant}: {error.message}")
    have = ", ".join(entry.name for entry in bundle.entries) or "no engines"
    tried = "".join(f"\n  {reason}" for reason in reasons) or f" it has {have}"
    remedy = f"accel export {bundle.name} --to onnx; accel doctor says what this machine lacks"
    raise RuntimeUnavailable(f"{bundle.path} has nothing that {runtime} can run on {place}:{tried}", remedy=remedy)


def _open(path: Path) -> Bundle:
    try:
        return Bundle.open(path)
    except BundleMissing as error:
        places = sorted({item for folder in (path.parent, Path("engines")) for item in folder.glob("*.accel")})
        there = f"; there is {', '.join(map(str, places))}" if places else ""
        raise BundleMissing(error.message + there, remedy=error.remedy) from error


def _choices(bundle: Bundle, runtime: str, place: str) -> Iterator[Choice]:
    """The variants to try, best first; one that was named is the only one."""
    if ":" in runtime:
        variant = Variant.parse(runtime)
        runtimes.check(variant)
        yield Choice(variant, _batch(bundle, variant, place), "asked for by name")
        return
    in_order = [variant for variant in map(Variant.parse, ORDER[place.partition(":")[0]]) if runtime in ("auto", variant.runtime)]
    measured = _measured(bundle, place) if runtime == "auto" else None
    if measured is not None:
        yield measured
        in_order = [variant for variant in in_order if variant != measured.variant]
    known = verified.read(bundle.path)
    proven, sound, module = [], [], []
    for variant in in_order or [Variant(runtime, "fp32")]:
        batch, entry = _batch(bundle, variant, place), _entry(bundle, variant, place)
        if entry is not None and entry.parity.get("status") == "passed":
            result = known.get(_identity(bundle, variant, batch, entry, place), {})
            if result.get("passed"):
                score = f": {result['metric']} {result['top1']:.2f} %" if result.get("top1") is not None else ""
                proven.append(Choice(variant, batch, f"the first in the order that passed verification on this device{score}"))
            else:
                sound.append(Choice(variant, batch, "passed parity with the golden samples; accel verify has not passed it on this device"))
        elif runtimes.info(variant.runtime).format is None and bundle.has_checkpoint:
            module.append(Choice(variant, batch, "the checkpoint itself, through torch"))
    yield from [*proven, *sound, *module]


def _measured(bundle: Bundle, place: str) -> Choice | None:
    """The engine that `accel tune` found fastest on a machine like this one, if the same bytes would run under the same version."""
    tuning = tuned.latest(bundle.path, devices.name(place))
    if tuning is None:
        return None
    try:
        variant = Variant.parse(tuning["best"]["variant"])
        runtimes.check(variant)
        batch, entry = _batch(bundle, variant, place), _entry(bundle, variant, place)
        if _identity(bundle, variant, batch, entry, place) != tuning["best"]["identity"]:
            return None
    except (UsageError, MissingError):
        # A variant of a newer accel, or a module whose package is not here: the stated order has what is left.
        return None
    why = f"the fastest that passed verification, as accel tune measured on {tuning['machine']} ({tuning['updated_utc']})"
    return Choice(variant, batch, why)


def _entry(bundle: Bundle, variant: Variant, place: str) -> EngineEntry | None:
    kind = runtimes.info(variant.runtime).format, runtimes.stored_precision(variant.precision)
    fitting = [entry for entry in bundle.entries if (entry.format, entry.precision) == kind]
    look = functools.cache(functools.partial(runtimes.machine, place))
    # What fits this machine first; batch 1 is what a request is, and an engine of another batch is better than none.
    rank = {e.name: (len(fitting) > 1 and not compat.fits(e, place, look), batch_of(e) != 1, batch_of(e) != "dynamic") for e in fitting}
    return min(fitting, key=lambda entry: rank[entry.name], default=None)


def _batch(bundle: Bundle, variant: Variant, place: str) -> int:
    entry = _entry(bundle, variant, place)
    size = 1 if entry is None else batch_of(entry)
    return size if isinstance(size, int) else 1


def _identity(bundle: Bundle, variant: Variant, batch: int, entry: EngineEntry | None, place: str) -> str:
    source = EngineSource(variant, place, bundle.inputs, bundle.outputs, batch=batch, entry=entry)
    checkpoint = bundle.checkpoint if entry is None else None
    return identity.variant_identity(source, checkpoint, runtimes.version(variant.runtime) or "", devices.name(place))


def _demand_trust(bundle: Bundle, choice: Choice, place: str, trusted: bool) -> None:
    entry = _entry(bundle, choice.variant, place)
    if entry is None:
        trust.demand_module(bundle, trusted)
    else:
        trust.demand_engine(bundle, entry, trusted)
