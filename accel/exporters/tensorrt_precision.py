"""Which precision was really built: the share of the multiply-accumulates whose layers read and write the type that was asked for.

What the inspector tells differs by version: 8.6 names fused layers `Conv_0 + Relu_1` and gives `Format/Datatype`, as `Half` or
`Channel major FP16 format where channel % 8 == 0`; from 10 on layers of the compiler backend carry `Metadata` with the ONNX nodes and
a `Datatype` of their own. With a dynamic batch 8.6 tells no formats, whatever context the inspector is given (seen on an H200); then the
type of a layer's weights stands for it, and the proof says so.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from accel.errors import PrecisionError, UnsupportedOperator
from accel.exporters.tensorrt_macs import Work, onnx_nodes
from accel.trt import Library

LIMIT = 0.95
"""Least share of the multiply-accumulates in the precision that was asked for."""

INSPECTED, NETWORK = "engine inspector", "types of the parsed network"
WEIGHTS = "engine inspector, types of the weights: it tells no formats of dynamic shapes"
WANTED = {"fp16": "half", "fp32": "float"}

_TYPES = (  # the first that is found decides: bf16 contains f16
    ("bfloat", re.compile(r"bf16|bfloat", re.I)),
    ("half", re.compile(r"fp16|half|float16", re.I)),
    ("narrow", re.compile(r"(?<!u)int8|int4|fp8|fp4", re.I)),
    ("other", re.compile(r"int|bool", re.I)),
    ("float", re.compile(r"fp32|tf32|float", re.I)),
)
_FLOATING = ("float", "half", "bfloat", "narrow")
_COMPUTE = re.compile(r"conv|gemm|matmul|matrix|correlation|fully|multiply|einsum", re.I)
_IDLE = re.compile(r"reformat|noop|shuffle|slice|constant|signal|wait", re.I)
_JOINED = re.compile(r"\s+(?:\+|\|\|)\s+")
_BACKEND = re.compile(r"_myl\d+_\d+$")

Layer = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Proof:
    """What was found.

    Attributes:
        method: INSPECTED, WEIGHTS or NETWORK.
        share: of the multiply-accumulates; None for a network that has none.
        types: `half`, `float`, `narrow`, `mixed`, … → layers.
        unproven: the layers that are not in the precision asked for or could not be found, the heaviest first.
    """

    method: str
    share: float | None
    macs: int
    types: Mapping[str, int]
    unproven: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        share = None if self.share is None else round(self.share, 6)
        return {
            "method": self.method,
            "share": share,
            "limit": LIMIT,
            "macs": self.macs,
            "types": dict(self.types),
            "unproven": list(self.unproven[:5]),
        }


def layers_of(library: Library, plan: bytes, shapes: Mapping[str, Sequence[tuple[int, ...]]]) -> list[Layer]:
    """The layers of a plan as the inspector tells them; it must be deserialised here, on the GPU that it was built for.

    Args:
        shapes: with a dynamic batch the formats are only known for one shape: the profile's best.

    Raises:
        UnsupportedOperator: the plan cannot be deserialised, or told nothing that can be read.
    """
    trt = library.trt
    with library.listening() as heard:
        runtime = trt.Runtime(library.log)
        if hasattr(runtime, "engine_host_code_allowed"):
            runtime.engine_host_code_allowed = True  # a version-compatible plan carries code, and this one was built a moment ago
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            said = "; ".join(heard[-3:]) or "it logged no reason"
            raise UnsupportedOperator(f"{library.title} cannot read the plan that it built: {said}", remedy="run `accel doctor`")
        inspector = engine.create_engine_inspector()
        if shapes:
            context = engine.create_execution_context()
            for name, (_, best, _) in shapes.items():
                context.set_input_shape(name, best)
            inspector.execution_context = context
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        # Names of layers may hold control characters, which strict JSON forbids.
        layers = json.loads(text, strict=False)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnsupportedOperator(f"what {library.title} tells of the plan cannot be read: {error}", remedy="run `accel doctor`") from error
    return [item for item in layers if isinstance(item, dict)]


def inspect(works: Sequence[Work], layers: Sequence[Layer], precision: str) -> Proof:
    """Hold the network's layers against those of the engine, by name."""
    by_node: dict[str, list[Layer]] = {}
    for item in layers:
        if not _IDLE.search(str(item.get("LayerType", ""))):
            for name in names_in(item):
                by_node.setdefault(name, []).append(item)
    matched = [(work, _matching(work, by_node)) for work in works]
    untold = any(_is_untold(item) for _, items in matched for item in items)
    return _judge(WEIGHTS if untold else INSPECTED, [(work, _type_of(items)) for work, items in matched], precision)


def read_network(works: Sequence[Work], precision: str) -> Proof:
    """Hold the types of the parsed network against the precision: all that can be read where no GPU of the plan's is."""
    found = [(work, _common({kind for dtype in work.dtypes if (kind := classify(dtype)) in (*_FLOATING, "unknown")})) for work in works]
    return _judge(NETWORK, found, precision)


def is_proven(proof: Proof, precision: str) -> bool:
    """Whether enough multiply-accumulates are in `precision`, and where that is FP32, none in FP16."""
    wrong = proof.types.get("half", 0) + proof.types.get("mixed", 0) if precision == "fp32" else 0
    return proof.share is not None and proof.share >= LIMIT and not wrong


def demand(proof: Proof, precision: str, *, allow_mixed: bool) -> None:
    """Refuse a plan that is not what was asked for.

    Raises:
        PrecisionError: too few multiply-accumulates are in `precision`, or FP16 was found where FP32 was asked for.
    """
    if allow_mixed or is_proven(proof, precision):
        return
    if proof.share is None:
        raise PrecisionError(
            f"{precision} was asked for, and the network has no layer whose precision could be proven", remedy="add --allow-mixed"
        )
    first = f"; first of all {', '.join(proof.unproven[:3])}" if proof.unproven else ""
    raise PrecisionError(
        f"{precision} was asked for, and {100 * proof.share:.1f} % of the multiply-accumulates are proven to be in it "
        f"({proof.method}; {100 * LIMIT:.0f} % are needed){first}",
        remedy="--allow-mixed keeps the plan and records the share; from TensorRT 10 on the types of the ONNX file decide",
    )


def classify(text: str) -> str:
    """`half` of `Channel major FP16 format where channel % 8 == 0`; also `float`, `bfloat`, `narrow` (8 bits and less), `other` (indices,
    masks) and `unknown`."""
    return next((kind for kind, pattern in _TYPES if pattern.search(text)), "unknown")


def names_in(item: Layer) -> set[str]:
    """The network layers and ONNX nodes that an engine layer was made of, as far as it names them."""
    joined = str(item.get("Name", ""))
    return {_BACKEND.sub("", name) for name in _JOINED.split(joined)} | set(onnx_nodes(str(item.get("Metadata", ""))))


def _matching(work: Work, by_node: Mapping[str, list[Layer]]) -> list[Layer]:
    """The engine layers that were made of `work`: those that multiply, where any of them says so; a layout change of it is none."""
    found = {id(item): item for name in work.names for item in by_node.get(name, [])}
    computing = [item for item in found.values() if _COMPUTE.search(str(item.get("LayerType", "")))]
    return computing or list(found.values())


def _type_of(layers: Sequence[Layer]) -> str:
    """The one floating type of everything that the layers read and write; `mixed` for several, `unknown` if any is not told."""
    kinds = {kind for item in layers for kind in _kinds_of(item)}
    complete = all(item.get("Inputs") and item.get("Outputs") for item in layers)
    return _common(kinds - {"other"}) if layers and complete else "unknown"


def _kinds_of(item: Layer) -> Iterator[str]:
    if _is_untold(item):
        weights = item.get("Weights")
        yield classify(str(weights.get("Type", ""))) if isinstance(weights, dict) else "unknown"
    else:
        yield from (classify(_text_of(part)) for part in _tensors(item))


def _is_untold(item: Layer) -> bool:
    """Whether the inspector keeps the formats of everything around this layer to itself: `N/A due to dynamic shapes`."""
    texts = [_text_of(part) for part in _tensors(item)]
    return bool(texts) and all(text.startswith("N/A") for text in texts)


def _common(kinds: set[str]) -> str:
    if not kinds or "unknown" in kinds:
        return "unknown"
    return next(iter(kinds)) if len(kinds) == 1 else "mixed"


def _tensors(item: Layer) -> Iterator[Layer]:
    for key in ("Inputs", "Outputs"):
        yield from item.get(key) or ()


def _text_of(part: Layer) -> str:
    return str(part.get("Datatype") or part.get("DataType") or part.get("Format/Datatype") or "")


def _judge(method: str, found: Sequence[tuple[Work, str]], precision: str) -> Proof:
    total = sum(work.macs for work, _ in found)
    right = sum(work.macs for work, kind in found if kind == WANTED[precision])
    wrong = sorted(((work, kind) for work, kind in found if kind != WANTED[precision]), key=lambda item: -item[0].macs)
    return Proof(
        method=method,
        share=right / total if total else None,
        macs=total,
        types=dict(Counter(kind for _, kind in found)),
        unproven=tuple(f"{work.name} ({kind})" for work, kind in wrong),
    )
