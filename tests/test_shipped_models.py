"""The weights that accel ships, through `accel verify` on the CPU, on CIFAR-10's real test images where the user's cache has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel import datasets, trainers
from accel.files import cache_dir

pytest.importorskip("torch")

USERS_CACHE = cache_dir()  # read while tests are collected: when they run, ACCEL_CACHE_DIR is their own
FEW, BATCH = 2000, 50
OF_FEW = {"resnet18": 95.50, "student_b": 95.10}
"""Model → top-1 on the first FEW test images, in percent. The two of CHECKED, which CI has the time for; the others with -m network."""
CHECKED = {"resnet18", "student_b"}


@pytest.fixture
def cifar10(monkeypatch: pytest.MonkeyPatch) -> datasets.Dataset:
    if not (USERS_CACHE / "datasets" / "cifar10" / "test_images.npy").is_file():
        pytest.skip(f"no CIFAR-10 in {USERS_CACHE}: accel data fetch cifar10")
    with monkeypatch.context() as patch:
        patch.setenv("ACCEL_CACHE_DIR", str(USERS_CACHE))
        return datasets.load("cifar10", "test")


def verified_top1(run: Callable[..., Any], tmp_path: Path, model: str, images: np.ndarray, labels: np.ndarray) -> float:
    np.savez(tmp_path / "some.npz", images=images, labels=labels)
    bundle = tmp_path / f"{model}.accel"
    assert run("export", model, "--to", "onnx", "--device", "cpu", "--out", tmp_path).code == 0
    asked = ["--data", f"npz:{tmp_path / 'some.npz'}", "--variant", "eager:fp32", "--batch", str(BATCH), "--device", "cpu"]
    ran = run("verify", bundle, *asked, "--min-top1", "85", "--format", "json")
    assert ran.code == 0, ran.err
    (row,) = json.loads(ran.out)
    assert row["n_test"] == len(labels)
    return float(row["top1"])


def test_both_that_are_checked_here_have_their_figure_once_they_are_shipped():
    assert CHECKED & set(trainers.with_weights()) == set(OF_FEW)


@pytest.mark.slow  # batches of a real network on a CPU
@pytest.mark.parametrize("model", OF_FEW)
def test_a_shipped_model_is_as_good_as_it_was_on_some_test_images(model, cifar10, accel_cli, tmp_path):
    found = verified_top1(accel_cli, tmp_path, model, np.asarray(cifar10.images[:FEW]), np.asarray(cifar10.labels[:FEW]))
    assert found == pytest.approx(OF_FEW[model], abs=0.051)  # one image is 0.05


@pytest.mark.network  # asked for by -m network, like the fetch that it needs: before weights are shipped
@pytest.mark.slow
@pytest.mark.parametrize("model", trainers.with_weights())
def test_a_shipped_model_has_the_top1_on_its_record_on_all_test_images(model, cifar10, accel_cli, tmp_path):
    recorded = json.loads((trainers.shipped(model) / "checkpoint.json").read_text())["top1"]
    found = verified_top1(accel_cli, tmp_path, model, np.asarray(cifar10.images), np.asarray(cifar10.labels))
    assert found == pytest.approx(recorded, abs=0.021)
