"""Fused engines in memory, one a process for each file, schedule and device: machine code and weights are shared, contexts are not."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from accel import device
from accel.device import kernels, nvrtc
from accel.engines import fused_plan
from accel.engines.fused_plan import FusedPlan, Schedule, Scheduled
from accel.errors import AccelError, CorruptArtifact, IncompatibleArtifact, RuntimeUnavailable
from accel.files import cache_dir, replacing, sha256_bytes, sha256_file
from accel.runtimes.leases import Leases
from accel.types import DeviceArray, EngineSource

logger = logging.getLogger(__name__)

_ELF = b"\x7fELF"
_ENGINES = Leases()


@dataclasses.dataclass(frozen=True)
class Engine:
    """Attributes:
    code: the machine code that the module was loaded from. origin: where it is from: `engine`, `cache`, or `compiled here`.
    """

    module: kernels.Module
    code: bytes
    weights: DeviceArray
    scheduled: Scheduled
    origin: str


@contextlib.contextmanager
def leased(source: EngineSource, plan: FusedPlan, schedule: Schedule, stream: int) -> Iterator[Engine]:
    """The engine of `source` in `schedule`, loaded by the first that asks and given back by the last.

    Raises:
        IncompatibleArtifact: the GPU is older than what any source is written for. CorruptArtifact: a file is missing or no machine code.
        RuntimeUnavailable: the GPU has not what the schedule is made of. RuntimeUnavailable, MissingExtra: it has to be compiled for this
            GPU, and NVRTC is not here.
    """
    file = file_of(source)
    key = (sha256_file(file), str(file.parent), schedule, source.device)
    with _ENGINES.held(key, lambda: _load(source, plan, schedule, stream)) as engine:
        yield engine


def count() -> int:
    """How many engines are held now."""
    return len(_ENGINES)


def file_of(source: EngineSource) -> Path:
    if source.file is None:
        raise AccelError(f"{source.variant} was given no file to run", remedy="resolve it with runtimes.engine_source")
    return source.file


def demand_named(source: EngineSource, plan: FusedPlan) -> None:
    """Every file that the plan names must be one that accel.json names, whose hash was checked.

    Raises:
        CorruptArtifact: one is not.
    """
    if source.entry is None:
        return
    known = {name.rpartition("/")[2] for name in source.entry.files}
    for name in plan.files:
        if name not in known:
            raise CorruptArtifact(f"{file_of(source)} names {name}, which accel.json does not", remedy=fused_plan.REMEDY)


def machine_code(scheduled: Scheduled, folder: Path, capability: str) -> tuple[bytes, str]:
    """Of `scheduled` for `capability`, and where it is from: the engine, else the cache, else compiled now and kept there.

    The cache is of this user, beside what else accel made here; a name there has the source's hash, the capability and NVRTC's version.

    Raises:
        As `leased`.
    """
    if capability in scheduled.cubins:
        return _demand_code((folder / scheduled.cubins[capability]).read_bytes(), folder / scheduled.cubins[capability]), "engine"
    text = (folder / scheduled.source).read_bytes()
    cached = cache_dir() / "fused" / f"{sha256_bytes(text)[:32]}-sm{capability}-nvrtc{nvrtc.version()}.cubin"
    if cached.is_file() and (found := cached.read_bytes()).startswith(_ELF):
        return found, "cache"
    logger.info("compiling %s for compute capability %s", folder / scheduled.source, capability)
    code = nvrtc.compile(text.decode("utf-8"), scheduled.source, capability).cubin
    with replacing(cached) as temporary:
        temporary.write_bytes(code)
    return code, "compiled here"


def _load(source: EngineSource, plan: FusedPlan, schedule: Schedule, stream: int) -> Engine:
    scheduled, folder = plan.schedules[schedule], file_of(source).parent
    found = kernels.limits(source.device).capability
    capability = ".".join(map(str, found))
    if found < fused_plan.LOWEST_CAPABILITY:
        lowest = ".".join(map(str, fused_plan.LOWEST_CAPABILITY))
        raise IncompatibleArtifact(
            f"a fused engine needs compute capability {lowest} or newer; {source.device} has {capability}",
            remedy="run it on another GPU, or use another runtime",
        )
    if found < (first := fused_plan.BEGINS_WITH[schedule]):
        raise RuntimeUnavailable(
            f"the schedule {schedule} begins with compute capability {'.'.join(map(str, first))}; {source.device} has {capability}",
            remedy=instead_of(plan, schedule),
        )
    for name in (scheduled.source, scheduled.weights):
        if not (folder / name).is_file():
            raise CorruptArtifact(f"{folder / name} is missing; {fused_plan.PLAN_FILE} names it", remedy=fused_plan.REMEDY)
    code, origin = machine_code(scheduled, folder, capability)
    module = kernels.Module(code, source.device, f"{source.variant} for {source.device}")
    packed = np.frombuffer((folder / scheduled.weights).read_bytes(), np.uint8)
    return Engine(module, code, device.to_device(packed, "uint8", source.device, stream), scheduled, origin)


def _demand_code(code: bytes, where: Path) -> bytes:
    if not code.startswith(_ELF):
        raise CorruptArtifact(f"{where} is no machine code", remedy=fused_plan.REMEDY)
    return code


def instead_of(plan: FusedPlan, schedule: Schedule) -> str:
    """What can be run where `schedule` cannot, for the end of a message."""
    others = [name for name in plan.schedules if name != schedule]
    # A chain asks the least of a GPU: no CTA of it waits for another.
    others.sort(key=lambda name: name != "chain")
    return f"run fused:fp16+{others[0]}" if others else "run another runtime of the bundle"


def forced(source: EngineSource, plan: FusedPlan) -> Schedule | None:
    """The schedule that the variant forces; None where it forces none.

    Raises:
        RuntimeUnavailable: the engine was not built in it, with the generator's reason.
    """
    for name in fused_plan.SCHEDULES:
        if name in source.variant.options:
            if name not in plan.schedules:
                why = plan.left_out.get(name, "it was not built")
                raise RuntimeUnavailable(f"{file_of(source).parent} has no schedule {name}: {why}", remedy=instead_of(plan, name))
            return name
    return None


def fallbacks(source: EngineSource, plan: FusedPlan) -> tuple[Schedule, ...]:
    """The schedules to try, in order: the forced one alone; else the plan's choice, which another GPU may have measured, then the chain.

    Raises:
        RuntimeUnavailable: as `forced`.
    """
    if (named := forced(source, plan)) is not None:
        return (named,)
    return tuple(dict.fromkeys((plan.chosen, *(("chain",) if "chain" in plan.schedules else ()))))
