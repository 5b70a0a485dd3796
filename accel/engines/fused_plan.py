"""`plan.json` of a fused engine: its schedules, how their kernels are launched, and the files that lie beside it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from accel.engines import strict
from accel.errors import CorruptArtifact
from accel.types import Kernel, Resources, Shape, TensorSpec

Schedule = Literal["chain", "grid", "cluster"]
"""A kernel a layer, one after another; one persistent kernel over the whole GPU; one cluster of CTAs."""

SCHEDULES: tuple[Schedule, ...] = ("chain", "grid", "cluster")

PARAMETERS = ("image", "weights", "arena", "logits", "state")
"""What every kernel takes, in this order, all of them addresses: the input, the packed weights, the activations (ARENA_ALIGNMENT), the
answer, and `State`, which is zeroed once, when a context is made."""

ARENA_ALIGNMENT = 256

TIMED_OUT = 1
"""The error word of a spin that its bound ended."""

ERROR_MASK, STEP_SHIFT = 0xFF, 8
"""Of the error word: the error itself, and above it the number of the step (from 1) that was waited for; 0 where a kernel does not say."""

LOWEST_CAPABILITY = (8, 0)

BEGINS_WITH: Mapping[Schedule, tuple[int, int]] = {"chain": LOWEST_CAPABILITY, "grid": LOWEST_CAPABILITY, "cluster": (9, 0)}
"""Schedule → the compute capability from which GPUs have what it is made of: clusters of CTAs begin with Hopper."""

PLAN_FILE = "plan.json"
REMEDY = "copy the whole folder again from where it came, or make it anew: accel export MODEL --to fused --fp16 --force"

_MOST_THREADS, _MOST_CTAS, _MOST_BYTES, _MOST_CLUSTER = 1024, 2**31 - 1, 2**40, 16
_SYMBOL = re.compile(r"[A-Za-z_]\w*")
_PLAIN = re.compile(r"[A-Za-z0-9][\w.-]*")
_CAPABILITY = re.compile(r"\d{1,2}\.\d")


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """One schedule of an engine.

    Attributes:
        source, weights: names of files beside the plan. cubins: compute capability (`9.0`) → the name of one.
        resources: compute capability → kernel → Resources.
        outputs: layer → (offset in the arena in bytes, shape as height × width × padded channels).
        plan: what the planner chose, as JSON takes it.
    """

    schedule: Schedule
    source: str
    weights: str
    cubins: Mapping[str, str]
    kernels: tuple[Kernel, ...]
    arena_bytes: int
    state_bytes: int
    outputs: Mapping[str, tuple[int, Shape]]
    resources: Mapping[str, Mapping[str, Resources]] = dataclasses.field(default_factory=dict)
    plan: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def waits(self) -> bool:
        """Whether CTAs wait for one another, so that a wait can run out and State's error word means something."""
        return self.state_bytes >= _WORD and any(kernel.cooperative or kernel.cluster > 1 for kernel in self.kernels)

    def waited_for(self, word: int) -> str:
        """Which layers the wait was for that State's error word speaks of, as the end of a phrase; empty where it does not say."""
        steps, number = self.plan.get("steps", []), (word & _WORD_MASK) >> STEP_SHIFT
        return f" before the layer {' + '.join(steps[number - 1]['layers'])}" if 0 < number <= len(steps) else ""


@dataclasses.dataclass(frozen=True)
class FusedPlan:
    """A fused engine.

    Attributes:
        chosen: the schedule that runs where none is forced; why: in words.
        sms: multiprocessors that it was planned for.
        left_out: schedule → why the generator refused this network in it.
    """

    chosen: Schedule
    why: str
    sms: int
    input: TensorSpec
    output: TensorSpec
    schedules: Mapping[Schedule, Scheduled]
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files that lie beside the plan, each once."""
        named = [name for item in self.schedules.values() for name in (item.source, item.weights, *item.cubins.values())]
        return tuple(dict.fromkeys(named))

    def to_text(self) -> str:
        data: dict[str, Any] = {
            "schema_version": 1,
            "chosen": self.chosen,
            "why": self.why,
            "sms": self.sms,
            "input": self.input.to_dict(),
            "output": self.output.to_dict(),
            "schedules": {name: _to_dict(item) for name, item in self.schedules.items()},
            "left_out": dict(self.left_out),
        }
        return strict.pretty(data)


def read(path: Path) -> FusedPlan:
    """Read the file `path`, strictly.

    Raises:
        CorruptArtifact: unreadable, or a key is missing, unknown or wrong; the message names it.
    """
    data = strict.check_keys(strict.read_object(path, REMEDY), _PLAN, str(path), REMEDY)
    schedules: dict[Schedule, Scheduled] = {}
    for name in SCHEDULES:
        if name in data["schedules"]:
            schedules[name] = _scheduled(name, data["schedules"][name], f"{path}: schedules[{name!r}]")
    unknown = set(data["schedules"]) - set(SCHEDULES)
    if unknown or data["chosen"] not in schedules:
        raise CorruptArtifact(f"{path} chooses {data['chosen']!r} of the schedules {sorted(data['schedules'])}", remedy=REMEDY)
    input, output = (_spec(data[key], f"{path}: {key}") for key in ("input", "output"))
    return FusedPlan(data["chosen"], data["why"], data["sms"], input, output, schedules, data["left_out"])


def rows(path: Path) -> list[dict[str, Any]]:
    """The plan as a table: a row a step of each schedule, with what its kernel uses for the first of the compute capabilities.

    Raises:
        CorruptArtifact: as `read`.
    """
    plan = read(path)
    found = [row for item in plan.schedules.values() for row in _rows(item, chosen=item.schedule == plan.chosen)]
    # Nothing was timed: no column of it.
    return found if any(row["tuned"] for row in found) else [{key: row[key] for key in row if key != "tuned"} for row in found]


def _rows(item: Scheduled, chosen: bool) -> Iterator[dict[str, Any]]:
    used = next(iter(item.resources.values()), {})
    kernels = {layer: kernel for kernel in item.kernels for layer in kernel.layers}
    tried = _tried(item)
    us = item.plan.get("tuned", {}).get("device_us")
    said = [*(["chosen"] if chosen else []), *([f"{us:.1f} µs"] if us is not None else [])]
    name = f"{item.schedule} ({', '.join(said)})" if said else item.schedule
    steps = item.plan.get("steps") or [{"layers": list(kernel.layers)} for kernel in item.kernels]
    for number, step in enumerate(steps):
        layers = step["layers"]
        kernel = next((kernels[layer] for layer in layers if layer in kernels), item.kernels[0])
        of = used.get(kernel.name)
        tile = step.get("tile")
        yield {
            "schedule": name,
            "step": number + 1,
            "layers": " + ".join(layers),
            "shape": step.get("shape"),
            "tile": " ".join(f"{key}{value}" for key, value in tile.items()) if isinstance(tile, dict) else None,
            "ctas": step.get("ctas", kernel.grid),
            "shared": step.get("shared_bytes", kernel.shared) + (of.shared if of else 0),
            "registers": of.registers if of else None,
            "spills": of.spills if of else None,
            "predicted_us": step.get("predicted_us"),
            "tuned": next((tried[layer] for layer in layers if layer in tried), None),
        }


def _tried(item: Scheduled) -> dict[str, str]:
    """Layer → what came of timing other tiles of it: how many, and µs of the whole chain before and with the best of them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in item.plan.get("tuned", {}).get("tried", []):
        found.setdefault(one["layer"], []).append(one)
    told = {}
    for layer, of_layer in found.items():
        best = min((one["us"] for one in of_layer if one["us"] is not None), default=None)
        with_it = "none answers rightly" if best is None else f"{of_layer[0]['own_us']:.2f} → {best:.2f} µs"
        told[layer] = f"{len(of_layer)} tried, {with_it}" + (", kept" if any(one["kept"] for one in of_layer) else "")
    return told


def _to_dict(item: Scheduled) -> dict[str, Any]:
    data = dataclasses.asdict(item)
    del data["schedule"]
    return {**data, "outputs": {layer: [offset, list(shape)] for layer, (offset, shape) in item.outputs.items()}}


def _scheduled(name: Schedule, data: Any, where: str) -> Scheduled:
    strict.check_keys(data, _SCHEDULED, where, REMEDY)
    kernels = tuple(_kernel(item, f"{where}: kernels[{number}]") for number, item in enumerate(data["kernels"]))
    if not kernels or len({kernel.name for kernel in kernels}) != len(kernels):
        raise CorruptArtifact(f"{where}: there must be one or more kernels, each with its own name", remedy=REMEDY)
    outputs = {layer: (int(offset), tuple(shape)) for layer, (offset, shape) in data["outputs"].items()}
    resources = {
        capability: {kernel: Resources(**of) for kernel, of in kernels_of.items()} for capability, kernels_of in data["resources"].items()
    }
    return Scheduled(name, **{**data, "kernels": kernels, "outputs": outputs, "resources": resources})


def _kernel(data: Any, where: str) -> Kernel:
    strict.check_keys({"kernel": data}, {"kernel": strict.is_object}, where, REMEDY)
    # Engines of before do not say which kernels read the image: all of them are told where it is.
    found = strict.check_keys({"reads_image": True, **data}, _KERNEL, where, REMEDY)
    if found["grid"] % found["cluster"]:
        raise CorruptArtifact(f"{where}: {found['grid']} CTAs are not whole clusters of {found['cluster']}", remedy=REMEDY)
    return Kernel(**{**found, "layers": tuple(found["layers"])})


def _spec(data: Any, where: str) -> TensorSpec:
    strict.check_keys(data, _SPEC, where, REMEDY)
    return TensorSpec(data["name"], tuple(data["shape"]), data["dtype"], data["layout"])


def _between(low: int, high: int) -> strict.Kind:
    def check(value: Any) -> bool:
        return strict.is_whole(value) and low <= value <= high

    check.__name__ = f"is_whole_from_{low}_to_{high}"
    return check


def _is_symbol(value: Any) -> bool:
    return strict.is_text(value) and _SYMBOL.fullmatch(value) is not None


def _is_file(value: Any) -> bool:
    """A plain name: what the plan names lies beside it."""
    return strict.is_text(value) and _PLAIN.fullmatch(value) is not None and ".." not in value


def _is_cubins(value: Any) -> bool:
    return strict.is_object(value) and all(_CAPABILITY.fullmatch(key) and _is_file(name) for key, name in value.items())


def _is_outputs(value: Any) -> bool:
    return strict.is_object(value) and all(
        strict.is_list(item) and len(item) == 2 and _is_bytes(item[0]) and strict.is_list(item[1]) and all(map(_is_size, item[1]))
        for item in value.values()
    )


def _is_plan(value: Any) -> bool:
    """The planner's own words, of which only the layers of its steps, and what was timed, are looked at."""
    steps = value.get("steps", []) if strict.is_object(value) else None
    known = isinstance(steps, list) and all(strict.is_object(step) and strict.is_texts(step.get("layers")) for step in steps)
    return known and _is_tuned(value.get("tuned", {"tried": []}))


def _is_tuned(value: Any) -> bool:
    kinds = {"layer": strict.is_text, "tile": strict.is_object, "us": strict.or_null(strict.is_number)}
    kinds |= {"own_us": strict.is_number, "kept": strict.is_bool}
    if not strict.is_object(value) or not strict.is_number(value.get("device_us", 0.0)):
        return False
    return all(
        strict.is_object(one) and all(key in one and kind(one[key]) for key, kind in kinds.items()) for one in value.get("tried", [])
    )


def _is_resources(value: Any) -> bool:
    names = {field.name for field in dataclasses.fields(Resources)}
    return strict.is_object(value) and all(
        strict.is_object(of)
        and all(strict.is_object(item) and set(item) == names and all(map(_is_bytes, item.values())) for item in of.values())
        for of in value.values()
    )


_WORD, _WORD_MASK = 4, 2**32 - 1
_is_bytes, _is_size = _between(0, _MOST_BYTES), _between(1, _MOST_CTAS)
_PLAN: dict[str, strict.Kind] = {
    "schema_version": strict.is_schema_version_1,
    "chosen": strict.is_text,
    "why": strict.is_any_text,
    "sms": _is_size,
    "input": strict.is_object,
    "output": strict.is_object,
    "schedules": strict.is_object,
    "left_out": strict.is_text_map,
}
_SPEC: dict[str, strict.Kind] = {
    "name": strict.is_text,
    "shape": lambda value: strict.is_list(value) and bool(value) and all(map(_is_size, value)),
    "dtype": lambda value: value in ("float16", "float32", "uint8"),
    "layout": strict.is_any_text,
}
_SCHEDULED: dict[str, strict.Kind] = {
    "source": _is_file,
    "weights": _is_file,
    "cubins": _is_cubins,
    "kernels": strict.is_list,
    "arena_bytes": _is_bytes,
    "state_bytes": _is_bytes,
    "outputs": _is_outputs,
    "resources": _is_resources,
    "plan": _is_plan,
}
_KERNEL: dict[str, strict.Kind] = {
    "name": _is_symbol,
    "grid": _is_size,
    "block": _between(1, _MOST_THREADS),
    "shared": _is_bytes,
    "cluster": _between(1, _MOST_CLUSTER),
    "cooperative": strict.is_bool,
    "dependent": strict.is_bool,
    "layers": strict.is_texts,
    "reads_image": strict.is_bool,
}
