"""Open Inference Protocol V2 without HTTP: what a body means, and what is wrong with it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from serve_http import COUNT, IMAGE, LABELS, LOGITS, MASK, input_of, request

from accel.serve import protocol, tensors
from accel.serve.reply import Refusal
from accel.types import Array, TensorSpec


def parsed(body: Any, header_length: str | None = None) -> protocol.InferRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return protocol.parse(raw, header_length, (IMAGE, MASK), (LOGITS, COUNT), 4, 500_000)


def responded(body: Any, **results: Array) -> protocol.Reply:
    return protocol.respond(parsed(body), results, "net", LABELS)


def test_nested_and_flat_data_are_the_same_row_major_tensor() -> None:
    expected = np.array([[[0, 1, 2], [3, 4, 5]]], np.float32)
    for data in ([0, 1, 2, 3, 4, 5], [[[0, 1, 2], [3.0, 4, 5]]], [[0, 1, 2], [3, 4, 5]]):
        found = parsed(input_of(0, data=data)).inputs["image"]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


def test_binary_data_follows_the_json_in_the_order_of_the_inputs() -> None:
    image, mask = np.arange(6, dtype="<f4").reshape(1, 2, 3), np.array([[True, False, True, True]])
    body = input_of(0, data=None, parameters={"binary_data_size": 24})
    body["inputs"][1] = {"name": "mask", "shape": [1, 4], "datatype": "BOOL", "parameters": {"binary_data_size": 4}}
    head = json.dumps(body).encode()
    found = parsed(head + image.tobytes() + mask.tobytes(), str(len(head)))
    np.testing.assert_array_equal(found.inputs["image"], image)
    np.testing.assert_array_equal(found.inputs["mask"], mask)


def test_outputs_are_all_there_are_unless_some_are_asked_for() -> None:
    assert parsed(request()).outputs == (protocol.Wanted("logits", False), protocol.Wanted("count", False))
    assert parsed(request(outputs=[])).outputs == parsed(request()).outputs
    asked = request(
        id="7",
        parameters={"binary_data_output": True, "priority": 3},
        outputs=[{"name": "count", "parameters": {"binary_data": False}}, {"name": "logits", "parameters": {"classification": 2}}],
    )
    assert parsed(asked).outputs == (protocol.Wanted("count", False), protocol.Wanted("logits", True, 2))
    assert parsed(asked).id == "7"


FLAT = [0, 1, 2, 3, 4, 5]
WRONG: list[tuple[Any, str]] = [
    (b"", "no JSON"),
    (b"\xff\xfe\xfd", "no JSON"),
    (b"[" * 100_000, "no JSON"),
    (b'{"inputs": 1e', "no JSON"),
    (b"[]", "no JSON object"),
    (request(inputs=None), '"inputs" is no list'),
    (request(inputs=[3]), '"inputs" is no list'),
    (request(inputs=[]), "the inputs are 'image', 'mask'; received none"),
    (request(id=7), '"id" is no string'),
    (request(parameters=[]), '"parameters" of the request'),
    (request(parameters={"binary_data_output": 1}), "binary_data_output is 1"),
    (request(parameters={"sequence_id": 4}), "keeps no state"),
    (request(outputs={}), '"outputs" is no list'),
    (request(outputs=[{"name": "other"}]), "the outputs are 'logits', 'count'"),
    (request(outputs=[{"name": "count"}, {"name": "count"}]), "each at most once"),
    (request(outputs=[{"name": ["count"]}]), "the outputs are"),
    (request(outputs=[{"name": "logits", "parameters": {"classification": "2"}}]), "classification is '2'"),
    (request(outputs=[{"name": "logits", "parameters": {"shared_memory_region": "x"}}]), "no shared memory"),
    (input_of(0, name=None), 'a "name" and a "datatype"'),
    (input_of(0, name="mask"), "input 'mask' is there twice"),
    (input_of(0, name="other"), "the inputs are"),
    (input_of(0, datatype="BYTES"), "datatype 'BYTES' is not supported"),
    (input_of(0, datatype="FP16"), "FP16 cannot be sent as JSON"),
    (input_of(0, shape=None), "shape is no list of sizes"),
    (input_of(0, shape=[-1, 2, 3]), "shape is no list of sizes"),
    (input_of(0, shape=[True, 2, 3]), "shape is no list of sizes"),
    (input_of(0, shape=[1.0, 2, 3]), "shape is no list of sizes"),
    (input_of(0, shape=[2**64]), "shape is no list of sizes"),
    (input_of(0, shape=[1, 2**62, 2**62]), "values; data has 6"),
    (input_of(0, shape=[5, 2, 3]), "send at most 4 in one request"),
    (input_of(0, shape=[1, 2, 4]), "shape [1, 2, 4] is 8 values; data has 6"),
    (input_of(0, data=None), 'either "data" or the parameter'),
    (input_of(0, parameters={"binary_data_size": 24}), 'either "data" or the parameter'),
    (input_of(0, data=None, parameters={"shared_memory_region": "x"}), "no shared memory"),
    (input_of(0, data=None, parameters={"binary_data_size": 24}), "0 bytes are left"),
    (input_of(0, data=None, parameters={"binary_data_size": -4}), "binary_data_size is -4"),
    (input_of(0, data=[0, 1, 2, 3, 4, "5"]), "values that are not FP32"),
    (input_of(0, data=[0, 1, 2, 3, 4, None]), "values that are not FP32"),
    (input_of(0, data=[[0, 1], [2]]), "no rectangular list"),
    (input_of(0, data={"a": 1}, shape=[1]), "values that are not FP32"),
    (input_of(0, data=[0, 1, 2, 3, 4, 1e39]), "values outside of FP32"),
    (input_of(0, data=[0, 1, 2, 3, 4, 2**70]), "values that are not FP32"),
    (json.dumps(request()).replace("[0, 1,", "[NaN, 1,").encode(), "NaN is no JSON number"),
    (json.dumps(request()).replace("[0, 1,", "[-Infinity, 1,").encode(), "-Infinity is no JSON number"),
    (json.dumps(request()).replace("[0, 1,", "[1e999, 1,").encode(), "values outside of FP32"),
    (input_of(1, data=[1, 0, 1, 1]), "values that are not BOOL"),
    (input_of(0, datatype="UINT8", data=[0, 1, 2, 3, 4, 5.5]), "values that are not UINT8"),
    (input_of(0, datatype="UINT8", data=[0, 1, 2, 3, 4, 256]), "values outside of UINT8"),
    (input_of(0, datatype="UINT8", data=[0, 1, 2, 3, 4, -1]), "values outside of UINT8"),
]


@pytest.mark.parametrize(("body", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_request_is_refused_with_what_is_wrong(body: Any, message: str) -> None:
    with pytest.raises(Refusal) as refused:
        parsed(body)
    assert refused.value.status == 400
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("size", "extra", "header", "message"),
    [
        (24, b"\0" * 23, None, "23 bytes are left"),
        (24, b"\0" * 25, None, "1 bytes follow the binary data"),
        (20, b"\0" * 20, None, "is 24 bytes; binary_data_size is 20"),
        (24, b"\0" * 24, "-1", "Inference-Header-Content-Length is '-1'"),
        (24, b"\0" * 24, "²", "Inference-Header-Content-Length is '²'"),
        (24, b"\0" * 24, "100000", "the body has"),
        (24, b"\0" * 24, "10", "no JSON"),
    ],
)
def test_binary_data_of_another_length_is_refused(size: int, extra: bytes, header: str | None, message: str) -> None:
    head = json.dumps(input_of(0, data=None, parameters={"binary_data_size": size})).encode()
    with pytest.raises(Refusal) as refused:
        parsed(head + extra, header or str(len(head)))
    assert message in str(refused.value)


def test_json_over_its_own_limit_is_refused_and_binary_data_are_not_counted_in_it() -> None:
    body = input_of(0, data=None, shape=[4, 2, 3], parameters={"binary_data_size": 96})
    body["inputs"][1] = {"name": "mask", "shape": [4, 4], "datatype": "BOOL", "data": [True] * 16}
    head = json.dumps(body).encode()
    limits = (str(len(head)), (IMAGE, MASK), (LOGITS, COUNT), 4)
    assert protocol.parse(head + b"\0" * 96, *limits, len(head)).inputs["image"].shape == (4, 2, 3)
    with pytest.raises(Refusal, match=f"over the limit of {len(head) - 1} bytes; send tensors as binary data") as refused:
        protocol.parse(head + b"\0" * 96, *limits, len(head) - 1)
    assert refused.value.status == 413


def test_a_bool_is_a_byte_of_0_or_1() -> None:
    with pytest.raises(Refusal, match="0 or 1"):
        tensors.decode_binary(memoryview(b"\0\1\2\1"), "BOOL", [1, 4], "mask")


def test_a_response_names_the_model_and_repeats_the_id() -> None:
    logits, count = np.array([[0.1, 2, -3]], np.float32), np.array([3])
    reply = responded(request(id="a"), logits=logits, count=count)
    assert reply.content_type == "application/json"
    assert json.loads(reply.body) == {
        "model_name": "net",
        "model_version": "1",
        "id": "a",
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [1, 3], "data": [float(np.float32(0.1)), 2.0, -3.0]},
            {"name": "count", "datatype": "INT64", "shape": [1], "data": [3]},
        ],
    }
    assert "id" not in json.loads(responded(request(), logits=logits, count=count).body)


def test_a_binary_response_has_the_bytes_after_the_json_and_says_how_long_that_is() -> None:
    logits, count = np.array([[0.1, 2, -3]], np.float32), np.array([3])
    asked = request(outputs=[{"name": "count"}, {"name": "logits", "parameters": {"binary_data": True}}])
    reply = responded(asked, logits=logits, count=count)
    head = int(reply.headers["Inference-Header-Content-Length"])
    assert reply.content_type == "application/octet-stream"
    assert json.loads(reply.body[:head])["outputs"] == [
        {"name": "count", "datatype": "INT64", "shape": [1], "data": [3]},
        {"name": "logits", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}},
    ]
    np.testing.assert_array_equal(np.frombuffer(reply.body[head:], "<f4"), logits[0])


def test_classes_are_the_highest_values_of_each_row_and_of_equals_the_first() -> None:
    logits = np.array([[0.5, 2, 0.5], [1, 1, 7.25]], np.float32)
    asked = request(outputs=[{"name": "logits", "parameters": {"classification": 2}}])
    (found,) = json.loads(responded(asked, logits=logits).body)["outputs"]
    assert found == {"name": "logits", "datatype": "BYTES", "shape": [2, 2], "data": ["2.0:1:dog", "0.5:0:cat", "7.25:2:owl", "1.0:0:cat"]}
    asked["outputs"][0]["parameters"] = {"classification": 1, "binary_data": True}
    assert responded(asked, logits=logits[:1]).body.endswith(b"\x09\0\0\x002.0:1:dog")
    asked["outputs"][0]["parameters"] = {"classification": 4}
    with pytest.raises(Refusal, match="has not 4 classes"):
        responded(asked, logits=logits)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_json_cannot_say_is_refused_and_passes_as_binary(value: float) -> None:
    logits = np.array([[0, value, 1]], np.float32)
    for parameters in ({}, {"classification": 1}, {"classification": 1, "binary_data": True}):
        with pytest.raises(Refusal, match="ask for binary data") as refused:
            responded(request(outputs=[{"name": "logits", "parameters": parameters}]), logits=logits)
        assert refused.value.status == 422
    reply = responded(request(outputs=[{"name": "logits", "parameters": {"binary_data": True}}]), logits=logits)
    np.testing.assert_array_equal(np.frombuffer(reply.body[-12:], "<f4"), logits[0])


def test_the_metadata_has_minus_one_for_what_is_dynamic() -> None:
    half = TensorSpec("x", ("batch", "time"), "bfloat16", "")
    assert protocol.metadata("net", "fake:fp32", (IMAGE, half), (COUNT,)) == {
        "name": "net",
        "versions": ["1"],
        "platform": "fake:fp32",
        "inputs": [
            {"name": "image", "datatype": "FP32", "shape": [-1, 2, 3]},
            {"name": "x", "datatype": "BF16", "shape": [-1, -1]},
        ],
        "outputs": [{"name": "count", "datatype": "INT64", "shape": [-1]}],
    }
