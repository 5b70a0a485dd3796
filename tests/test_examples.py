"""Every example runs, as its docstring says, on a small bundle."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import accel
from accel import device
from accel.errors import AccelError

for _package in ("torch", "onnx", "onnxruntime"):
    pytest.importorskip(_package)
Image = pytest.importorskip("PIL.Image")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
COLOURS = {"red": (250, 10, 20), "green": (20, 240, 30), "blue": (10, 30, 220)}


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bundle(tiny: Path, rewritten: Callable[..., None]) -> Path:
    """The tiny bundle as one of pictures with named classes."""
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "height": 8, "width": 8}
    rewritten(tiny, preprocess=preprocess, labels=tuple(f"class {number}" for number in range(10)))
    return tiny


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, (name, colour) in enumerate(COLOURS.items()):
        Image.new("RGB", (20 + number, 10), colour).save(folder / f"{name}.png")
    return folder


def expected(bundle: Path, picture: Path) -> tuple[str, float]:
    """Its likeliest class and that one's probability, by accel.predict."""
    guess = accel.predict(bundle, picture, top_k=1, device="cpu").pictures[0].top[0]
    return guess.label, guess.probability


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_it_is_run(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert f"    python examples/{path.name} engines/" in text
    assert "    pip install 'accel-engines[ort" in text


@pytest.fixture
def service(bundle: Path) -> Iterator[str]:
    """The address of the FastAPI example, served by uvicorn on a port of its own."""
    pytest.importorskip("fastapi")
    uvicorn = pytest.importorskip("uvicorn")
    # Listening before the server runs: a client that comes first waits in the queue.
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(example("fastapi_service").create_app(bundle), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def test_the_service_classifies_a_picture_and_refuses_what_is_none(service: str, bundle: Path, pictures: Path) -> None:
    def post(body: bytes) -> Any:
        with urllib.request.urlopen(urllib.request.Request(f"{service}/classify", body), timeout=30) as reply:
            return json.load(reply)

    for name in COLOURS:
        found = post((pictures / f"{name}.png").read_bytes())
        label, probability = expected(bundle, pictures / f"{name}.png")
        assert (found[0]["label"], len(found)) == (label, 3)
        assert found[0]["probability"] == pytest.approx(probability, rel=1e-4)
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(b"no picture")
    assert caught.value.code == 400
    assert "cannot be decoded" in json.load(caught.value)["detail"]
    # What is too large is refused by its announced size, before any of it is sent.
    connection = http.client.HTTPConnection(service.removeprefix("http://"), timeout=30)
    connection.putrequest("POST", "/classify")
    connection.putheader("Content-Length", "10000001")
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
    with urllib.request.urlopen(f"{service}/health", timeout=30) as reply:
        assert json.load(reply) == {"engine": "onnxruntime:fp32", "device": "cpu"}


def test_the_batch_job_goes_on_where_it_was_stopped(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    job, output = example("batch_job"), tmp_path / "classes.jsonl"
    assert job.main(bundle, pictures, output) == 0
    lines = output.read_text().splitlines(keepends=True)
    found = {Path(line["file"]).stem: line["top"][0]["label"] for line in map(json.loads, lines)}
    assert found == {name: expected(bundle, pictures / f"{name}.png")[0] for name in COLOURS}
    output.write_text(lines[0] + lines[1][:20])  # as a crash leaves it
    assert job.main(bundle, pictures, output) == 0
    assert output.read_text().splitlines(keepends=True) == lines
    (pictures / "broken.png").write_bytes(b"no picture")
    assert job.main(bundle, pictures, output) == 5
    assert "cannot be decoded" in json.loads(output.read_text().splitlines()[-1])["error"]
    assert job.main(bundle, pictures, output) == 0


def test_the_batch_job_is_a_program(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "batch_job.py"), str(bundle), str(pictures), str(tmp_path / "classes.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "ACCEL_DEVICE": "cpu"})
    assert done.returncode == 0, done.stderr
    assert "3 pictures to do, 0 done before" in done.stderr
    assert len((tmp_path / "classes.jsonl").read_text().splitlines()) == 3


def test_the_video_loop_labels_each_frame_by_the_last_few(bundle: Path, pictures: Path) -> None:
    video = example("video_loop")
    red, blue = (np.full((12, 16, 3), COLOURS[name], np.uint8) for name in ("red", "blue"))
    seen = list(video.watch(bundle, [red] * 8 + [blue] * 8))
    assert [number for number, _, _ in seen] == list(range(16))
    assert all(taken > 0 for _, _, taken in seen)
    with accel.load(bundle, device="cpu") as engine:
        logits = np.concatenate([engine.predict([frame]) for frame in [red] * 8 + [blue] * 8])
    for number, label, _ in seen:
        assert label == f"class {logits[max(0, number - 7) : number + 1].mean(axis=0).argmax()}"


def test_the_video_loop_takes_a_folder_and_says_what_it_sees(bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("video_loop").main(bundle, pictures)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"frame 0: {expected(bundle, pictures / 'blue.png')[0]}"
    assert last.startswith("3 frames, median ")


@pytest.mark.gpu
def test_the_pycuda_caller_gets_the_golden_models_answer(bundle: Path) -> None:
    pytest.importorskip("pycuda", reason="PyCUDA is not installed: it is built from source")
    try:
        device.parse("cuda")
    except AccelError as error:
        pytest.skip(str(error))
    answer = example("pycuda_caller").main(bundle, "onnxruntime:fp32")
    with accel.load(bundle, device="cpu") as engine:
        np.testing.assert_allclose(answer, engine(np.zeros((1, 3, 8, 8), np.float32)), atol=1e-3)
