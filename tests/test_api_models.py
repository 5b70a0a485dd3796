"""From what is typed for MODEL to a checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel.api import models
from accel.checkpoint import write_checkpoint
from accel.errors import DatasetMissing, IncompatibleArtifact, MissingError, UnknownName, UsageError
from accel.preprocess import CIFAR10
from accel.types import Checkpoint, TensorSpec


def checkpoint_in(folder: Path, **changes: object) -> Checkpoint:
    values = {
        "path": folder,
        "sha256": "",
        "name": "mine",
        "factory": "nets:build",
        "num_classes": 10,
        "input": TensorSpec("input", ("batch", 3, 32, 32), "float32", "NCHW"),
        "output": TensorSpec("logits", ("batch", 10), "float32", "NC"),
        **changes,
    }
    return write_checkpoint(Checkpoint(**values), {"weight": np.zeros((2, 2), np.float32)})  # type: ignore[arg-type]


@pytest.mark.parametrize("spelled", ["run", "run/weights.safetensors"])
def test_a_checkpoint_is_named_by_its_folder_or_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str) -> None:
    monkeypatch.chdir(tmp_path)
    written = checkpoint_in(tmp_path / "run")
    assert models.find(spelled).sha256 == written.sha256


def test_a_bundle_gives_its_own_checkpoint(tiny: Path) -> None:
    assert models.find(str(tiny)).factory == "nets:build"


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="no model called 'resnet81'") as caught:
        models.resolve("resnet81", tmp_path)
    assert "resnet18" in str(caught.value)


@pytest.mark.parametrize("spelled", ["runs/nothing", "nothing.safetensors"])
def test_a_path_that_is_not_there_is_said_to_be_a_path(spelled: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"nothing at {spelled}"):
        models.resolve(spelled, tmp_path)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no checkpoint\.json"):
        models.resolve(str(tmp_path), tmp_path)


def test_a_name_replaces_the_models_own(tmp_path: Path) -> None:
    checkpoint_in(tmp_path / "run")
    assert models.resolve(str(tmp_path / "run"), tmp_path, name="theirs").name == "theirs"


def test_weights_go_with_a_factory_only(tmp_path: Path) -> None:
    checkpoint_in(tmp_path / "run")
    with pytest.raises(UsageError, match="has its own weights"):
        models.resolve(str(tmp_path / "run"), tmp_path, weights=tmp_path / "w.safetensors")


def test_a_factory_becomes_a_checkpoint_with_the_output_that_it_gives(tiny_weights: Path, tmp_path: Path) -> None:
    found = models.resolve("nets:build", tmp_path, weights=tiny_weights, shape="1x3x8x8")
    assert found.name == "nets"
    assert found.input.shape == ("batch", 3, 8, 8)
    assert found.output.shape == ("batch", 10)
    assert found.num_classes == 10
    assert found.dataset == ""


@pytest.mark.parametrize(("factory", "name"), [("nets:build", "nets"), ("pkg.nets:resnet", "resnet")])
def test_a_factory_names_its_bundle(factory: str, name: str) -> None:
    assert models.is_factory(factory)
    assert models._factory_name(factory) == name


@pytest.mark.parametrize(
    ("shape", "said"), [("3", "no input shape"), ("1x3xHxW", "no input shape"), ("1x0x8", "no input shape"), ("8x3x8x8", "--batch 8")]
)
def test_an_input_that_is_no_shape_is_refused(shape: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        models.parse_shape(shape)
    assert said in str(caught.value)


def test_a_factory_without_weights_or_input_is_told_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--weights"):
        models.resolve("nets:build", tmp_path)


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"x")
    with pytest.raises(UsageError, match="reads no pickle"):
        models.resolve("nets:build", tmp_path, weights=tmp_path / "w.pt", shape="1x3x8x8")


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"w\.safetensors is not there"):
        models.resolve("nets:build", tmp_path, weights=tmp_path / "w.safetensors", shape="1x3x8x8")


def test_a_factory_that_cannot_be_imported_is_missing(tiny_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no_such_package:build"):
        models.resolve("no_such_package:build", tmp_path, weights=tiny_weights, shape="1x3x8x8")


def test_weights_of_another_network_do_not_fit(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    pytest.importorskip("torch")
    save_file({"weight": np.zeros((2, 2), np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(IncompatibleArtifact):
        models.resolve("nets:build", tmp_path, weights=tmp_path / "w.safetensors", shape="1x3x8x8")


def test_an_input_that_the_module_does_not_take_is_a_usage_error(tiny_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not take an input of 1x4x8x8(.|\n)*one float32 tensor; .* as an ONNX file"):
        models.resolve("nets:build", tmp_path, weights=tiny_weights, shape="1x4x8x8")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def build(): raise KeyError('depth')", r"broken:build failed: KeyError: 'depth' \(broken\.py, line 1\)"),
        ("build = 1 / 0", "factory broken:build cannot be imported: ZeroDivisionError"),
        ("def build(: pass", "factory broken:build cannot be imported: SyntaxError"),
        (
            "import nets\nimport torch\nclass Two(torch.nn.Sequential):\n    def forward(self, x, y): return x\n"
            "def build(): return Two(*nets.build())",
            r"does not take one float32 input of 1x3x8x8: TypeError: .*'y'(.|\n)*wrap the module",
        ),
    ],
)
def test_a_users_code_that_fails_is_one_sentence(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    (tmp_path / "broken.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(UsageError, match=said):
        models.resolve("broken:build", tmp_path, weights=tiny_weights, shape="1x3x8x8")


def test_golden_samples_are_train_images_where_the_dataset_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((64, 32, 32, 3), np.uint8)
    monkeypatch.setattr(models.trainers, "golden_images", lambda dataset, folder: images)
    found, preprocess = models._golden_images(checkpoint_in(tmp_path, dataset="cifar10", preprocess=CIFAR10.to_dict()))
    assert found is images
    assert preprocess == CIFAR10


def test_golden_samples_are_noise_where_no_images_are_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(dataset: str, folder: Path) -> None:
        raise DatasetMissing(f"none of {dataset}")

    monkeypatch.setattr(models.trainers, "golden_images", absent)
    assert models._golden_images(checkpoint_in(tmp_path, dataset="cifar100", preprocess=CIFAR10.to_dict())) == (None, None)
    assert models._golden_images(checkpoint_in(tmp_path)) == (None, None)


MY_NET = """
import torch
def build():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 10))
"""


def test_a_model_in_the_working_folder_is_found_by_every_command_of_the_console_script(tmp_path: Path) -> None:
    """Which, unlike `python -m`, has no working folder on its path."""
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    (tmp_path / "my_net.py").write_text(MY_NET)
    names: dict[str, Any] = {"torch": torch}
    exec(MY_NET, names)
    safetensors.save_file(names["build"]().state_dict(), str(tmp_path / "my_net.safetensors"))
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "test.npz", images=draw.random((20, 3, 8, 8), np.float32), labels=draw.integers(0, 10, 20))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "ACCEL_CACHE_DIR": str(tmp_path / "cache")}

    for line in (
        "export my_net:build --weights my_net.safetensors --input 1x3x8x8 --name my_net --to onnx",
        "verify my_net --variant eager:fp32 --data npz:test.npz --min-top1 0",
        "bench my_net --runtime eager:fp32 --data npz:test.npz --min-top1 0 --iterations 20 --warmup 1 --rounds 1",
    ):
        script = f"import sys; from accel.cli import main; sys.exit(main({line.split()!r} + ['--device', 'cpu']))"
        done = subprocess.run(
            [sys.executable, "-P", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
