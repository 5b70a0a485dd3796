"""From an ONNX file to TensorRT's network: what is refused before parsing, how the network is typed, and what a parser error says."""

from __future__ import annotations

import dataclasses
from typing import Any

from accel.engines.onnx_file import OnnxFile
from accel.errors import DeviceUnavailable, UnsupportedOperator, UsageError
from accel.trt import Library

STRONG, WEAK = "STRONGLY_TYPED", "EXPLICIT_BATCH"
"""Members of NetworkDefinitionCreationFlag, the first that a TensorRT has is used: 10 and later, 8.6; a library with neither takes 0."""

OPSETS: dict[tuple[str, int], tuple[int, int]] = {("tensorrt", 8): (7, 17), ("tensorrt", 11): (9, 25)}
"""(flavor, major) → lowest and highest opset that its parser takes; for others the parser itself is asked."""

SAFE_OPSET = 17
"""What every TensorRT from 8.6 on takes."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A parsed network, with the builder that made it and the parser that holds its weights: all three live as long as the build.

    Attributes:
        strong: its precision is that of the ONNX file's types; else the builder chooses, as far as its flags let it.
    """

    library: Library
    builder: Any
    network: Any
    parser: Any
    strong: bool


def is_strong(library: Library) -> bool:
    """Whether the types of the ONNX file are the precision; on 8.6 a flag of the builder decides."""
    kinds = library.trt.NetworkDefinitionCreationFlag
    return hasattr(kinds, STRONG) or not hasattr(kinds, WEAK)


def check_source(library: Library, source: OnnxFile, precision: str, batch: int | str, model: str) -> None:
    """Hold the file against this TensorRT before its parser sees it.

    Raises:
        UsageError: the opset is one that it does not parse, or the file's types are another precision than was asked for.
    """
    low, high = OPSETS.get((library.flavor.name, library.version[0]), (1, source.opset))
    if not low <= source.opset <= high:
        flags = (" --fp16" if precision == "fp16" else "") + ("" if batch == 1 else f" --batch {batch}")
        again = f"accel export {model} --to onnx --opset {SAFE_OPSET}{flags} --force"
        convert = f"onnx.version_converter.convert_version(model, {SAFE_OPSET}), or export the file again in that opset"
        raise UsageError(
            f"{source.path.name} is of opset {source.opset}; {library.title} takes the opsets {low} to {high}",
            remedy=convert if model.endswith(".onnx") else again,
        )
    if source.precision == precision or (precision == "fp16" and not is_strong(library)):
        return
    if precision == "fp16":
        raise UsageError(
            f"fp16 was asked for, and {library.title} computes in the types of the ONNX file; {source.path.name} is FP32",
            remedy="convert the file first, with onnxconverter_common.float16.convert_float_to_float16 or "
            "modelopt.onnx.autocast.convert_to_mixed_precision, and export that; or export the PyTorch model",
        )
    raise UsageError(f"{precision} was asked for, and the weights of {source.path.name} are float16", remedy="add --fp16")


def parse(library: Library, source: OnnxFile) -> Network:
    """Parse the file.

    Raises:
        UnsupportedOperator: names the node, its operator and the parser's reason. DeviceUnavailable: there is no GPU that it could use.
    """
    trt = library.trt
    with library.listening() as heard:
        try:
            builder = trt.Builder(library.log)
        except TypeError as error:  # how the bindings say that the library's own constructor gave nothing
            raise DeviceUnavailable(f"{library.title} cannot start: {_last(heard) or error}", remedy="run `accel doctor`") from error
        kinds = trt.NetworkDefinitionCreationFlag
        flag = next((name for name in (STRONG, WEAK) if hasattr(kinds, name)), None)
        network = builder.create_network(0 if flag is None else 1 << int(getattr(kinds, flag)))
        parser = trt.OnnxParser(network, library.log)
        if not parser.parse_from_file(str(source.path)):
            raise _unparsed(library, source, parser, heard)
    return Network(library, builder, network, parser, is_strong(library))


def _unparsed(library: Library, source: OnnxFile, parser: Any, heard: list[str]) -> UnsupportedOperator:
    found = [_described(parser.get_error(index), source) for index in range(parser.num_errors)]
    said = "; ".join(found) or _last(heard) or "it gave no reason"
    return UnsupportedOperator(
        f"{library.title} cannot parse {source.path.name}: {said}",
        remedy=f"replace the operator in the model, or try --to onnx --opset {SAFE_OPSET} --force first",
    )


def _described(problem: Any, source: OnnxFile) -> str:
    """`node /neck/NMS (NonMaxSuppression): reason`; 8.6 gives only the node's number, and the file itself has the names."""
    name = operator = ""
    if hasattr(problem, "node_name"):
        name, operator = str(problem.node_name()), str(problem.node_operator())
    elif 0 <= problem.node() < len(source.nodes):
        name, operator = source.nodes[problem.node()]
    return f"node {name or problem.node()} ({operator or 'unknown operator'}): {problem.desc()}"


def _last(heard: list[str]) -> str:
    return heard[-1] if heard else ""
