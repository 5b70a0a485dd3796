from pathlib import Path

import pytest
from engine_samples import checkpoint_of, entry_of, golden_of

from accel import engines
from accel.engines import Bundle


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def empty(tmp_path: Path) -> Bundle:
    """A bundle without engines."""
    return engines.create(tmp_path / "tiny.accel", checkpoint_of(tmp_path / "trained"), golden_of())


@pytest.fixture
def bundle(empty: Bundle, tmp_path: Path) -> Bundle:
    """A bundle with one engine, `onnx-fp32`, whose bytes are `old`."""
    return engines.add(empty.path, entry_of(tmp_path / "old", b"old"), tmp_path / "old")
