"""The source of a network in one schedule: the plan as a comment, a struct of constants a layer, the templates, and the kernels."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import resources
from typing import Literal

from accel.errors import UsageError
from accel.exporters.fused import stamps
from accel.exporters.fused.cluster_source import generate_cluster
from accel.exporters.fused.describing import described, shape_of, table
from accel.exporters.fused.network import INPUT, Array, Network, Pool
from accel.exporters.fused.pack import pack
from accel.exporters.fused.partial_head import drawn_in, partial_bytes
from accel.exporters.fused.plan import Plan, Step, Tuning, make
from accel.exporters.fused.program import SCHEDULES, Kernel, Program, Schedule
from accel.exporters.fused.ring import FURTHEST_AHEAD, hold_weights, work
from accel.exporters.fused.tiles import THREADS

PARAMETERS = "const unsigned char* image, const unsigned char* weights, unsigned char* arena, float* logits, unsigned int* state"
STATE_BYTES = 256
"""Of a chain, which waits for nothing itself."""
COUNTER_WORDS = 8
"""From a counter of the grid to the next: a sector of the L2 each."""
TABLES = ("OFFSETS", "AIMS")
"""Constants of a convolution that say where its tables lie among the weights; -1: its kernel computes what they have."""
Waiting = Literal["data", "counters"]
PRELUDE = ("primitives", "common")
TEMPLATES = {
    "convolution": ("image", "convolution"),
    "windows": ("windows",),
    "head": ("head",),
    "partial_head": ("partial_head",),
}


@dataclasses.dataclass(frozen=True)
class Flow:
    """The order of a grid's work that waits for data; `--tune` times what else it can be.

    Attributes:
        ahead: most steps that weights are fetched ahead. fetch_late: they are sent for when a step's results are stored, not when its
            input is there. fetch_looking: they are sent for while the next step waits for its input (where they are fetched two steps
            ahead or more; then fetch_late does not count). look_first: a step looks at its input before it prepares the rest.
        pause: cycles of an SM in front of a step's first look, so that it does not come before its data.
        blocks: one thread sends for a step's weights, biases and tables (cp.async.bulk, from compute capability 9.0 on; before, each
            thread copies its own all the same).
        head_in_last: the CTAs of the last convolution do the head's work (partial_head.py), where that can be.

    The defaults are what was fastest for student_b on an H200 (results/h200/fused/flows.json.xz).
    """

    ahead: int = FURTHEST_AHEAD
    fetch_late: bool = True
    fetch_looking: bool = False
    look_first: bool = False
    pause: int = 200
    blocks: bool = True
    head_in_last: bool = True


def generate(
    network: Network,
    schedule: Schedule,
    *,
    sms: int = 132,
    input_dtype: str = "float16",
    pixels: tuple[Array, Array] | None = None,
    tuning: Tuning | None = None,
    waiting: Waiting = "data",
    flow: Flow | None = None,
    tables: Collection[str] = (),
    timed: bool = False,
) -> Program:
    """`network` as CUDA C++ in `schedule`, for a GPU of `sms` SMs (the grid's CTAs; chain and cluster run on any).

    Args:
        input_dtype: `float16` (NCHW) or `uint8` (NHWC). pixels: of uint8: scale and offset a channel, byte · scale - offset.
        tuning: layer → fields of tiles.Tile that are fixed; the cluster divides layers in its own way (cluster.py) and takes none.
        waiting: of the grid: for each word of data to arrive (flow.cuh), or for counters of stored tiles (grid.cuh).
        flow: of the grid that waits for data: the order of its work.
        tables: of the chain: convolutions whose kernels read TABLES; the others compute them while they wait. A grid reads what it has.
        timed: of the grid that waits for data: to be measured (benchmarks/fused_grid_steps.py), not exported; see stamps.py.

    Raises:
        UnsupportedOperator: a layer or schedule that cannot be generated, named with the reason. UsageError: an argument that is not one.
    """
    if schedule not in SCHEDULES:
        raise UsageError(
            f"cannot generate the schedule {schedule!r}: there is no such schedule", remedy=f"choose one of: {', '.join(SCHEDULES)}"
        )
    if schedule == "cluster":
        return generate_cluster(network, input_dtype=input_dtype, pixels=pixels)
    way = waiting if schedule == "grid" else schedule
    if way not in WRITERS[schedule]:
        raise UsageError(f"the grid cannot wait for {waiting!r}", remedy=f"choose one of: {', '.join(WRITERS['grid'])}")
    if timed and way != "data":
        raise UsageError(f"the schedule {schedule} keeps no stamps by generate", remedy="measure the grid that waits for data")
    plan = make(network, sms=sms, input_dtype=input_dtype, tuning=tuning)
    if way == "data":
        plan = ordered(plan, flow or Flow())
    written = _flow(plan, flow, timed) if way == "data" else WRITERS[schedule][way](plan)
    if schedule == "chain":
        written = dataclasses.replace(written, tables=_known(plan, tables))
    shape = network.input
    image = (1, shape.channels, shape.height, shape.width)
    return Program(
        schedule=schedule,
        source=_source(plan, schedule, way, written),
        kernels=written.kernels,
        weights=pack(plan, pixels),
        arena_bytes=plan.arena_bytes,
        state_bytes=written.state_bytes,
        input_shape=image if input_dtype == "float16" else (1, shape.height, shape.width, shape.channels),
        input_dtype=input_dtype,
        output_shape=(1, network.layers[-1].output.channels),
        outputs=plan.outputs,
        plan=described(plan, schedule, way, written.tables),
    )


def _known(plan: Plan, tables: Collection[str]) -> frozenset[str]:
    """`tables`; UsageError: they name what is no convolution of the plan that has any."""
    unknown = set(tables) - {step.layer_names[-1] for step in plan.steps if step.cut}
    if unknown:
        raise UsageError(f"tables are asked for {sorted(unknown)}, which have none in this plan", remedy="name convolutions of the plan")
    return frozenset(tables)


def ordered(plan: Plan, flow: Flow) -> Plan:
    """`plan` with the steps that the grid has which waits for data in the order of `flow`."""
    return drawn_in(plan) if flow.head_in_last else plan


def grid_of(plan: Plan, flow: Flow) -> tuple[str, Kernel, int]:
    """The grid of `plan` that waits for data: its source, its launch, and the bytes of its State."""
    plan = ordered(plan, flow)
    written = _flow(plan, flow)
    return _source(plan, "grid", "data", written), written.kernels[0], written.state_bytes


def _source(plan: Plan, schedule: Schedule, way: str, written: Written) -> str:
    structs = map(_struct(plan, written), plan.steps)
    return "\n".join([table(plan, schedule, way), *_templates(plan, written), *structs, written.source])


def _templates(plan: Plan, written: Written) -> Iterator[str]:
    """Those that the plan needs; calls of `stamp` are left out of them but where stamps have a place in State."""
    yield f"constexpr bool POLLS = {str(written.template == 'flow').lower()};  // whether data carries its own arrival from step to step\n"
    if written.stamps is not None:
        yield stamps.prelude(plan, written.stamps)
    names = [
        *(PRELUDE if written.stamps is None else (*PRELUDE, "stamps")),
        *dict.fromkeys(name for step in plan.steps for name in TEMPLATES[step.kind]),
        written.template,
    ]
    folder = resources.files("accel.exporters.fused") / "templates"
    for name in names:
        text = (folder / f"{name}.cuh").read_text(encoding="utf-8")
        yield text if written.stamps is not None else stamps.without_calls(text)
        if name == "primitives":
            yield f"constexpr bool BULK = {str(written.blocks).lower()} && HAS_BLOCKS;  // whether what is fetched ahead comes in blocks\n"


def _struct(plan: Plan, way: Written) -> Callable[[Step], str]:
    numbers = {step.name: number for number, step in enumerate(plan.steps, 1)}
    barriers = work(plan.steps)[1]

    def written(step: Step) -> str:
        constants = {"NUMBER": numbers[step.name]} | dict(step.constants) | {part: plan.weights[step.name, part] for part in step.parts}
        if step.cut and way.tables is not None and step.layer_names[-1] not in way.tables:
            constants |= dict.fromkeys(TABLES, -1)
        if step.cut:
            constants["SLOT"] = way.slots.get(step.name, -1)
            constants["PAUSE"] = way.pause
            constants["SUMS"], constants["PATCH"] = work(plan.steps)[0] if way.template == "flow" else work([step])[0]
            constants["BARRIER"] = barriers + 8 * numbers[step.name]
        lines = [f"    static constexpr {_type(name)} {name} = {value};" for name, value in constants.items()]
        base = _window(step, plan) if step.kind == "windows" else ""
        title = f"// {' + '.join(step.layer_names)}: {shape_of(step)}"
        return "\n".join([title, f"struct {_of(step)}{base} {{", *lines, "};", f"using {_class(step)} = {_template(step, plan)};", ""])

    return written


def _type(name: str) -> str:
    return {"SOURCE": "Source", "ACTIVATION": "Activation", "TO_LOGITS": "bool", "AIMABLE": "bool", "FACTOR": "float"}.get(name, "int")


def _window(step: Step, plan: Plan) -> str:
    layer = step.layers[0]
    if isinstance(layer, Pool):
        return " : Largest" if layer.how == "max" else " : Mean"
    places = f"{plan.weights[step.name, 'WEIGHTS']}, {plan.weights[step.name, 'BIAS']}, {step.constants['CHANNELS']}"
    return f" : Depthwise<{places}>"


def _of(step: Step) -> str:
    return f"Of_{step.name}"


def _class(step: Step) -> str:
    return f"Layer_{step.name}"


def _template(step: Step, plan: Plan) -> str:
    if step.kind == "partial_head":
        return f"PartialHead<{_of(step)}, {_class(plan.steps[-2])}>"
    return f"{step.kind.capitalize()}<{_of(step)}>"


@dataclasses.dataclass(frozen=True)
class Written:
    """A schedule: its template, the source of its kernels, the bytes of State; step → where its weights wait in shared memory; the
    word of State from which stamps lie, where it keeps any; of a chain the convolutions that read their tables, None: all."""

    template: str
    source: str
    kernels: tuple[Kernel, ...]
    state_bytes: int
    slots: Mapping[str, int] = dataclasses.field(default_factory=dict)
    blocks: bool = False
    pause: int = 0
    stamps: int | None = None
    tables: frozenset[str] | None = None


def _chain(plan: Plan) -> Written:
    texts, kernels = zip(*(_link(plan, of) for of in links(plan)), strict=True)
    return Written("chain", "\n".join(texts), kernels, STATE_BYTES)


def links(plan: Plan) -> list[tuple[int, ...]]:
    """The steps of each kernel of the chain: one, or two convolutions that read the same layer, as a block and its shortcut do."""
    found: list[tuple[int, ...]] = []
    for index, step in enumerate(plan.steps):
        before = plan.steps[index - 1] if found and len(found[-1]) == 1 else None
        if before and before.cut and step.cut and _reads(before)[0] == _reads(step)[0] and before.layer_names[-1] not in _reads(step):
            found[-1] = (index - 1, index)
        else:
            found.append((index,))
    return found


def _reads(step: Step) -> tuple[str | None, str | None]:
    """The layers that a step reads and adds."""
    return step.layers[0].source, getattr(step.layers[-1], "residual", None)


def _link(plan: Plan, of: Sequence[int]) -> tuple[str, Kernel]:
    """The kernel of one step of the chain or of two, and its launch."""
    steps = [plan.steps[index] for index in of]
    first = steps[0]
    name = f"step_{of[0]:02}_{'_'.join(step.name for step in steps)}"
    call = f"run_alone<{_class(first)}>" if len(steps) == 1 else f"run_beside<{_class(first)}, {first.tiles}, {_class(steps[1])}>"
    text = (
        f'extern "C" __global__ void __launch_bounds__(THREADS, 2) {name}({PARAMETERS}) {{\n'
        f"    {call}(Run{{image, weights, arena, logits, state}});\n}}\n"
    )
    kernel = Kernel(
        name,
        sum(step.tiles for step in steps),
        THREADS,
        max(step.shared for step in steps),
        dependent=of[0] > 0,
        layers=tuple(layer for step in steps for layer in step.layer_names),
        reads_image=any(layer.source == INPUT for step in steps for layer in step.layers),
    )
    return text, kernel


def link(plan: Plan, index: int, tables: Collection[str] = ()) -> tuple[str, Kernel]:
    """The source of one kernel of the chain, to be compiled by itself, and its launch; `tables` as of `generate`."""
    text, kernel = _link(plan, (index,))
    written = Written("chain", text, (kernel,), STATE_BYTES, tables=_known(plan, tables))
    return "\n".join([*_templates(plan, written), _struct(plan, written)(plan.steps[index]), text]), kernel


def _grid(plan: Plan) -> Written:
    ctas = min(plan.sms, max(step.tiles for step in plan.steps))
    firsts = dict(zip((step.name for step in plan.steps), itertools.accumulate(map(_counters, plan.steps), initial=0), strict=False))
    lines = [
        f'extern "C" __global__ void __launch_bounds__(THREADS, 1) grid({PARAMETERS}) {{',
        f"    Persistent<{ctas}> all;",
        "    if (!all.begin(Run{image, weights, arena, logits, state})) return;",
    ]
    for number, step in enumerate(plan.steps, 1):
        first = firsts[step.name] if number < len(plan.steps) else -1
        arguments = [_class(step), str(number), str(step.tiles), str(first), *_waits(plan, step, firsts)]
        lines.append(f"    if (!all.step<{', '.join(arguments)}>()) return;")
    lines += ["    all.end();", "}", ""]
    layers = tuple(name for step in plan.steps for name in step.layer_names)
    kernel = Kernel("grid", ctas, THREADS, max(step.shared for step in plan.steps), cooperative=True, layers=layers)
    words = 32 + -(-ctas // 32) * 32 + COUNTER_WORDS * sum(map(_counters, plan.steps))
    return Written("grid", "\n".join(lines), (kernel,), 4 * words)


def _flow(plan: Plan, flow: Flow | None = None, timed: bool = False) -> Written:
    flow = flow or Flow()
    ctas = min(plan.sms, max(step.tiles for step in plan.steps))
    slots, distance, shared = hold_weights(plan.steps, flow.ahead)
    exchange = plan.arena_bytes + partial_bytes(plan)
    lines = [
        f'extern "C" __global__ void __launch_bounds__(THREADS, 1) grid({PARAMETERS}) {{',
        *([f"    {line}" for line in stamps.BEGIN] if timed else []),
        f"    Flow<{ctas}, {exchange}, {distance}, {str(flow.look_first).lower()}> all;",
        "    all.begin(Run{image, weights, arena, logits, state});",
        *([f"    all.make_barriers<{work(plan.steps)[1]}, {len(plan.steps) + 1}>();"] if flow.blocks and slots else []),
    ]
    gathers = plan.steps[-1].kind == "partial_head"
    steps = plan.steps[:-1] if gathers else plan.steps
    behind = int(flow.fetch_looking and distance > 1)
    fetches = [f"all.fetch_ahead<{_class(step)}, {step.tiles}>();" for step in steps] + ["copies_committed();"] * distance
    lines += [f"    {fetch}" for fetch in fetches[:distance]]
    lines += ["    stamp(state, COPYING);"] if timed else []
    settle = "all.settle(); stamp(state, SETTLED);" if timed else "all.settle();"
    later = [""] * behind + fetches[distance:] if distance else [""] * len(steps)
    for index, (step, fetch) in enumerate(zip(steps, later, strict=False)):
        looking, late = (fetch if behind else "", fetch if flow.fetch_late and not behind else "")
        early = " ".join(filter(None, ["" if index else settle, "" if looking or late else fetch]))
        then = f"beside([&] {{ {looking} }}, [&] {{ {early} }}, [&] {{ {late} }})" if looking or early or late else "Nothing{}"
        apart = bool(step.cut and index + 1 < len(plan.steps) and plan.steps[index + 1].cut)
        call = f"    all.step<{_class(step)}, {step.tiles}, {behind if index else 0}, {str(apart).lower()}>({then});"
        lines += stamps.around(index + 1, call) if timed else [call]
        drops = [f"all.drop<{_class(one)}, {one.tiles}>();" for one in steps[1 : distance + 1 - behind]]
        lines += [] if index else [f"    if (all.failed()) {{ {' '.join([*drops, 'return;'])} }}", "    all.clear_next();"]
        lines += ["    stamp(state, CLEARED);"] if timed and not index else []
    lines.append("    all.end();")
    if gathers:
        call = f"    {_class(plan.steps[-1])}::gather<{ctas}>(all.run);"
        lines += stamps.around(len(plan.steps), call) if timed else [call]
    lines += [*([f"    {line}" for line in stamps.END] if timed else []), "}", ""]
    layers = tuple(name for step in plan.steps for name in step.layer_names)
    state = 4 * (-(-(32 + ctas) // 64) * 64) + 2 * exchange
    kernel = Kernel("grid", ctas, THREADS, shared, cooperative=True, layers=layers)
    written = Written("flow", "\n".join(lines), (kernel,), state, slots, flow.blocks and bool(slots), flow.pause)
    kept = 4 * ctas * stamps.STAMPERS * stamps.words(plan)
    return dataclasses.replace(written, state_bytes=state + kept, stamps=state // 4) if timed else written


def _counters(step: Step) -> int:
    """Of a step: one a pixel tile of a convolution, else one."""
    return step.cut.pixel_tiles if step.cut else 1


def _waits(plan: Plan, step: Step, firsts: Mapping[str, int]) -> Iterator[str]:
    """What a step's tile waits for, as types of grid.cuh: what it reads and what it adds."""
    makers = {name: maker for maker in plan.steps for name in maker.layer_names}
    read = {step.layers[0].source: "true", getattr(step.layers[-1], "residual", None): "false"}
    for name, halo in read.items():
        if name is None or name == INPUT:
            continue
        maker = makers[name]
        if step.cut and maker.cut:
            yield f"Near<{_class(step)}, {_class(maker)}, {firsts[maker.name]}, {halo}>"
        else:
            yield f"Whole<{_class(maker)}, {firsts[maker.name]}>"


WRITERS: dict[str, dict[str, Callable[[Plan], Written]]] = {"chain": {"chain": _chain}, "grid": {"data": _flow, "counters": _grid}}
"""Schedule → what its steps wait for → what writes it."""
