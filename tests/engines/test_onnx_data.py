"""An ONNX engine needs no trust because it is data: what could make it more is refused before ONNX Runtime sees the file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporters import onnx_samples

from accel.engines import Bundle, Golden, add, create_bare, onnx_data, trust
from accel.errors import CorruptArtifact, UntrustedArtifact
from accel.files import sha256_file
from accel.types import EngineEntry, TensorSpec

onnx = pytest.importorskip("onnx")

INPUTS, OUTPUTS = (TensorSpec("x", (1, 3, 8, 8)),), (TensorSpec("y", (1, 4)),)


def entry_of(path: Path, *more: str) -> EngineEntry:
    files = {f"onnx-fp32/{name}": sha256_file(path.parent / name) for name in (path.name, *more)}
    return EngineEntry("onnx-fp32", "onnx", "fp32", files, INPUTS, OUTPUTS, {}, 0.0, parity={"status": "passed"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return onnx_samples.write(tmp_path / "made" / "model.onnx")


def changed(path: Path, change: Callable[[Any], Any]) -> Path:
    model = onnx.load(str(path), load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def external(tensor: Any, place: str) -> None:
    """Say that the tensor's bytes are in the file `place`."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    tensor.external_data.add(key="location", value=place)


def test_a_plain_file_passes(file: Path) -> None:
    onnx_data.check(file, entry_of(file))


def test_weights_beside_it_that_the_entry_names_pass_and_run(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    import accel

    file = onnx_samples.write(tmp_path / "made" / "model.onnx", external=True)
    public = [tuple(dataclasses.replace(spec, shape=("batch", *spec.shape[1:])) for spec in specs) for specs in (INPUTS, OUTPUTS)]
    golden = Golden(None, {"x": np.zeros((1, 3, 8, 8), np.float32)}, {})
    bundle = create_bare(tmp_path / "x.accel", "x", *public, golden)
    bundle = add(bundle.path, entry_of(file, "weights.bin"), file.parent)
    trust.checked_file(bundle, bundle.entries[0])
    with accel.load(bundle.path, "onnxruntime:fp32", device="cpu") as engine:
        assert engine(np.zeros((1, 3, 8, 8), np.float32)).shape == (1, 4)
    (bundle.path / "onnx-fp32/weights.bin").write_bytes(b"other")
    with pytest.raises(CorruptArtifact, match=r"weights\.bin \(5 bytes\) has SHA-256"):
        trust.checked_file(Bundle.open(bundle.path), bundle.entries[0])


@pytest.mark.parametrize(
    "place", ["/etc/passwd", "../../secret", "secret", "./model.onnx", "*/_ORT_MEM_ADDR_/*", "", "onnx-fp32/model.onnx", "..\\secret"]
)
def test_weights_anywhere_else_are_refused(file: Path, place: str) -> None:
    changed(file, lambda model: external(model.graph.initializer[0], place))
    with pytest.raises(CorruptArtifact, match=r"which is none of the files that accel\.json names for onnx-fp32") as caught:
        onnx_data.check(file, entry_of(file))
    assert repr(place) in caught.value.message
    assert caught.value.remedy


def in_a_constant(model: Any) -> None:
    value = onnx.helper.make_tensor("v", 1, [1], [0.0])
    external(value, "secret")
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["c"], value=value))


def in_a_body(model: Any) -> None:
    value = onnx.helper.make_tensor("v", 1, [1], [0.0])
    external(value, "secret")
    body = onnx.helper.make_graph([], "body", [], [onnx.helper.make_tensor_value_info("v", 1, [1])], [value])
    model.graph.node.append(onnx.helper.make_node("If", ["b"], ["i"], then_branch=body, else_branch=body))


def in_a_sparse_tensor(model: Any) -> None:
    value = onnx.helper.make_tensor("v", 1, [1], [0.0])
    external(value, "secret")
    model.graph.sparse_initializer.append(
        onnx.helper.make_sparse_tensor(value, onnx.helper.make_tensor("i", 7, [1], [0]), [4]),
    )


def in_a_function(model: Any) -> None:
    value = onnx.helper.make_tensor("v", 1, [1], [0.0])
    external(value, "secret")
    node = onnx.helper.make_node("Constant", [], ["c"], value=value)
    model.functions.append(onnx.helper.make_function("mine", "F", [], ["c"], [node], [onnx.helper.make_opsetid("", 17)]))


@pytest.mark.parametrize("hide", [in_a_constant, in_a_body, in_a_sparse_tensor, in_a_function])
def test_they_are_found_wherever_a_tensor_may_stand(file: Path, hide: Callable[[Any], None]) -> None:
    changed(file, hide)
    with pytest.raises(CorruptArtifact, match="'secret'"):
        onnx_data.check(file, entry_of(file))


def test_a_message_that_is_there_twice_is_read_as_protobuf_merges_it(file: Path) -> None:
    """A reader that took the last graph alone would miss what the first has."""
    other, plain = onnx.ModelProto(), file.read_bytes()
    other.graph.initializer.append(onnx.helper.make_tensor("v", 1, [1], [0.0]))
    external(other.graph.initializer[0], "secret")
    for data in (other.SerializeToString() + plain, plain + other.SerializeToString()):
        assert onnx.load_model_from_string(data).graph.initializer[0 if data.endswith(plain) else -1].external_data
        file.write_bytes(data)
        with pytest.raises(CorruptArtifact, match="'secret'"):
            onnx_data.check(file, entry_of(file))


@pytest.mark.parametrize("operator", ["EPContext", "PythonOp", "ATen"])
@pytest.mark.parametrize("inside", [False, True])
def test_an_operator_that_carries_code_is_refused(file: Path, operator: str, inside: bool) -> None:
    """ONNX Runtime's TensorRT provider would run the plan in an EPContext node, or read it from the file that it names."""
    node = onnx.helper.make_node(operator, ["x"], ["z"], domain="com.microsoft", ep_cache_context=b"a plan", embed_mode=1)

    def change(model: Any) -> None:
        if inside:
            body = onnx.helper.make_graph([node], "body", [], [onnx.helper.make_tensor_value_info("z", 1, [1])])
            model.graph.node.append(onnx.helper.make_node("If", ["b"], ["i"], then_branch=body, else_branch=body))
        else:
            model.graph.node.append(node)

    changed(file, change)
    with pytest.raises(UntrustedArtifact, match=rf"has the operator com\.microsoft\.{operator}, which carries code") as caught:
        onnx_data.check(file, entry_of(file))
    assert caught.value.exit_code == 5


def test_a_body_in_a_body_without_end_is_corrupt(file: Path) -> None:
    def nested(depth: int) -> bytes:
        data = b""
        for _ in range(depth):  # GraphProto.node → NodeProto.attribute → AttributeProto.g
            data = part(1, part(5, part(6, data)))
        return data

    def part(number: int, data: bytes) -> bytes:
        length, size = b"", len(data)
        while True:
            length += bytes([(size & 0x7F) | (0x80 if size > 0x7F else 0)])
            size >>= 7
            if not size:
                return bytes([number << 3 | 2]) + length + data

    file.write_bytes(file.read_bytes() + part(7, nested(2000)))
    with pytest.raises(CorruptArtifact, match="is no ONNX model"):
        onnx_data.check(file, entry_of(file))


def test_other_inputs_than_the_entry_says_are_refused(file: Path) -> None:
    entry = entry_of(file)
    for wrong in (
        TensorSpec("y", (1, 3, 8, 8)),
        TensorSpec("x", (8, 3, 8, 8)),
        TensorSpec("x", (1, 3, 8, 8), "float16"),
        TensorSpec("x", (1,)),
    ):
        with pytest.raises(CorruptArtifact, match=r"has the inputs x float32 \(1, 3, 8, 8\); accel\.json says"):
            onnx_data.check(file, dataclasses.replace(entry, inputs=(wrong,)))
