"""Open Inference Protocol V2: requests into arrays, arrays into responses. Nothing of HTTP but the two lengths is known here.

The protocol: https://github.com/kserve/open-inference-protocol (inference_rest.md); its binary tensor data and classification
extensions: https://github.com/triton-inference-server/server, docs/protocol.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from accel.serve import tensors
from accel.serve.reply import Refusal, Reply
from accel.types import Array, TensorSpec

VERSION = "1"
"""Of the one model that a server has: a bundle has no versions."""

EXTENSIONS = ("binary_tensor_data", "classification")
HEADER_LENGTH = "Inference-Header-Content-Length"

UNSUPPORTED = {
    "shared_memory_region": "this server has no shared memory; send the tensor as JSON or as binary data",
    "sequence_id": "this server keeps no state between requests; send no sequence",
}
"""Parameters that would be answered wrongly if they were passed over, as all unknown ones are."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One output as the client wants it: `classes` is 0 for the tensor itself, else how many of the highest values."""

    name: str
    binary: bool
    classes: int = 0


@dataclasses.dataclass(frozen=True)
class InferRequest:
    """What a body says; `inputs` by name, in the datatypes of the request."""

    id: str | None
    inputs: dict[str, Array]
    outputs: tuple[Wanted, ...]


def parse(
    body: bytes, header_length: str | None, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], rows: int, json_limit: int
) -> InferRequest:
    """Read a request.

    Args:
        body: plain, that is decompressed.
        header_length: the header of that name if it was sent: how much of the body is JSON.
        inputs, outputs: the model's; whether dtypes and shapes fit is the engine's to say.
        rows: the most that a dynamic dimension may be.
        json_limit: bytes that the JSON may have.

    Raises:
        Refusal: 400, with what is wrong; 413, the JSON is too long.
    """
    whole = memoryview(body)
    size = len(whole) if header_length is None else _header_length(header_length, len(whole))
    if size > json_limit:
        raise Refusal(413, f"the JSON is over the limit of {json_limit} bytes; send tensors as binary data")
    request = _json(whole[:size])
    common = _parameters(request, "the request")
    arrays, rest = {}, whole[size:]
    listed = request.get("inputs")
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise Refusal(400, '"inputs" is no list of objects')
    for tensor in listed:
        name, rest, array = _input(tensor, rest, rows)
        if name in arrays:
            raise Refusal(400, f"input {name!r} is there twice")
        arrays[name] = array
    if len(rest):
        raise Refusal(400, f"{len(rest)} bytes follow the binary data that binary_data_size of the inputs accounts for")
    missing = [spec.name for spec in inputs if spec.name not in arrays]
    if missing or len(arrays) != len(inputs):
        raise Refusal(400, f"the inputs are {_names(inputs)}; received {', '.join(map(repr, arrays)) or 'none'}")
    identity = request.get("id")
    if identity is not None and not isinstance(identity, str):
        raise Refusal(400, '"id" is no string')
    return InferRequest(identity, arrays, _outputs(request.get("outputs"), outputs, common))


def respond(request: InferRequest, results: Mapping[str, Array], model: str, labels: Sequence[str]) -> Reply:
    """The response to `request`.

    Args:
        results: all outputs of the model, by name.
        labels: of the classes; empty if they have no names.

    Raises:
        Refusal: 422, a value is NaN or infinite and was asked for as JSON or as a class; 400, more classes than there are.
    """
    listed, binary = [], []
    for wanted in request.outputs:
        tensor, raw = _output(wanted, results[wanted.name], labels)
        listed.append(tensor)
        binary += [] if raw is None else [raw]
    head: dict[str, Any] = {"model_name": model, "model_version": VERSION}
    if request.id is not None:
        head["id"] = request.id
    encoded = json.dumps({**head, "outputs": listed}, allow_nan=False).encode()
    if not binary:
        return Reply(200, encoded)
    return Reply(200, b"".join([encoded, *binary]), {HEADER_LENGTH: str(len(encoded))}, "application/octet-stream")


def metadata(model: str, platform: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Model metadata; a dynamic dimension is -1."""
    return {
        "name": model,
        "versions": [VERSION],
        "platform": platform,
        "inputs": [_described(spec) for spec in inputs],
        "outputs": [_described(spec) for spec in outputs],
    }


def _described(spec: TensorSpec) -> dict[str, Any]:
    shape = [-1 if isinstance(size, str) else size for size in spec.shape]
    return {"name": spec.name, "datatype": tensors.NAMES[spec.dtype], "shape": shape}


def _header_length(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= most):
        raise Refusal(400, f"{HEADER_LENGTH} is {text!r}; the body has {most} bytes")
    return int(text)


def _json(raw: memoryview) -> dict[str, Any]:
    try:
        found = json.loads(bytes(raw), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the request is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise Refusal(400, "the request is no JSON object")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number; send it as binary data")


def _parameters(owner: Mapping[str, Any], what: str) -> dict[str, Any]:
    found = owner.get("parameters", {})
    if not isinstance(found, dict):
        raise Refusal(400, f'"parameters" of {what} is no object')
    for name, why in UNSUPPORTED.items():
        if name in found:
            raise Refusal(400, f"{what} has the parameter {name}: {why}")
    return found


def _input(tensor: Mapping[str, Any], rest: memoryview, rows: int) -> tuple[str, memoryview, Array]:
    """One input's name, what is left of the binary data after it, and its array."""
    name, datatype, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
    if not isinstance(name, str) or not isinstance(datatype, str):
        raise Refusal(400, 'an input has a "name" and a "datatype", both of them strings')
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
        raise Refusal(400, f"input {name!r}: shape is no list of sizes")
    if shape and shape[0] > rows:
        raise Refusal(400, f"input {name!r} has {shape[0]} rows; send at most {rows} in one request")
    size = _parameters(tensor, f"input {name!r}").get("binary_data_size")
    if (size is None) == ("data" not in tensor):
        raise Refusal(400, f'input {name!r} has either "data" or the parameter binary_data_size')
    if size is None:
        return name, rest, tensors.decode_json(tensor["data"], datatype, shape, name)
    if type(size) is not int or not 0 <= size <= len(rest):
        raise Refusal(400, f"input {name!r}: binary_data_size is {size!r}; {len(rest)} bytes are left after {HEADER_LENGTH}")
    return name, rest[size:], tensors.decode_binary(rest[:size], datatype, shape, name)


def _outputs(listed: Any, specs: Sequence[TensorSpec], common: Mapping[str, Any]) -> tuple[Wanted, ...]:
    default = _flag(common, "binary_data_output", False)
    if not listed and (listed is None or isinstance(listed, list)):
        return tuple(Wanted(spec.name, default) for spec in specs)
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise Refusal(400, '"outputs" is no list of objects')
    known = [spec.name for spec in specs]
    names = [item.get("name") for item in listed]
    if any(name not in known or names.count(name) > 1 for name in names):
        raise Refusal(400, f"the outputs are {_names(specs)}, each at most once; asked for {', '.join(map(repr, names))}")
    found = []
    for name, item in zip(names, listed, strict=True):
        parameters = _parameters(item, f"output {name!r}")
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise Refusal(400, f"output {name!r}: classification is {classes!r}; it is a number of classes")
        found.append(Wanted(str(name), _flag(parameters, "binary_data", default), classes))
    return tuple(found)


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    found = parameters.get(name, default)
    if not isinstance(found, bool):
        raise Refusal(400, f"{name} is {found!r}; it is true or false")
    return found


def _output(wanted: Wanted, array: Array, labels: Sequence[str]) -> tuple[dict[str, Any], bytes | None]:
    """The JSON of one output, and its binary data if it was asked for so."""
    if array.dtype.kind == "f" and (wanted.classes or not wanted.binary) and not np.isfinite(array).all():
        raise Refusal(422, f"output {wanted.name!r} has values that are NaN or infinite, which JSON cannot say; ask for binary data")
    if not wanted.classes:
        tensor = {"name": wanted.name, "datatype": tensors.NAMES[str(array.dtype)], "shape": list(array.shape)}
        if wanted.binary:
            raw = tensors.encode_binary(array)
            return {**tensor, "parameters": {"binary_data_size": len(raw)}}, raw
        return {**tensor, "data": array.ravel().tolist()}, None
    strings, shape = _classified(wanted, array, labels)
    tensor = {"name": wanted.name, "datatype": "BYTES", "shape": shape}
    if wanted.binary:
        raw = tensors.encode_strings(strings)
        return {**tensor, "parameters": {"binary_data_size": len(raw)}}, raw
    return {**tensor, "data": strings}, None


def _classified(wanted: Wanted, array: Array, labels: Sequence[str]) -> tuple[list[str], list[int]]:
    """`value:index[:label]` of the highest values of each row, of equals the lower index first; and the shape rows × classes."""
    count = math.prod(array.shape[1:])
    if array.ndim < 2 or wanted.classes > count:
        raise Refusal(400, f"output {wanted.name!r} of shape {list(array.shape)} has not {wanted.classes} classes")
    strings = []
    for row in array.reshape(len(array), count):
        for index in np.argsort(-row.astype(np.float64), kind="stable")[: wanted.classes]:
            label = f":{labels[index]}" if len(labels) == count else ""
            strings.append(f"{row[index]!s}:{index}{label}")
    return strings, [len(array), wanted.classes]


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(repr(spec.name) for spec in specs)
