"""POST /predict: a picture as `accel predict` sees it, raw or in a form."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_http import LABELS, Running, ScriptedEngine, serving

import accel
from accel.errors import CorruptArtifact, PrecisionError
from accel.serve import bodies, uploads
from accel.serve.reply import Refusal
from accel.serve.service import Served

for _package in ("starlette", "uvicorn", "httptools", "prometheus_client", "torch", "onnx", "onnxruntime"):
    pytest.importorskip(_package)
image_of = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

from accel.checkpoint import write_checkpoint  # noqa: E402
from accel.types import Checkpoint, TensorSpec  # noqa: E402

NAMES = tuple(f"class {number}" for number in range(10))
SIZE = 8


def file_of(format: str = "PNG", size: tuple[int, int] = (20, 12)) -> bytes:
    pixels = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), np.uint8)
    stream = io.BytesIO()
    image_of.fromarray(pixels).save(stream, format)
    return stream.getvalue()


def form(*files: bytes, named: str = 'name="picture"; filename="a.png"') -> bytes:
    parts = [f"--x-1\r\nContent-Disposition: form-data; {named}\r\n\r\n".encode() + file + b"\r\n" for file in files]
    return b"".join([*parts, b"--x-1--\r\n"])


FORM = 'multipart/form-data; boundary="x-1"'


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that says how a picture becomes its input, and what its classes are called."""
    folder = tmp_path_factory.mktemp("classifier")
    described = Checkpoint(
        path=folder / "named",
        sha256="",
        name="named",
        factory="nets:build",
        num_classes=10,
        input=TensorSpec("input", ("batch", 3, SIZE, SIZE), "float32", "NCHW"),
        output=TensorSpec("logits", ("batch", 10), "float32", "NC"),
        preprocess={"mean": [0.5] * 3, "std": [0.25] * 3, "height": SIZE, "width": SIZE},
        labels=NAMES,
    )
    write_checkpoint(described, {name: value.numpy() for name, value in nets.trained().state_dict().items()})
    accel.export(str(folder / "named"), "onnx", name="named", out=folder, device="cpu", trusted=True)
    return folder / "named.accel"


@pytest.fixture(scope="module")
def shown(classifier: Path) -> Iterator[Running]:
    from accel.api.serving import served
    from accel.engines import Bundle

    with accel.load(classifier, device="cpu") as engine, serving(served(Bundle.open(classifier), engine)) as running:
        yield running


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "WEBP"])
def test_the_answer_is_that_of_accel_predict(shown: Running, classifier: Path, format: str) -> None:
    file = file_of(format)
    (expected,) = accel.predict(classifier, file, 3, device="cpu").pictures
    answer = shown.ask("POST", "/predict?top_k=3", file, Content_Type=f"image/{format.lower()}")
    assert answer.json == {"model_name": "named", "top": [dataclasses.asdict(guess) for guess in expected.top]}
    assert answer.json["top"][0]["label"] in NAMES


def test_a_form_and_a_body_of_no_particular_type_are_taken_too(shown: Running) -> None:
    file = file_of()
    raw = shown.ask("POST", "/predict", file, Content_Type="application/octet-stream")
    sent = shown.ask("POST", "/predict", form(file), Content_Type=FORM)
    assert raw.status == sent.status == 200
    assert raw.json == sent.json
    assert len(raw.json["top"]) == 5


def test_there_are_no_more_classes_than_the_model_has(shown: Running) -> None:
    found = shown.ask("POST", "/predict?top_k=1000", file_of(), Content_Type="image/png").json["top"]
    assert len(found) == 10
    assert sum(guess["probability"] for guess in found) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("query", "body", "kind", "status", "message"),
    [
        ("", b"no picture", "image/png", 400, "the picture cannot be decoded"),
        ("", file_of()[:200], "image/png", 400, "the picture cannot be decoded"),
        ("", b"", "image/png", 400, "the picture cannot be decoded"),
        ("", file_of(), "text/plain", 415, "send a picture as image/*"),
        ("", file_of(), "", 415, "Content-Type is ''"),
        ("", form(), FORM, 400, "has 0 files"),
        ("", form(file_of(), file_of()), FORM, 400, "has 2 files"),
        ("", form(b"text", named='name="note"'), FORM, 400, "has 0 files"),
        ("", form(file_of())[:-6], FORM, 400, "does not end with its boundary"),
        ("", b"", FORM, 400, "does not end with its boundary"),
        ("", b"--x-1\r\nno headers\r\n--x-1--\r\n", FORM, 400, "without an empty line"),
        ("", form(file_of()), "multipart/form-data", 400, "without a boundary"),
        ("?top_k=0", file_of(), "image/png", 400, "top_k is '0'"),
        ("?top_k=two", file_of(), "image/png", 400, "top_k is 'two'"),
        ("", b"\x89PNG" + b"\0" * bodies.PICTURE_BYTES, "image/png", 413, "over the limit"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_what_is_no_picture_is_the_clients_error(shown: Running, query: str, body: bytes, kind: str, status: int, message: str) -> None:
    answer = shown.ask("POST", f"/predict{query}", body, Content_Type=kind)
    assert answer.status == status, answer.body
    assert message in answer.json["error"]


def test_a_file_with_the_boundary_almost_in_it_is_whole() -> None:
    file = b"\r\n--x-\r\n\r\n--x\0\r\n-x-1\r\n"
    assert uploads.picture_in(form(file), FORM) == file
    with_text = b'--x-1\r\nContent-Disposition: form-data; name="a"\r\n\r\ntext\r\n' + form(file)
    assert uploads.picture_in(b"preamble\r\n" + with_text + b"epilogue", FORM) == file


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [b"--x-1", b"--", b"\r\n", b"Content-Disposition: form-data; ", b"filename*=u''%ff", b"filename=", b'"', b"\xff", b":"]
        )
    ),
    st.lists(st.sampled_from(["multipart/form-data", ";", "boundary=", "boundary*=", "''", "x-1", '"', "é", "=", "image/"])),
)
def test_no_form_whatever_is_an_error_of_the_server(body: list[bytes], kind: list[str]) -> None:
    for content_type in ("".join(kind), FORM):
        with contextlib.suppress(Refusal):
            assert isinstance(uploads.picture_in(b"".join(body), content_type), bytes)


def test_a_picture_of_too_many_pixels_is_refused_before_they_are_decoded() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    # Only a head: whoever decoded it would find that there are no pixels.
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8000, 6251, 8, 2, 0, 0, 0))
    with pytest.raises(Refusal, match="has 50008000 pixels; the limit is 50000000") as refused:
        uploads.decode(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IEND", b""))
    assert refused.value.status == 413
    bomb = chunk(b"IHDR", struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0))
    with pytest.raises(CorruptArtifact, match="decompression bomb"):
        uploads.decode(b"\x89PNG\r\n\x1a\n" + bomb + chunk(b"IEND", b""))


def test_logits_that_are_not_finite_are_the_servers_error() -> None:
    def guess(logits: Any, top_k: int) -> Any:
        raise PrecisionError("the logits are not finite", remedy="accel verify")

    engine = ScriptedEngine(lambda given: np.full((1, 3), np.nan, np.float32), (TensorSpec("image", ("batch", 12, 20, 3), "uint8"),))
    with serving(Served("net", engine, LABELS, guess), slots=1) as running:  # type: ignore[arg-type]
        answer = running.ask("POST", "/predict", file_of(), Content_Type="image/png")
    assert (answer.status, answer.json) == (500, {"error": "the logits are not finite; accel verify"})


def test_a_model_without_preprocessing_says_why_it_takes_no_pictures(tiny_server: Running) -> None:
    answer = tiny_server.ask("POST", "/predict", file_of(), Content_Type="image/png")
    assert answer.status == 404
    assert "does not say how a picture becomes its input" in answer.json["error"]
