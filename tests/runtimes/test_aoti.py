"""How an AOTInductor package is opened and called, with torch's loader replaced by one of the test's own."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_net import INPUTS, OUTPUTS, some_images

from accel import device, runtimes
from accel.errors import AccelError, CorruptArtifact
from accel.types import EngineSource, Variant

torch = pytest.importorskip("torch")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the loader was asked for; the package answers with the sums of its inputs' channels."""
    asked: list[Any] = []

    def load(path: str, model_name: str, run_single_threaded: bool, num_runners: int, device_index: int) -> Any:
        asked.append((Path(path).name, model_name, run_single_threaded, num_runners, device_index))

        def boxed_run(given: list[Any]) -> list[Any]:
            (images,) = given
            given.clear()  # as the real one does
            return [images.sum((2, 3)).repeat(1, 2)[:, :5]]

        return types.SimpleNamespace(boxed_run=boxed_run)

    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", load)
    return asked


def make(**changes: Any) -> Any:
    source = {"variant": Variant("aoti", "fp32"), "device": "cpu", "inputs": INPUTS, "outputs": OUTPUTS, "file": Path("model.pt2")}
    return runtimes.create(EngineSource(**{**source, **changes}))


def test_it_is_loaded_for_one_thread_and_called_without_torchs_wrapper(loaded: list[Any]) -> None:
    runtime = make()
    runtime.open(None)
    images = some_images()
    for _ in range(2):
        logits = device.Staging(runtime.home, None).run(runtime, {"images": images})["logits"]
        np.testing.assert_allclose(logits, np.tile(images.sum((2, 3)), 2)[:, :5], rtol=1e-5)
    assert loaded == [("model.pt2", "model", True, 1, -1)]
    assert runtime.facts["precision"] == "fp32"
    runtime.close()


def test_a_file_that_torch_cannot_load_is_corrupt(loaded: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*given: Any, **named: Any) -> Any:
        raise RuntimeError("not a zip\nfile")

    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", load)
    with pytest.raises(CorruptArtifact, match=r"cannot load model\.pt2: not a zip\n.*--to aoti --force"):
        make().open(None)


def test_without_a_file_the_error_says_how_to_make_one(loaded: list[Any]) -> None:
    with pytest.raises(AccelError, match=r"runtimes\.engine_source"):
        make(file=None).open(None)


def test_a_real_file_of_garbage_is_corrupt(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.pt2").write_bytes(b"garbage" * 100)
    with pytest.raises(CorruptArtifact, match="--to aoti --force"):
        make(file=tmp_path / "model.pt2").open(None)
