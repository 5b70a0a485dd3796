"""benchmarks/pack_weights.py: weights as the repository keeps large ones."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from accel import packed
from accel.checkpoint import read_checkpoint, write_checkpoint
from accel.types import Checkpoint, TensorSpec

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "pack_weights.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pack_weights", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(path: Path) -> Checkpoint:
    spec = TensorSpec("x", ("batch", 4))
    draft = Checkpoint(path=path, sha256="", name="net", factory="nets:build", num_classes=4, input=spec, output=spec)
    return write_checkpoint(draft, {"fc.weight": (np.random.default_rng(5).standard_normal((64, 999)) / 30).astype(np.float16)})


def test_packed_weights_are_smaller_and_unpack_to_the_same_and_to_the_same_bytes_each_time(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "cache"))
    one, other = written(tmp_path / "one"), written(tmp_path / "other")
    content = one.weights.read_bytes()
    assert script.main([str(one.path), str(other.path)]) == 0
    assert {path.name for path in one.path.iterdir()} == {"checkpoint.json", packed.PACKED}
    data = (one.path / packed.PACKED).read_bytes()
    assert data == (other.path / packed.PACKED).read_bytes()
    assert len(data) < 0.95 * len(content)
    assert f"{len(data)} bytes, " in capsys.readouterr().out
    found = read_checkpoint(packed.unpacked(one.path))
    assert found.sha256 == one.sha256
    assert found.weights.read_bytes() == content


def test_nothing_to_pack_and_weights_of_another_checkpoint_are_refused(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([str(tmp_path)]) == 2
    assert "has no weights.safetensors to pack" in capsys.readouterr().err
    checkpoint = written(tmp_path / "net")
    checkpoint.weights.write_bytes(b"edited")
    assert script.main([str(checkpoint.path)]) == 5
    assert {path.name for path in checkpoint.path.iterdir()} == {"checkpoint.json", packed.WEIGHTS}
