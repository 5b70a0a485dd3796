"""NVIDIA's client against the tiny bundle: what a stranger's implementation of the protocol makes of ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve_http import Running, noise

import accel
from accel.engines import Bundle

for _package in ("starlette", "uvicorn", "httptools", "prometheus_client"):
    pytest.importorskip(_package, reason="the extra serve is not installed")
client_of = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
from tritonclient.utils import InferenceServerException  # noqa: E402

IMAGES = noise(3, 3, 8, 8)


@pytest.fixture(scope="module")
def client(tiny_server: Running) -> Iterator[Any]:
    with client_of.InferenceServerClient(f"127.0.0.1:{tiny_server.port}", concurrency=2) as found:
        yield found


@pytest.fixture(scope="module")
def expected(tiny_exported: Path) -> np.ndarray[Any, Any]:
    with accel.load(tiny_exported, device="cpu") as engine:
        return engine(IMAGES)


def image(binary: bool = True, rows: slice = slice(0, 3)) -> Any:
    array = IMAGES[rows]
    found = client_of.InferInput("input", list(array.shape), "FP32")
    return found.set_data_from_numpy(array, binary_data=binary)


def test_the_server_and_the_model_are_live_and_ready(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("tiny", "2")
    assert not client.is_model_ready("other")


def test_the_metadata_are_the_bundles(client: Any, tiny_exported: Path) -> None:
    assert client.get_server_metadata()["name"] == "accel"
    found = client.get_model_metadata("tiny")
    (output,) = Bundle.open(tiny_exported).outputs
    assert (found["name"], found["versions"], found["platform"]) == ("tiny", ["1"], "onnxruntime:fp32")
    assert found["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]
    assert found["outputs"] == [{"name": output.name, "datatype": "FP32", "shape": [-1, 10]}]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_an_answer_is_the_engines_own_bit_by_bit(
    client: Any, expected: np.ndarray[Any, Any], binary_in: bool, binary_out: bool | None
) -> None:
    wanted = None if binary_out is None else [client_of.InferRequestedOutput("output", binary_data=binary_out)]
    answer = client.infer("tiny", [image(binary_in)], outputs=wanted, request_id="a/1")
    np.testing.assert_array_equal(answer.as_numpy("output"), expected)
    assert answer.get_response()["id"] == "a/1"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_understood(client: Any, expected: np.ndarray[Any, Any], algorithm: str) -> None:
    answer = client.infer("tiny", [image()], request_compression_algorithm=algorithm, response_compression_algorithm=algorithm)
    np.testing.assert_array_equal(answer.as_numpy("output"), expected)


def test_many_requests_over_one_connection_and_two_at_once(client: Any, expected: np.ndarray[Any, Any]) -> None:
    for row in [0, 1, 2] * 5:
        answer = client.infer("tiny", [image(rows=slice(row, row + 1))], request_id=str(row))
        np.testing.assert_array_equal(answer.as_numpy("output"), expected[row : row + 1])
    pending = [client.async_infer("tiny", [image(rows=slice(row, row + 1))]) for row in (1, 2)]
    for row, request in zip((1, 2), pending, strict=True):
        np.testing.assert_array_equal(request.get_result().as_numpy("output"), expected[row : row + 1])


def test_classes_come_as_strings_of_value_and_index(client: Any, expected: np.ndarray[Any, Any]) -> None:
    wanted = [client_of.InferRequestedOutput("output", class_count=2)]
    found = client.infer("tiny", [image()], outputs=wanted).as_numpy("output")
    assert found.shape == (3, 2)
    for row, strings in zip(expected, found, strict=True):
        assert [int(text.split(b":")[1]) for text in strings] == np.argsort(-row)[:2].tolist()
        assert np.float32(strings[0].split(b":")[0]) == row.max()


@pytest.mark.parametrize(
    ("model", "version", "shape", "status", "message"),
    [
        ("other", "", (1, 3, 8, 8), "404", "there is no model 'other'"),
        ("tiny", "2", (1, 3, 8, 8), "404", "no version '2'"),
        ("tiny", "", (1, 3, 9, 9), "400", "input 'input': expected float32"),
        ("tiny", "", (33, 3, 8, 8), "400", "send at most 32 in one request"),
        ("tiny", "", (1, 3, 2000, 2000), "413", "over the limit"),
    ],
)
def test_an_error_has_its_status_and_its_message(
    client: Any, model: str, version: str, shape: tuple[int, ...], status: str, message: str
) -> None:
    wrong = client_of.InferInput("input", list(shape), "FP32").set_data_from_numpy(np.zeros(shape, np.float32))
    with pytest.raises(InferenceServerException) as raised:
        client.infer(model, [wrong], model_version=version)
    assert raised.value.status() == status
    assert message in raised.value.message()


def test_half_precision_is_for_engines_that_compute_in_it(client: Any) -> None:
    half = client_of.InferInput("input", [1, 3, 8, 8], "FP16").set_data_from_numpy(IMAGES[:1].astype(np.float16))
    with pytest.raises(InferenceServerException, match="expected float32"):
        client.infer("tiny", [half])


def test_what_only_triton_has_is_an_error_that_says_so(client: Any) -> None:
    for ask in (client.get_model_repository_index, lambda: client.get_model_config("tiny")):
        with pytest.raises(InferenceServerException, match="Not Found"):
            ask()
    shared = client_of.InferInput("input", [1, 3, 8, 8], "FP32").set_shared_memory("region", 768)
    with pytest.raises(InferenceServerException, match="no shared memory"):
        client.infer("tiny", [shared])
