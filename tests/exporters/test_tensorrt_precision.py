"""The proof of precision, on what the inspectors of 8.6 and of 10 and later say; the samples follow NVIDIA's documentation of their shapes
and what TensorRT-RTX 1.7 was seen to log of its own layers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from trt.fake_trt import DATA_TYPE, Layer, Tensor, World

from accel.errors import PrecisionError, UnsupportedOperator
from accel.exporters import tensorrt_precision as precision
from accel.exporters.tensorrt_macs import Work, measure


def work(name: str, macs: int, *dtypes: str, nodes: tuple[str, ...] = ()) -> Work:
    return Work(name, frozenset([name, *nodes]), "CONVOLUTION", macs, dtypes)


def old(name: str, kind: str, into: str, out: str) -> dict[str, Any]:
    """A layer as 8.6 tells it."""
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [{"Name": "in", "Location": "Device", "Dimensions": [1, 64, 32, 32], "Format/Datatype": into}],
        "Outputs": [{"Name": "out", "Location": "Device", "Dimensions": [1, 64, 32, 32], "Format/Datatype": out}],
        "ParameterType": "Convolution",
        "TacticName": "sm80_xmma_fprop_implicit_gemm",
        "StreamId": 0,
    }


def new(name: str, kind: str, into: str, out: str, *nodes: str) -> dict[str, Any]:
    """A layer of the compiler backend, as 10 and later tell it."""
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [{"Name": "in", "Dimensions": [1, 64, 32, 32], "Datatype": into, "Format": "(NHWC) Channel major format"}],
        "Constants": [{"Name": "scale", "Dimensions": [1], "Datatype": "Float", "Format": "(Linear) Row major linear format"}],
        "Outputs": [{"Name": "out", "Dimensions": [1, 64, 32, 32], "Datatype": out, "Format": "(NHWC) Channel major format"}],
        "TacticName": "__myelin_CASK_STUB",
        "Metadata": "".join(f"[ONNX Layer: {node}]" for node in nodes),
    }


HALF, FLOAT = "Channel major FP16 format where channel % 8 == 0", "Row major linear FP32"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Half", "half"),
        ("Row major linear FP16 format", "half"),
        ("Two wide channel vectorized row major FP16 format", "half"),
        ("Channel major FP16 format where channel % 4 == 0", "half"),
        ("Float", "float"),
        ("Row major linear FP32", "float"),
        ("BF16", "bfloat"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "narrow"),
        ("FP8", "narrow"),
        ("Int32", "other"),
        ("Row major linear UInt8 format", "other"),
        ("N/A due to dynamic shapes", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_format_is_read_as_a_type(text: str, kind: str) -> None:
    assert precision.classify(text) == kind


def test_8_6_names_its_fused_layers() -> None:
    works = [work("Conv_0", 90), work("Conv_3", 5), work("Gemm_9", 5)]
    layers = [
        old("Reformatting CopyNode for Input Tensor 0 to Conv_0 + Relu_1", "Reformat", FLOAT, HALF),
        old("Conv_0 + Relu_1", "CaskConvolution", HALF, HALF),
        old("Conv_3 + Add_4 + Relu_5", "CaskConvolution", HALF, HALF),
        old("Gemm_9", "CublasConvolution", HALF, HALF),
    ]
    proof = precision.inspect(works, layers, "fp16")
    assert (proof.share, proof.types, proof.unproven) == (1.0, {"half": 3}, ())
    precision.demand(proof, "fp16", allow_mixed=False)


def test_a_sibling_fusion_proves_both_layers() -> None:
    layers = [old("/a/Conv || /b/Conv + /b/Relu", "CaskConvolution", HALF, HALF)]
    assert precision.inspect([work("/a/Conv", 1), work("/b/Conv", 1)], layers, "fp16").share == 1.0


def test_from_10_on_the_onnx_nodes_are_in_the_metadata_and_the_type_has_a_key_of_its_own() -> None:
    works = [work("/conv1/Conv", 90, nodes=("/conv1/Conv",)), work("ONNXTRT_matmul_3", 10, nodes=("/fc/Gemm",))]
    layers = [
        new("__myl_ConcMove_myl0_0", "kgen", "Float", "Half", "/conv1/Conv", "/relu/Relu"),
        new("/conv1/Conv_myl0_1", "correlation", "Half", "Half", "/conv1/Conv", "/relu/Relu"),
        new("__myl_Fc_myl0_21", "gemm", "Half", "Half", "/fc/Gemm"),
    ]
    assert precision.inspect(works, layers, "fp16").share == 1.0
    # Without metadata the backend's name still begins with the layer's own.
    assert precision.names_in({"Name": "/conv1/Conv_myl0_1"}) == {"/conv1/Conv"}


def test_where_no_layer_says_that_it_multiplies_all_of_them_count() -> None:
    layers = [new("__myl_A_myl0_0", "kgen", "Half", "Half", "/fc/Gemm"), new("__myl_B_myl0_1", "kgen", "Half", "Float", "/fc/Gemm")]
    assert precision.inspect([work("/fc/Gemm", 1)], layers, "fp16").types == {"mixed": 1}


@pytest.mark.parametrize(
    ("into", "out", "kind"), [(FLOAT, HALF, "mixed"), (HALF, "Float", "mixed"), ("N/A", HALF, "unknown"), ("Int8", "Half", "mixed")]
)
def test_half_means_in_and_out(into: str, out: str, kind: str) -> None:
    proof = precision.inspect([work("Conv_0", 7)], [old("Conv_0", "CaskConvolution", into, out)], "fp16")
    assert proof.types == {kind: 1}


@pytest.mark.parametrize(("weights", "kind"), [({"Type": "Half", "Count": 216}, "half"), ({"Type": "Float"}, "float"), (None, "unknown")])
def test_where_no_formats_are_told_the_weights_stand_for_them(weights: dict[str, Any] | None, kind: str) -> None:
    untold = "N/A due to dynamic shapes"
    layer = {**old("/conv/Conv + /relu/Relu", "CaskConvolution", untold, untold), **({} if weights is None else {"Weights": weights})}
    proof = precision.inspect([work("/conv/Conv", 7)], [layer], "fp16")
    assert (proof.types, proof.method) == ({kind: 1}, precision.WEIGHTS)


def test_what_cannot_be_found_is_not_proven() -> None:
    works = [work("Conv_0", 94), work("MatMul_7", 6)]
    layers = [old("Conv_0", "CaskConvolution", HALF, HALF), old("{ForeignNode[MatMul_7...Softmax_9]}", "Myelin", HALF, HALF)]
    proof = precision.inspect(works, layers, "fp16")
    assert (proof.share, proof.unproven) == (0.94, ("MatMul_7 (unknown)",))
    with pytest.raises(PrecisionError, match=r"fp16 was asked for, and 94\.0 % .* MatMul_7 \(unknown\)"):
        precision.demand(proof, "fp16", allow_mixed=False)
    precision.demand(proof, "fp16", allow_mixed=True)


def test_a_twentieth_may_stay_in_fp32() -> None:
    works = [work("Conv_0", 95), work("Conv_1", 5)]
    layers = [old("Conv_0", "CaskConvolution", HALF, HALF), old("Conv_1", "CaskConvolution", FLOAT, FLOAT)]
    proof = precision.inspect(works, layers, "fp16")
    assert proof.share == 0.95
    precision.demand(proof, "fp16", allow_mixed=False)


def test_no_layer_of_an_fp32_plan_is_in_half() -> None:
    works = [work("Conv_0", 99), work("Conv_1", 1)]
    layers = [old("Conv_0", "CaskConvolution", FLOAT, FLOAT), old("Conv_1", "CaskConvolution", HALF, HALF)]
    proof = precision.inspect(works, layers, "fp32")
    assert proof.share == 0.99
    with pytest.raises(PrecisionError, match=r"fp32 was asked for, .* Conv_1 \(half\)"):
        precision.demand(proof, "fp32", allow_mixed=False)


def test_a_network_without_arithmetic_proves_nothing() -> None:
    proof = precision.inspect([], [old("Relu_0", "PointWise", HALF, HALF)], "fp16")
    assert proof.share is None
    with pytest.raises(PrecisionError, match="no layer whose precision"):
        precision.demand(proof, "fp16", allow_mixed=False)


def test_the_types_of_a_network_are_read_where_the_plan_cannot_be() -> None:
    works = [work("a", 60, "HALF", "HALF"), work("b", 30, "HALF", "FLOAT"), work("c", 10, "FLOAT", "FLOAT")]
    proof = precision.read_network(works, "fp16")
    assert (proof.share, proof.types) == (0.6, {"half": 1, "mixed": 1, "float": 1})
    assert proof.unproven == ("b (mixed)", "c (float)")


def test_what_the_inspector_says_may_hold_control_characters_and_must_be_json() -> None:
    world = World("10.13.0", raw='{"Layers": [{"Name": "a\x1eb", "LayerType": "gemm"}], "I/O Tensors": []}')
    assert precision.layers_of(world.library(), b"plan", {}) == [{"Name": "a\x1eb", "LayerType": "gemm"}]
    world.raw = '{"Layers": ["names alone"]}'
    assert precision.layers_of(world.library(), b"plan", {}) == []
    for world.raw in ('{"Layers": [', "[]", "{}"):
        with pytest.raises(UnsupportedOperator, match="cannot be read"):
            precision.layers_of(world.library(), b"plan", {})


def test_multiply_accumulates_are_counted_by_kind() -> None:
    def tensor(*shape: int) -> Tensor:
        return Tensor("t", shape, DATA_TYPE.HALF)

    layers = [
        Layer("conv", "CONVOLUTION", [tensor(-1, 16, 8, 8)], [tensor(-1, 32, 4, 4)], kernel_size_nd=(3, 3)),
        Layer("depthwise", "CONVOLUTION", [tensor(1, 16, 8, 8)], [tensor(1, 16, 8, 8)], kernel_size_nd=(5, 5), num_groups=16),
        Layer("up", "DECONVOLUTION", [tensor(1, 8, 4, 4)], [tensor(1, 4, 8, 8)], kernel_size_nd=(2, 2)),
        Layer("matmul", "MATRIX_MULTIPLY", [tensor(2, 5, 7), tensor(2, 7, 3)], [tensor(2, 5, 3)]),
        Layer("transposed", "MATRIX_MULTIPLY", [tensor(7, 5), tensor(7, 3)], [tensor(5, 3)], op0="MatrixOperation.TRANSPOSE"),
        Layer("einsum", "EINSUM", [tensor(2, 5, 7), tensor(2, 7, 3)], [tensor(2, 5, 3)], equation="bij,bjk->bik"),
        Layer("fc", "FULLY_CONNECTED", [tensor(2, 7, 1, 1)], [tensor(2, 3, 1, 1)], num_output_channels=3),
        Layer("relu", "ACTIVATION", [tensor(1, 4)], [tensor(1, 4)]),
    ]
    world = World("8.6.0", layers=layers)
    library = world.library()
    network = library.trt.Builder(library.log).create_network(1)
    counted = {item.name: item.macs for item in measure(library, network, batch=2)}
    assert counted == {
        "conv": 2 * 32 * 16 * 9 * 16,
        "depthwise": 16 * 64 * 25,
        "up": 8 * 16 * 4 * 4,
        "matmul": 2 * 5 * 3 * 7,
        "transposed": 5 * 3 * 7,
        "einsum": 2 * 5 * 7 * 3,
        "fc": 2 * 7 * 3,
    }


REAL = Path(__file__).resolve().parents[2] / "results" / "h200" / "tensorrt86" / "layers-resnet18-fp16.json.gz"
"""What the exporter stored on an H200: the network of ResNet-18, and what the inspector of TensorRT 8.6.0 told of its FP16 plan."""


def real() -> tuple[list[Work], list[dict[str, Any]]]:
    stored = json.loads(gzip.decompress(REAL.read_bytes()))
    works = [Work(item["name"], frozenset([item["name"]]), item["kind"], item["macs"], tuple(item["types"])) for item in stored["network"]]
    return works, stored["engine"]


def test_a_real_plan_of_8_6_is_proven_layer_by_layer() -> None:
    works, layers = real()
    proof = precision.inspect(works, layers, "fp16")
    assert (len(works), proof.share, proof.types, proof.method) == (21, 1.0, {"half": 21}, precision.INSPECTED)
    assert proof.macs == 555_422_720
    precision.demand(proof, "fp16", allow_mixed=False)
    with pytest.raises(PrecisionError, match=r"fp32 was asked for, and 0\.0 %"):
        precision.demand(precision.inspect(works, layers, "fp32"), "fp32", allow_mixed=False)


@pytest.mark.parametrize("number", range(21))
def test_one_layer_of_a_real_plan_in_fp32_is_found(number: int) -> None:
    works, layers = real()
    (layer,) = (item for item in layers if works[number].name in precision.names_in(item) and "Convolution" in item["LayerType"])
    layer["Outputs"][0]["Format/Datatype"] = "Row major linear FP32"
    proof = precision.inspect(works, layers, "fp16")
    assert proof.unproven == (f"{works[number].name} (mixed)",)
    assert proof.share == pytest.approx(1 - works[number].macs / proof.macs)
