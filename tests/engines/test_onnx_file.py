"""What is read from an ONNX file's bytes, beside what the onnx package says of the same file."""

from __future__ import annotations

from pathlib import Path

import pytest
from exporters import onnx_samples

from accel.engines import onnx_file
from accel.engines.onnx_file import OnnxTensor
from accel.errors import CorruptArtifact

onnx = pytest.importorskip("onnx")


@pytest.mark.parametrize("opset", [11, 17, 21])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("batch", [1, 8, "N"])
def test_the_file_says_what_the_onnx_package_says(tmp_path: Path, opset: int, precision: str, batch: int | str) -> None:
    path = onnx_samples.write(tmp_path / "model.onnx", opset=opset, precision=precision, batch=batch)
    found, model = onnx_file.read(path), onnx.load(str(path))
    dtype = {"fp32": "float32", "fp16": "float16"}[precision]
    assert (found.opset, found.ir_version, found.precision) == (opset, model.ir_version, precision)
    assert found.inputs == (OnnxTensor("x", dtype, (batch, 3, 8, 8)),)
    assert found.outputs == (OnnxTensor("y", dtype, (batch, 4)),)
    assert found.nodes == tuple((node.name, node.op_type) for node in model.graph.node)
    assert found.weights == {dtype: 4}
    assert found.external == ()


def test_weights_beside_the_file_and_in_constants_are_seen(tmp_path: Path) -> None:
    path = onnx_samples.write(tmp_path / "model.onnx", external=True)
    assert onnx_file.read(path).external == ("weights.bin",)
    model = onnx.load(str(path))
    half = onnx.helper.make_tensor("value", onnx.TensorProto.FLOAT16, [1], [1.0])
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["k"], value=half))
    onnx.save_model(model, str(tmp_path / "other.onnx"))
    assert onnx_file.read(tmp_path / "other.onnx").weights == {"float32": 4, "float16": 1}


def test_initialisers_among_the_inputs_and_sizes_without_a_name_are_told_apart(tmp_path: Path) -> None:
    model = onnx.load(str(onnx_samples.write(tmp_path / "model.onnx", batch="N")))
    model.graph.input.append(onnx.helper.make_tensor_value_info("conv.b", onnx.TensorProto.FLOAT, [8]))
    model.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save_model(model, str(tmp_path / "model.onnx"))
    found = onnx_file.read(tmp_path / "model.onnx")
    assert [tensor.name for tensor in found.inputs] == ["x"]
    assert (found.inputs[0].shape, found.outputs[0].shape) == (("?", 3, 8, 8), ("?", 4))


def test_another_domains_opset_is_not_the_models(tmp_path: Path) -> None:
    model = onnx.load(str(onnx_samples.write(tmp_path / "model.onnx")))
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save_model(model, str(tmp_path / "model.onnx"))
    assert onnx_file.read(tmp_path / "model.onnx").opset == 17


def test_a_truncated_file_or_another_one_is_corrupt(tmp_path: Path) -> None:
    path = onnx_samples.write(tmp_path / "model.onnx")
    data = path.read_bytes()
    for broken in (b"", data[: len(data) // 2], b"<html>no model</html>", b"\xff" * 64, bytes(64)):
        path.write_bytes(broken)
        with pytest.raises(CorruptArtifact, match=r"model\.onnx"):
            onnx_file.read(path)
    with pytest.raises(CorruptArtifact, match="cannot be read"):
        onnx_file.read(tmp_path / "absent.onnx")
