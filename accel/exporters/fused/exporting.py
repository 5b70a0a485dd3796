"""A fused engine: read the network, have it generated in every schedule that takes it, compile, and describe what was written."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accel.device import kernels, nvrtc
from accel.engines.embedding import BUFFERS
from accel.engines.fused_plan import BEGINS_WITH, LOWEST_CAPABILITY, PLAN_FILE, SCHEDULES, FusedPlan, Schedule, Scheduled
from accel.errors import PrecisionError, UnsupportedOperator, UsageError
from accel.exporters.describing import describe
from accel.exporters.fused import from_onnx, from_torch
from accel.exporters.fused.compiling import compile
from accel.exporters.fused.measuring import gpu_name, time_schedules, tune_all
from accel.exporters.fused.network import Network, Pool, Shape
from accel.exporters.fused.program import Program
from accel.exporters.fused.tuning import Tuned
from accel.exporters.fused.tuning_grid import TunedGrid
from accel.exporters.preparing import prepare
from accel.exporters.request import ExportRequest
from accel.files import disk_errors, sha256_bytes, sha256_file, write_text
from accel.types import Array, EngineEntry, Resources, TensorSpec

logger = logging.getLogger(__name__)

FORMAT = "fused"
DEFAULT_CAPABILITY = "9.0"
"""What is compiled for where there is no GPU and none was named: Hopper, for which the schedules are made."""

SMS = {"8.0": 108, "8.6": 84, "8.9": 128, "9.0": 132, "10.0": 148, "12.0": 170}
"""Compute capability → multiprocessors of its largest common GPU (A100, A40, RTX 4090, H100 and H200, B200, RTX 5090), for a plan that is
made where there is no such GPU."""

GENERATOR = "accel.exporters.fused.generate:generate"
Generate = Callable[..., Program]
Pixels = tuple[Array, Array]
Found = Tuned | TunedGrid
_PACKAGE = Path(__file__).parent
_OF_THE_GENERATOR = (".py", ".cuh", ".cu", ".h")


def export(request: ExportRequest) -> EngineEntry:
    """Write `plan.json`, the packed weights, and for each schedule a source and a cubin a compute capability; raises as `exporters.export`.

    Needs no GPU: it is compiled for those that `compute_capabilities` names, else for the GPU of `request.device`, else for
    DEFAULT_CAPABILITY. A schedule in which the generator refuses the network is left out, with the reason in the plan.

    Raises:
        UnsupportedOperator: the format, or every schedule of it, refuses a layer, which is named with the reason.
    """
    network, pixels = read(request)
    return export_network(network, request, pixels)


def export_network(
    network: Network, request: ExportRequest, pixels: Pixels | None = None, given: Mapping[Schedule, Found] | None = None
) -> EngineEntry:
    """As `export`, of a network that was read already; of `request` neither the module nor the ONNX file is looked into.

    Args:
        given: tiles of schedules that are taken as they are, in the place of a search.
    """
    started = time.monotonic()
    targets, stated = capabilities(request)
    sms = multiprocessors(request, targets)
    tuned = tune_here(network, request, targets, sms, pixels) if request.options.tune and given is None else given or {}
    programs, left_out = for_targets(*generate(network, sms, pixels, tuned), targets)
    proof = prove(network, programs)
    plan = _write(network, request, programs, left_out, targets, sms)
    toolchain = {
        "exporter": "accel fused",
        "nvrtc": nvrtc.version(),
        "schedules": ", ".join(programs),
        "chosen": f"{plan.chosen}: {plan.why}",
        "compiled_for": stated,
        **_facts(request),
    }
    entry = describe(
        FORMAT,
        request,
        started,
        toolchain=toolchain,
        precision_proof=proof,
        target={"device": "cuda", "least_compute_capability": ".".join(map(str, LOWEST_CAPABILITY))},
    )
    return dataclasses.replace(entry, inputs=(plan.input,), outputs=(plan.output,))


def is_current(entry: EngineEntry, request: ExportRequest) -> bool:
    """Whether `export` would write what `entry` is: the same network, generator, compiler and GPUs."""
    wanted = {**_facts(request), "compiled_for": capabilities(request)[1], "nvrtc": nvrtc.version()}
    return all(entry.toolchain.get(key) == value for key, value in wanted.items())


def read(request: ExportRequest) -> tuple[Network, Pixels | None]:
    """The network of `request`: of its module through torch.export, else of its ONNX file, without torch; and, of one that takes pixels,
    scale and offset of each channel.

    Raises:
        UnsupportedOperator: a layer that the format cannot express. UsageError: not one picture in and one answer out.
    """
    if len(request.inputs) != 1 or len(request.outputs) != 1 or len(request.inputs[0].shape) != 4:
        asked = ", ".join(f"{spec.name} {spec.shape}" for spec in (*request.inputs, *request.outputs))
        raise UsageError(f"a fused engine takes one picture and gives one answer; {request.model} has {asked}", remedy="use another format")
    if request.module is not None:
        return _of_module(request)
    if request.onnx is None:
        raise UsageError("fused is made from a model or an ONNX file, and neither was given", remedy="name the model")
    if request.inputs[0].is_pixels:
        raise UnsupportedOperator(
            f"{request.model} takes pixels as they are (uint8 NHWC); that is read from the PyTorch model only, not from an ONNX file",
            remedy="pip install 'accel-engines[train]', or export it without --embed-preprocess under another --name",
        )
    return from_onnx.read(request.onnx), None


def _of_module(request: ExportRequest) -> tuple[Network, Pixels | None]:
    module, _ = prepare(dataclasses.replace(request, precision="fp32"))
    sizes = request.inputs[0].fixed(1)
    if not request.inputs[0].is_pixels:
        return from_torch.read(module, Shape(*sizes[1:])), None
    scale, offset = (getattr(module, name).detach().cpu().numpy().reshape(-1) for name in BUFFERS)
    return from_torch.read(module.model, Shape(sizes[3], sizes[1], sizes[2])), (scale, offset)


def capabilities(request: ExportRequest) -> tuple[tuple[str, ...], str]:
    """The compute capabilities that are compiled for, and in words why.

    Raises:
        UsageError: one that was named is older than what the sources are written for.
    """
    asked = request.options.compute_capabilities
    for text in asked:
        if _numbers(text) < LOWEST_CAPABILITY:
            lowest = ".".join(map(str, LOWEST_CAPABILITY))
            raise UsageError(
                f"fused engines begin with compute capability {lowest}; {text} was asked for", remedy="--compute-capability 9.0"
            )
    if asked:
        return asked, f"{', '.join(asked)} (asked for)"
    if request.device == "cpu":
        return (DEFAULT_CAPABILITY,), f"{DEFAULT_CAPABILITY} (no GPU was named: the default)"
    here = _capability(request.device)
    return (here,), f"{here} (the GPU here)"


def _capability(on: str) -> str:
    return ".".join(map(str, kernels.limits(on).capability))


def multiprocessors(request: ExportRequest, targets: Sequence[str]) -> int:
    """How many the plan counts on: those of the GPU here where it is the one that is compiled for, else the fewest of SMS."""
    if request.device != "cpu":
        here = kernels.limits(request.device)
        if _numbers(targets[0]) == here.capability and len(targets) == 1:
            return here.sms
    return min(SMS.get(target, SMS[DEFAULT_CAPABILITY]) for target in targets)


def tune_here(
    network: Network, request: ExportRequest, targets: Sequence[str], sms: int, pixels: Pixels | None
) -> Mapping[Schedule, Found]:
    """The tiles of chain and grid that are fastest on the GPU of `request`.

    Raises:
        UsageError: there is no GPU, or the engine is for others than that.
    """
    if request.device != "cpu" and (here := _capability(request.device)) not in targets:
        raise UsageError(
            f"--tune times tiles on the GPU here, of compute capability {here}; the engine is for {', '.join(targets)}",
            remedy="leave --tune or --compute-capability out",
        )
    return tune_all(network, request.device, sms=sms, pixels=pixels, seconds=request.options.tune_s, progress=request.progress)


def generate(
    network: Network, sms: int, pixels: Pixels | None = None, tuned: Mapping[Schedule, Found] | None = None
) -> tuple[dict[Schedule, Program], dict[str, str]]:
    """The network in every schedule that takes it, and schedule → reason for the others; `tuned` has a schedule's tiles where they were.

    Raises:
        UnsupportedOperator: none takes it; the reason is that of the first.
    """
    programs: dict[Schedule, Program] = {}
    refused: dict[str, UsageError] = {}
    generator = _generator()
    image: dict[str, Any] = {} if pixels is None else {"input_dtype": "uint8", "pixels": pixels}
    for schedule in SCHEDULES:
        timed = (tuned or {}).get(schedule)
        chosen: dict[str, Any] = {"tuning": timed.tuning} if timed else {}
        if isinstance(timed, TunedGrid):
            chosen["flow"] = timed.way.flow
        elif timed:
            chosen["tables"] = timed.tables
        try:
            program = generator(network, schedule, sms=sms, **image, **chosen)
            programs[schedule] = _with_tuned(program, timed.to_dict()) if timed else program
        # A layer that cannot be expressed (UnsupportedOperator), or a schedule that is not written yet.
        except UsageError as error:
            refused[schedule] = error
    if not programs:
        raise refused[SCHEDULES[0]]
    return programs, {schedule: error.message for schedule, error in refused.items()}


def _with_tuned(program: Program, more: Mapping[str, Any]) -> Program:
    return dataclasses.replace(program, plan={**program.plan, "tuned": {**program.plan.get("tuned", {}), **more}})


def for_targets(
    programs: Mapping[Schedule, Program], left_out: Mapping[str, str], targets: Sequence[str]
) -> tuple[dict[Schedule, Program], dict[str, str]]:
    """`generate`'s result without the schedules that none of the compute capabilities `targets` can launch; the reason goes to the others.

    Raises:
        UsageError: no schedule is left.
    """
    old = [schedule for schedule in programs if not _takers(schedule, targets)]
    reasons: dict[str, str] = {
        schedule: f"it begins with compute capability {'.'.join(map(str, BEGINS_WITH[schedule]))}, and {', '.join(targets)} is compiled for"
        for schedule in old
    }
    kept = {schedule: program for schedule, program in programs.items() if schedule not in reasons}
    if not kept:
        raise UsageError(f"no schedule for {', '.join(targets)} is left: {reasons}", remedy="--compute-capability 9.0")
    return kept, {**left_out, **reasons}


def _takers(schedule: Schedule, targets: Sequence[str]) -> list[str]:
    """Those of `targets` that have what a schedule is made of."""
    return [target for target in targets if _numbers(target) >= BEGINS_WITH[schedule]]


def choose(programs: Mapping[Schedule, Program], measured: Mapping[Schedule, float] | None = None, on: str = "") -> tuple[Schedule, str]:
    """The schedule that runs where none is forced, and why: the fastest of those that were timed (an export on a GPU times them); else the
    chain; else the first.

    The planner's predictions do not decide: they were 30 to 40 % too low on an H100, and for a cluster on an H200 half of it (NOTES.md).

    Args:
        measured: schedule → µs on the GPU `on`.
    """
    best: Schedule = "chain" if "chain" in programs else next(iter(programs))
    predicted = {schedule: program.plan.get("predicted_us") for schedule, program in programs.items()}
    known = {schedule: float(value) for schedule, value in predicted.items() if isinstance(value, int | float)}
    why = f"{_listed(known)} predicted, not measured" if known else "the first that takes the network"
    if measured:
        best = min(measured, key=lambda schedule: measured[schedule])
        why = f"{_listed(measured)} measured on {on}"
    for schedule, program in programs.items():
        if "after_us" in (tuned := program.plan.get("tuned", {})):
            why += f"; replays of the {schedule} {tuned['before_us']:.2f} µs, with its tiles tuned {tuned['after_us']:.2f}"
    return best, why


def _listed(us: Mapping[Schedule, float]) -> str:
    return ", ".join(f"{schedule} {value:.1f} µs" for schedule, value in us.items())


def prove(network: Network, programs: Mapping[Schedule, Program]) -> dict[str, Any]:
    """That every layer that multiplies is computed by a kernel of each schedule, from FP16 weights.

    Raises:
        PrecisionError: a layer that no kernel of a schedule names, or whose plan names another type.
    """
    working = [layer for layer in network.layers if not isinstance(layer, Pool)]
    for schedule, program in programs.items():
        computed = {name for kernel in program.kernels for name in kernel.layers}
        missing = [layer.name for layer in working if layer.name not in computed]
        if missing:
            raise PrecisionError(f"no kernel of the schedule {schedule} says that it computes {', '.join(missing)}")
        types = {str(of["dtype"]) for of in _planned(program) if "dtype" in of}
        if types - {"float16"}:
            raise PrecisionError(f"fp16 was asked for; the plan of the schedule {schedule} has {', '.join(sorted(types))}")
    macs = sum(layer.macs for layer in working)
    return {"weights": {"float16": len(working)}, "macs": {"float16": macs}, "accumulate": "float32", "share": 1.0}


def _write(
    network: Network,
    request: ExportRequest,
    programs: Mapping[Schedule, Program],
    left_out: Mapping[str, str],
    targets: Sequence[str],
    sms: int,
) -> FusedPlan:
    folder, packed, scheduled = request.folder, dict[str, str](), dict[Schedule, Scheduled]()
    here, codes = "" if request.device == "cpu" else _capability(request.device), dict[Schedule, bytes]()
    for number, (schedule, program) in enumerate(programs.items()):
        request.progress(f"compile {schedule}", number, len(programs))
        digest = sha256_bytes(program.weights)
        if digest not in packed:
            packed[digest] = "weights.bin" if not packed else f"weights-{schedule}.bin"
            _bytes(folder / packed[digest], program.weights)
        write_text(folder / f"{schedule}.cu", program.source)
        cubins, resources = dict[str, str](), dict[str, Mapping[str, Resources]]()
        for target in _takers(schedule, targets):
            cubin, resources[target] = compile(program, target)
            cubins[target] = f"{schedule}-sm{target.replace('.', '')}.cubin"
            if target == here:
                codes[schedule] = cubin
            _bytes(folder / cubins[target], cubin)
            _warn_of_spills(schedule, target, resources[target])
        scheduled[schedule] = Scheduled(
            schedule=schedule,
            source=f"{schedule}.cu",
            weights=packed[digest],
            cubins=cubins,
            kernels=program.kernels,
            arena_bytes=program.arena_bytes,
            state_bytes=program.state_bytes,
            outputs=program.outputs,
            resources=resources,
        )
    measured, on = (time_schedules(network, programs, codes, request.device), gpu_name(request.device)) if codes else ({}, "")
    programs = {
        name: _with_tuned(program, {"device_us": measured[name]}) if name in measured else program for name, program in programs.items()
    }
    # Through JSON once, so that what is in memory is what will be read.
    scheduled = {
        name: dataclasses.replace(item, plan=json.loads(json.dumps(dict(programs[name].plan)))) for name, item in scheduled.items()
    }
    chosen, why = choose(programs, measured, on)
    program = programs[chosen]
    spec = request.inputs[0]
    input = TensorSpec(spec.name, program.input_shape, program.input_dtype, "NCHW" if program.input_dtype == "float16" else "NHWC")
    output = TensorSpec(request.outputs[0].name, program.output_shape, "float32", request.outputs[0].layout)
    plan = FusedPlan(chosen, why, sms, input, output, scheduled, dict(left_out))
    write_text(folder / PLAN_FILE, plan.to_text())
    return plan


def _warn_of_spills(schedule: str, target: str, resources: Mapping[str, Resources]) -> None:
    spilled = [f"{name} {used.spills} bytes" for name, used in resources.items() if used.spills]
    if spilled:
        logger.warning("the schedule %s spills registers on compute capability %s: %s", schedule, target, ", ".join(spilled))


def _facts(request: ExportRequest) -> dict[str, str]:
    """What the engine is made of and by."""
    source = "the module" if request.module is not None else f"ONNX {sha256_file(request.onnx)}" if request.onnx is not None else ""
    return {"read_from": source, "generator_sha256": _generator_sha256(), "options": json.dumps(request.options.given(), sort_keys=True)}


def _generator_sha256() -> str:
    """Of the files that decide what is generated."""
    files = sorted(path for path in _PACKAGE.rglob("*") if path.suffix in _OF_THE_GENERATOR)
    return sha256_bytes("".join(f"{path.relative_to(_PACKAGE).as_posix()} {sha256_file(path)}\n" for path in files).encode())


def _generator() -> Generate:
    module, _, name = GENERATOR.partition(":")
    found: Generate = getattr(importlib.import_module(module), name)
    return found


def _planned(program: Program) -> list[Mapping[str, Any]]:
    return [of for of in program.plan.get("steps", []) if isinstance(of, Mapping)]


def _numbers(capability: str) -> tuple[int, int]:
    major, _, minor = capability.partition(".")
    return int(major), int(minor)


def _bytes(path: Path, content: bytes) -> None:
    with disk_errors(path):
        path.write_bytes(content)
