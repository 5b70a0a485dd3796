"""What every room's tests stand on: a cache of their own, and one tiny bundle that is really exported, once a session."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nets
import numpy as np
import pytest

TESTS = Path(__file__).resolve().parent


@pytest.fixture(scope="session", autouse=True)
def _own_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache or settings; workers find the modules beside this file."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("ACCEL_")]:
            patch.delenv(name)
        patch.setenv("ACCEL_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        inherited = os.environ.get("PYTHONPATH")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *([inherited] if inherited else [])]))
        patch.setenv("OMP_NUM_THREADS", "1")
        # A suite that was started in the background has inherited an ignored Ctrl-C, and so would every process that it starts.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield


@pytest.fixture(autouse=True)
def _runtimes_keep_their_order() -> Iterator[None]:
    """monkeypatch puts a deleted row back at the end of the table, and the order of the table is the order of `all`."""
    from accel.runtimes import RUNTIMES

    saved = dict(RUNTIMES)
    yield
    RUNTIMES.clear()
    RUNTIMES.update(saved)


class Ran(NamedTuple):
    """One command line in this process."""

    code: int
    out: str
    err: str


@pytest.fixture
def accel_cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """accel_cli("export", "--to", "onnx") → exit code, stdout, stderr."""
    from accel.cli import main

    def run(*arguments: str | Path) -> Ran:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Ran(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of `nets:build` as a user would save them."""
    pytest.importorskip("torch")
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(nets.trained().state_dict(), str(path))
    return path


@pytest.fixture(scope="session")
def tiny_exported(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny.accel`, exported on the CPU to every format in FP32 and FP16; tests must not change it (they take `tiny`)."""
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    from accel.api import export

    folder = tmp_path_factory.mktemp("engines")
    options = {"weights": tiny_weights, "input": f"1x3x{nets.SIZE}x{nets.SIZE}", "name": "tiny", "out": folder, "device": "cpu"}
    for precision in ("fp32", "fp16"):
        export("nets:build", ["onnx", "torchscript"], precision=precision, **options)
    return folder / "tiny.accel"


@pytest.fixture
def tiny(tiny_exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny bundle at `engines/tiny.accel` of a working folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(tiny_exported, tmp_path / "engines" / "tiny.accel"))


def rewrite(bundle: Path, **changes: Any) -> None:
    """Write accel.json anew with other fields, as whoever made the bundle might have."""
    from accel.engines import Bundle

    manifest = dataclasses.replace(Bundle.open(bundle).manifest, **changes)
    (bundle / "accel.json").write_text(manifest.to_text(), encoding="utf-8")


@pytest.fixture
def rewritten() -> Callable[..., None]:
    """rewritten(bundle, labels=…, preprocess=…)"""
    return rewrite


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`npz:FILE` of 60 inputs labelled by the network itself, five of them wrongly: top-1 of the reference is 91.67 %."""
    torch = pytest.importorskip("torch")
    inputs = np.random.default_rng(7).standard_normal((60, 3, nets.SIZE, nets.SIZE), dtype=np.float32)
    with torch.inference_mode():
        labels = nets.trained()(torch.from_numpy(inputs)).argmax(dim=1).numpy()
    labels[:5] = (labels[:5] + 1) % 10
    path = tmp_path_factory.mktemp("data") / "test.npz"
    np.savez(path, images=inputs, labels=labels.astype(np.int64))
    return f"npz:{path}"


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take it two seconds to make: to be copied to `runs/mlflow.db`."""
    pytest.importorskip("mlflow", reason="the extra track is not installed")
    from accel.tracking import MlflowTracker

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowTracker(f"sqlite:///{path}", experiment="other", artifacts=path.parent, tags={}).open()
    return path
