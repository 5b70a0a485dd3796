"""A bundle with an engine of every kind that Triton has a backend for, and a pretended plan; a reader of Triton's own schema."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nets
import pytest

from accel.engines import Bundle, add
from accel.files import sha256_file


@pytest.fixture(scope="session")
def served_exported(tiny_exported: Path, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny.accel` with a dynamic ONNX engine, and with bytes in the place of what a compiler would take half a minute for."""
    from accel.api import export

    folder = tmp_path_factory.mktemp("served")
    bundle = Path(shutil.copytree(tiny_exported, folder / "tiny.accel"))
    size = f"1x3x{nets.SIZE}x{nets.SIZE}"
    export("nets:build", "onnx", weights=tiny_weights, input=size, name="tiny", out=folder, device="cpu", batch="dynamic")
    like = Bundle.open(bundle).entry("onnx", "fp32")
    _pretend(bundle, folder, like, "aoti", "model.pt2", {"device": "cpu", "torch_minor": "2.15"})
    dynamic = Bundle.open(bundle).entry("onnx", "fp32", batch=8)
    shapes = [[rows, 3, nets.SIZE, nets.SIZE] for rows in (1, 4, 16)]
    built = {"tensorrt": "10.3.0", "profile": json.dumps({"input": shapes})}
    _pretend(bundle, folder, dynamic, "tensorrt", "model.plan", {"gpu": "NVIDIA H200"}, built)
    return bundle


def _pretend(bundle: Path, folder: Path, like: Any, format: str, file: str, target: dict[str, str], toolchain: Any = None) -> None:
    """Add an engine of `format` whose file holds no engine: what packages it copies it and looks no further."""
    made = folder / format
    made.mkdir()
    (made / file).write_bytes(f"no {format} engine".encode())
    name = like.name.replace("onnx", format)
    files = {f"{name}/{file}": sha256_file(made / file)}
    parity = {"status": "not run", "reason": "no GPU"}
    add(
        bundle,
        dataclasses.replace(like, name=name, format=format, files=files, target=target, toolchain=toolchain or {}, parity=parity),
        made,
    )


@pytest.fixture
def served(served_exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy at `engines/tiny.accel` of a working folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(served_exported, tmp_path / "engines" / "tiny.accel"))


@pytest.fixture(scope="session")
def read_config() -> Callable[[Path], Any]:
    """Reads a `config.pbtxt` as Triton's own message ModelConfig, from the schema in its client's distribution."""
    text_format = pytest.importorskip("google.protobuf.text_format")
    client = importlib.util.find_spec("tritonclient")
    if client is None or client.origin is None:
        pytest.skip("tritonclient, which brings Triton's schema, is not installed")
    # By its path: the package around it imports gRPC, which nothing here needs.
    spec = importlib.util.spec_from_file_location("model_config_pb2", Path(client.origin).parent / "grpc" / "model_config_pb2.py")
    assert spec is not None
    assert spec.loader is not None
    schema = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schema)
    return lambda path: text_format.Parse(path.read_bytes(), schema.ModelConfig())
