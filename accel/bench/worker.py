"""One process, one variant: `PYTHON -m accel.bench.worker REQUEST.json` answers with a JSON file and an `.npz`.

Request: `mode`, `bundle`, `variant`, `device`, `batch`, `threads`, `plan`, `data`, the paths `answer`, `arrays` and `progress`, `leash`
(true: end when stdin closes), and `spawned_ns`, when the worker was started, on the host's clock.

| mode | answer | arrays |
|---|---|---|
| identify | refusal, runtime_version, device_name, identity, entry | |
| parity | parity (an EngineEntry's dict), facts | |
| verify | n_test, facts | outputs (float32, one row a sample) |
| selfcheck | checks, floors_us, runs_us (accel.bench.selfcheck.Measured) | |
| measure | facts, load_s, build_s, first_call_ms, host_mem_peak_mib, flags, warmup_n, wall_s, blocks, … | latency kind → nanoseconds |

An AccelError becomes `{"error": {"type", "message", "remedy", "exit_code"}}`; anything else is a crash with its traceback on stderr.
Needs numpy and the variant's runtime, nothing else: it may run in an environment in which accel is not installed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accel.bench.clock import Clock, HostClock
from accel.bench.plan import MeasurementPlan
from accel.errors import AccelError, RuntimeUnavailable
from accel.progress import Progress, silent
from accel.types import Array, EngineSource, Variant

if TYPE_CHECKING:
    from accel.engines import Bundle

Request = dict[str, Any]
Reply = tuple[dict[str, Any], dict[str, Array]]


def answer(request: Request, progress: Progress = silent, clock: Clock | None = None) -> Reply:
    """Carry out `request` in this process; returns the answer and the arrays."""
    return MODES[request["mode"]](request, progress, clock or HostClock())


def identify(request: Request, progress: Progress, clock: Clock) -> Reply:
    """Who would answer: asked in the interpreter that the variant runs in, because versions and compatibility are its own."""
    from accel import device, runtimes
    from accel.engines.identity import variant_identity

    variant = Variant.parse(request["variant"])
    found: dict[str, Any] = {
        "refusal": runtimes.refusal(variant, request["device"]),
        "device_name": device.name(request["device"]),
        "executable": sys.executable,
    }
    if found["refusal"]:
        return found, {}
    version = runtimes.version(variant.runtime)
    if version is None:
        row = runtimes.info(variant.runtime)
        package = variant.runtime if variant.runtime in row.distributions else row.distributions[0]
        raise RuntimeUnavailable(
            f"{variant} needs {package}, which is not installed for {sys.executable}", remedy=f"pip install 'accel-engines[{row.extra}]'"
        )
    bundle, source = _resolve(request)
    checkpoint = bundle.checkpoint if bundle.has_checkpoint else None
    found["runtime_version"] = version
    found["identity"] = variant_identity(source, checkpoint, version, found["device_name"])
    found["entry"] = source.entry.name if source.entry else None
    return found, {}


def parity(request: Request, progress: Progress, clock: Clock) -> Reply:
    from accel.verify import parity
    from accel.verify.opened import open_engine, run_batches

    bundle, source = _resolve(request)
    golden = bundle.golden()
    with open_engine(source) as engine:
        outputs = run_batches(engine, golden.inputs)
        facts = dict(engine.runtime.facts)
    return {"parity": parity.compare(outputs, golden.outputs, source.variant.precision), "facts": facts}, {}


def verify(request: Request, progress: Progress, clock: Clock) -> Reply:
    from accel.verify.data import open_data, preparation
    from accel.verify.opened import open_engine
    from accel.verify.predict import engine_logits

    bundle, source = _resolve(request)
    samples = open_data(request["data"])
    with open_engine(source) as engine:
        outputs = engine_logits(engine, samples, preparation(bundle), progress)
        facts = dict(engine.runtime.facts)
    return {"n_test": len(outputs), "facts": facts}, {"outputs": outputs}


def selfcheck(request: Request, progress: Progress, clock: Clock) -> Reply:
    """On a GPU, with torch, whose sleep is counted in clock cycles."""
    from accel.bench.rigs import GpuRig
    from accel.bench.selfcheck import measure as check

    rig = GpuRig(request["device"])
    try:
        return check(rig).to_dict(), {}
    finally:
        rig.close()


def measure(request: Request, progress: Progress, clock: Clock) -> Reply:
    from accel import device
    from accel.bench import inputs as rotation
    from accel.bench.environment import cpu_affinity, cudnn, load1, peak_resident_mib, versions
    from accel.bench.measure import first_call, preprocessing_ns
    from accel.bench.measure import measure as run_passes
    from accel.bench.passes import Instruments
    from accel.verify.data import preparation
    from accel.verify.opened import open_engine

    bundle, source = _resolve(request)
    plan = MeasurementPlan.from_dict(request["plan"])
    golden = bundle.golden()
    draw = (plan.inputs, plan.batch, plan.seed)
    batches = rotation.rotated(golden, *draw)
    load_before = load1()
    loaded: list[int] = []
    began = clock.now_ns()
    with contextlib.ExitStack() as held:
        with _collector_off():
            engine = held.enter_context(open_engine(source, lambda: loaded.append(clock.now_ns())))
        opened = clock.now_ns()
        called = first_call(engine, batches[0], clock, device.synchronize)
        resident = peak_resident_mib()
        instruments, sync_mode = Instruments(clock, device.synchronize), None
        if engine.stream is not None:
            from accel.bench.clock import EventTimer

            flush = device.L2Flush(source.device, engine.stream) if plan.l2 == "cold" else None
            gate, whole = device.Gate(engine.stream), functools.partial(device.synchronize_device, source.device)
            instruments = Instruments(clock, device.synchronize, EventTimer(engine.stream), gate, synchronize_device=whole, flush=flush)
            sync_mode = "spin" if device.spins(source.device) else "as another library chose"
        result = run_passes(engine, batches, plan, instruments)
        facts = dict(engine.runtime.facts)
        shape = [list(spec.shape) for spec in engine.runtime.inputs]
        instruments.close()
    preprocess = preparation(bundle)
    preparing = None if preprocess is None or golden.images is None else preprocessing_ns(preprocess, golden.images, plan.batch, clock)
    found = {
        "facts": facts,
        "load_s": request.get("started_s", 0.0) + (loaded[0] - began) / 1e9 if loaded else None,
        "build_s": (opened - (loaded[0] if loaded else began)) / 1e9,
        "first_call_ms": called / 1e6,
        "host_mem_peak_mib": resident,
        "flags": list(result.flags),
        "timed_ns": list(result.timed_ns),
        "host": result.host,
        "warmup_n": result.warmup_n,
        "preprocess_us": None if preparing is None else preparing / 1e3,
        "event_floor_us": {kind: floor / 1e3 for kind, floor in result.event_floor_ns.items()},
        "wall_s": result.wall_s,
        "blocks": result.blocks,
        "input_sha256": rotation.input_sha256(golden, *draw),
        "input_shape": shape[0] if len(shape) == 1 else shape,
        "sync_mode": sync_mode,
        "cudnn": None if engine.stream is None else cudnn(),
        "load1": load_before,
        "cpu_affinity": cpu_affinity(),
        "versions": versions(),
        "python": sys.version.split()[0],
        "executable": sys.executable,
    }
    return found, dict(result.samples_ns)


@contextlib.contextmanager
def _collector_off() -> Iterator[None]:
    """Millions of objects are made while a compiler is imported and traces; looking through them again and again frees nothing."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


MODES: dict[str, Callable[[Request, Progress, Clock], Reply]] = {
    "identify": identify,
    "parity": parity,
    "verify": verify,
    "selfcheck": selfcheck,
    "measure": measure,
}


def main(path: Path) -> int:
    """Serve the request at `path`; 0 if an answer was written, even if it is an error."""
    faulthandler.enable()
    request: Request = json.loads(path.read_text(encoding="utf-8"))
    if "spawned_ns" in request:
        # The interpreter's start and our imports: part of what a cold start takes.
        request["started_s"] = (HostClock.now_ns() - request["spawned_ns"]) / 1e9
    if request.get("leash"):
        threading.Thread(target=_hold_leash, name="leash", daemon=True).start()
    progress = functools.partial(_write_progress, Path(request["progress"])) if request.get("progress") else silent
    try:
        reply, arrays = answer(request, progress)
        if arrays:
            np.savez(request["arrays"], **arrays)  # type: ignore[arg-type]
    except AccelError as error:
        reply = {"error": describe(error)}
    target = Path(request["answer"])
    temporary = target.with_suffix(".part")
    temporary.write_text(json.dumps(reply, default=str), encoding="utf-8")
    os.replace(temporary, target)
    return 0


def describe(error: AccelError) -> dict[str, Any]:
    return {"type": type(error).__name__, "message": error.message, "remedy": error.remedy, "exit_code": error.exit_code}


def _resolve(request: Request) -> tuple[Bundle, EngineSource]:
    from accel import runtimes
    from accel.engines import Bundle

    bundle = Bundle.open(Path(request["bundle"]))
    source = runtimes.engine_source(
        bundle, Variant.parse(request["variant"]), request["device"], batch=request["batch"], threads=request.get("threads")
    )
    return bundle, source


_told = -1


def _write_progress(path: Path, step: str, done: float, total: float | None = None) -> None:
    """Leave the latest state in a file, at most once a percent; the coordinator looks when it likes."""
    global _told  # one process carries out one request
    percent = int(100 * done / total) if total else int(done)
    if percent == _told:
        return
    _told = percent
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps([step, done, total]), encoding="utf-8")
    os.replace(temporary, path)


def _hold_leash() -> None:
    """End with the coordinator: its end of our stdin closes however it dies. Waits in one blocking read, so it costs no time."""
    while os.read(0, 1):
        continue
    os._exit(130)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    # The answer is written and the engine closed: taking torch apart would cost half a second to a second more.
    os._exit(code)
