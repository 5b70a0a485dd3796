"""Open the engine that a service should run: the best that is right here, or an error that says why it cannot be had."""

from __future__ import annotations

import functools
from pathlib import Path

from accel import device as devices
from accel import runtimes
from accel.api import choosing
from accel.api.choosing import Choice
from accel.engines import Bundle, archive, trust
from accel.errors import (
    AccelError,
    ArtifactError,
    BundleMissing,
    DeviceUnavailable,
    DiskFull,
    IncompatibleArtifact,
    MissingError,
    ParityError,
    RuntimeUnavailable,
    UntrustedArtifact,
)
from accel.preprocess import Preprocess
from accel.runtimes.loaded import Chosen, LoadedEngine, open_cached
from accel.types import RUNTIME_ALIASES

GOLDEN_ROWS = (0, -1)
"""The golden samples that a strict load runs: the first, a train image where the model has any, and the last, which is noise."""


def load(
    path: Path | str,
    runtime: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    strict: bool = True,
    trusted: bool = False,
    *,
    rebuild: bool = False,
    contexts: int | None = None,
    batches: str = "loop",
) -> LoadedEngine:
    """Open a bundle for inference: numpy in, numpy out; torch CUDA tensors in, torch out; CuPy, Numba and PyCUDA arrays too.

    `auto` takes the best engine that the bundle has for this kind of device: the one that `accel tune` found fastest on a machine like
    this, else the fastest in the last `accel bench` there, else the first of `choosing.ORDER` that passed verification, else parity.
    `engine.explain()` says which it was and why.

    Args:
        path: a folder `NAME.accel`, or a packed one, `NAME.accel.zip`, which is unpacked into the cache once.
        runtime: `auto`, a runtime (the best of its engines), or a variant as `onnxruntime:fp16`.
        device: `auto` (the setting, else the first GPU that works, else the CPU), `cpu`, `cuda` or `cuda:N`.
        threads: intra-op threads on a CPU.
        strict: the best engine must open, and two golden samples (GOLDEN_ROWS) are run through it and held to the limits of parity before
            anybody gets an answer: enough to notice an engine that is wrong altogether here, not one that is a little worse; `accel verify`
            is for that. Without it, where the best cannot run here for a reason of compatibility (its runtime is not installed, it is for
            another GPU, version or processor, or it is code that nobody vouches for), the next is taken, a warning is logged, and
            `explain()["passed_over"]` says why; and no samples are run. A file that is damaged is an error either way.
        trusted: run code of a bundle that this user did not export (plans, TorchScript, and modules that are not ours).
        rebuild: build an engine that is for another machine or version again from what the bundle has, hold it against the
            golden samples, and keep it beside the old one. The builder of a plan may take minutes.
        contexts: how many calls may run at once, more wait; None is one a core on a CPU, at most 8, and 4 on a GPU.
        batches: what a call with another number of rows than the engine's batch does: `loop` runs it in slices, `refuse` refuses it.

    Returns:
        A handle on the engine; one that is loaded already is shared. Close it, or use it in a `with` block.

    Raises:
        BundleMissing: no bundle, or no such engine in it; names what there is.
        CorruptArtifact, IncompatibleArtifact, UntrustedArtifact: the engine must not be run here.
        RuntimeUnavailable, MissingExtra, DeviceUnavailable: nothing that was asked for runs here, each with its reason.
        ParityError: the engine disagrees with the golden samples; with PrecisionError also: what was rebuilt is not right, and not kept.
        UsageError: an argument that cannot be understood.

    >>> with accel.load("engines/resnet18.accel") as engine:  # doctest: +SKIP
    ...     logits = engine(batch)  # float32 N×3×32×32 → N×10
    """
    place = devices.parse(_setting(device))
    bundle = _open(archive.folder_of(Path(path).expanduser()))
    preprocess = Preprocess.from_dict(bundle.preprocess).for_pictures(bundle.inputs[0]) if bundle.preprocess else None
    name = RUNTIME_ALIASES.get(runtime, runtime)
    passed_over: list[str] = []
    refused: list[AccelError] = []
    found = choosing.choices(bundle, name, place)
    for choice in found:
        how = functools.partial(
            open_cached, bundle.path, choice.variant, place, threads, preprocess=preprocess, contexts=contexts, batches=batches
        )
        try:
            _demand_trust(bundle, choice, place, trusted)
            open_choice = functools.partial(how, batch=choice.batch, chosen=Chosen(choice.why, tuple(passed_over)))
            engine = _rebuilt(bundle, choice, place, open_choice) if rebuild else open_choice()
        except AccelError as error:
            if ":" in name or not _may_pass_over(error):
                raise
            if strict:
                raise _refusal(error, choice, next(found, None)) from error
            passed_over.append(f"{choice.variant}: {error.message}")
            refused.append(error)
            _warn(f"{bundle.path}: {choice.variant} was passed over: {error.message}")
            continue
        if strict:
            _hold_against_golden(engine, bundle)
        return engine
    have = ", ".join(entry.name for entry in bundle.entries) or "no engines"
    tried = "".join(f"\n  {reason}" for reason in passed_over) or f" it has {have}"
    message = f"{bundle.path} has nothing that {runtime} can run on {place}:{tried}"
    if refused and len({(type(error), error.remedy) for error in refused}) == 1:
        # One reason for all of them: untrusted, say. That is what it is, and that is what mends it.
        kind = type(refused[0]) if isinstance(refused[0], ArtifactError) else RuntimeUnavailable
        raise kind(message, remedy=refused[0].remedy)
    remedy = f"accel export {bundle.name} --to onnx; accel doctor says what this machine lacks"
    raise RuntimeUnavailable(message, remedy=remedy)


def _warn(message: str) -> None:
    import logging  # here, because a load that goes well has nothing to log

    logging.getLogger(__name__).warning("%s", message)


def _setting(device: str) -> str:
    if device != "auto":
        return device
    from accel.api.settings import resolve

    return str(resolve({})["device"])


def _open(path: Path) -> Bundle:
    try:
        return Bundle.open(path)
    except BundleMissing as error:
        places = sorted({item for folder in (path.parent, Path("engines")) for item in folder.glob("*.accel")})
        there = f"; there is {', '.join(map(str, places))}" if places else ""
        raise BundleMissing(error.message + there, remedy=error.remedy) from error


def _demand_trust(bundle: Bundle, choice: Choice, place: str, trusted: bool) -> None:
    entry = choosing.entry(bundle, choice.variant, place)
    if entry is None:
        trust.demand_module(bundle, trusted)
    else:
        trust.demand_engine(bundle, entry, trusted)


def _rebuilt(bundle: Bundle, choice: Choice, place: str, open_choice: functools.partial[LoadedEngine]) -> LoadedEngine:
    try:
        return open_choice()
    except IncompatibleArtifact:
        misfit = choosing.entry(bundle, choice.variant, place)
        if misfit is None:
            raise
        from accel.api import rebuilding

        rebuilding.rebuild(bundle, misfit, place, runtimes.version(choice.variant.runtime) or "")
        return open_choice()


def _may_pass_over(error: AccelError) -> bool:
    """Whether another engine may be better off: for a full disk, a GPU that is gone or a damaged file none is."""
    other = isinstance(error, DeviceUnavailable | DiskFull | BundleMissing)
    return isinstance(error, MissingError | IncompatibleArtifact | UntrustedArtifact) and not other


def _refusal(error: AccelError, choice: Choice, instead: Choice | None) -> AccelError:
    """`error`, with what was asked for and the way around it; of the same class, so with the same exit code."""
    if instead is not None:
        way = f"{instead.variant} is the next: name it, or load with strict=False, which takes what runs"
        error.remedy = f"{error.remedy}; {way}" if error.remedy else way
    error.message = f"{choice.variant} comes first here ({choice.why}) and cannot be had: {error.message}"
    error.args = (error.message,)
    return error


def _hold_against_golden(engine: LoadedEngine, bundle: Bundle) -> None:
    """Run GOLDEN_ROWS, once for an engine that several handles share.

    Raises:
        ParityError: the outputs are not those of the samples; the handle is closed. CorruptArtifact: the samples are damaged.
    """
    if engine.golden is not None:
        return
    try:
        golden = bundle.golden()
        if not golden.outputs:
            engine.golden = {"status": "not run", "reason": "the bundle has no golden outputs"}
            return
        from accel.verify import parity

        rows = sorted({row % len(golden) for row in GOLDEN_ROWS})
        outputs = engine.run_rows({name: array[rows] for name, array in golden.inputs.items()})
        said = parity.compare(outputs, golden.outputs, engine.variant.precision, rows=rows)
        if said["status"] != "passed":
            raise ParityError(
                f"{engine.variant} disagrees on {engine.device} with the golden samples of {bundle.path}: {said['reason']}",
                remedy="see `accel doctor`, and make it anew on this machine: accel export MODEL --to FORMAT --force",
            )
        engine.golden = {**said, "rows": rows}
    except BaseException:
        engine.close()
        raise
