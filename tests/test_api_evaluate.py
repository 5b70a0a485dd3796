"""`accel evaluate`: what is counted, what is drawn, what is refused."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from accel.checkpoint import write_checkpoint  # noqa: E402
from accel.engines import trust  # noqa: E402
from accel.trainers.evaluate import confusion  # noqa: E402
from accel.types import Checkpoint, TensorSpec  # noqa: E402

Cli = Callable[..., Any]
NAMES = ("ant", "bee", "cat")


def brightest(num_classes: int = 3) -> Any:
    """Answers with the brightest channel; its one weight is the identity."""
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, num_classes, bias=False))


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # As if it were one of accel's own, which need nobody's word.
    monkeypatch.setattr(trust, "_OUR_FACTORY", re.compile("test_api_evaluate:brightest"))
    described = Checkpoint(
        path=tmp_path / "runs" / "brightest",
        sha256="",
        name="brightest",
        factory="test_api_evaluate:brightest",
        num_classes=3,
        input=TensorSpec("input", ("batch", 3, 4, 4), "float32", "NCHW"),
        output=TensorSpec("logits", ("batch", 3), "float32", "NC"),
        preprocess={"mean": [0.5] * 3, "std": [0.25] * 3, "height": 4, "width": 4},
        labels=NAMES,
    )
    return write_checkpoint(described, {"2.weight": np.eye(3, dtype=np.float32)}).path


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Seven images: 3 ants of which one looks like a bee, 2 bees, 2 cats that look like ants."""
    looks, labels = np.array([0, 0, 1, 1, 1, 0, 0]), np.array([0, 0, 0, 1, 1, 2, 2])
    images = np.full((7, 4, 4, 3), 10, np.uint8)
    images[np.arange(7), :, :, looks] = 200
    np.savez(tmp_path / "seven.npz", images=images, labels=labels)
    return "npz:seven.npz"


def test_the_matrix_counts_every_image_in_its_row(accel_cli: Cli, checkpoint: Path, data: str) -> None:
    ran = accel_cli("evaluate", checkpoint, "--data", data, "--device", "cpu", "--format", "json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["confusion"] == [[2, 1, 0], [0, 2, 0], [2, 0, 0]]
    assert (found["images"], found["model"], found["device"]) == (7, "brightest", "cpu")
    assert found["top1"] == pytest.approx(100 * 4 / 7)
    assert [(row["class"], row["images"], row["right"], row["mistaken_for"]) for row in found["classes"]] == [
        ("ant", 3, 2, "bee"),
        ("bee", 2, 2, None),
        ("cat", 2, 0, "ant"),
    ]
    assert [row["top1"] for row in found["classes"]] == [pytest.approx(200 / 3), 100.0, 0.0]


def test_the_table_has_a_row_a_class_and_the_whole_on_stderr(accel_cli: Cli, checkpoint: Path, data: str) -> None:
    ran = accel_cli("evaluate", checkpoint, "--data", data, "--device", "cpu", "--export-csv", "rows.csv")
    assert ran.code == 0, ran.err
    assert [line.split()[0] for line in ran.out.splitlines()] == ["class", "─" * len(ran.out.splitlines()[1]), "ant", "bee", "cat"]
    assert "top-1 57.14 %" in ran.err
    assert [row["right"] for row in csv.DictReader(Path("rows.csv").read_text().splitlines())] == ["2", "2", "0"]


@pytest.mark.parametrize("with_log", [False, True])
def test_the_plot_is_written_with_the_curves_if_there_is_a_log(accel_cli: Cli, checkpoint: Path, data: str, with_log: bool) -> None:
    pytest.importorskip("matplotlib")
    if with_log:
        rows = "epoch,train_loss,train_top1,val_top1,test_top1\n1,2.5,20,,\n2,1.5,40,,57.1\n"
        (checkpoint / "log.csv").write_text(rows)
    ran = accel_cli("evaluate", checkpoint, "--data", data, "--device", "cpu", "--plot", "figure.svg")
    assert ran.code == 0, ran.err
    text = Path("figure.svg").read_text()
    assert text.startswith("<?xml")
    assert text.count("<!-- taken for -->") == 1
    assert text.count("<!-- top-1 in % -->") == with_log


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nowhere/at-all",), 2, "there is nothing at nowhere/at-all"),
        (("runs/brightest",), 2, "names no dataset of its own"),
        (("runs/brightest", "--data", "npz:absent.npz"), 4, "absent.npz"),
        (("runs/brightest", "--data", "npz:seven.npz", "--plot", "figure.gif"), 2, "no kind of plot"),
        (("runs/brightest", "--data", "npz:seven.npz", "--device", "cuda:99"), 4, "cuda:99"),
        (("runs/brightest", "--data", "npz:wrong.npz", "--device", "cpu"), 2, "labels from 0 to 5"),
    ],
)
def test_what_cannot_be_evaluated_ends_with_the_code_of_its_kind(
    accel_cli: Cli, checkpoint: Path, data: str, arguments: tuple[str, ...], code: int, message: str
) -> None:
    np.savez("wrong.npz", images=np.zeros((2, 4, 4, 3), np.uint8), labels=np.array([0, 5]))
    ran = accel_cli("evaluate", *arguments)
    assert ran.code == code
    assert message in ran.err


def test_code_that_a_checkpoint_names_is_run_only_for_who_says_so(
    accel_cli: Cli, checkpoint: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = checkpoint / "checkpoint.json"
    named = json.loads(file.read_text())
    called: list[object] = []
    monkeypatch.setattr("test_api_evaluate.seven", lambda: called.append(1) or [], raising=False)
    # Its test data alone is code: whoever types other data needs none of it.
    file.write_text(json.dumps({**named, "dataset": "test_api_evaluate:seven"}))
    ran = accel_cli("evaluate", checkpoint, "--device", "cpu")
    assert (ran.code, called) == (5, [])
    assert "its test data is code, test_api_evaluate:seven" in ran.err
    assert accel_cli("evaluate", checkpoint, "--device", "cpu", "--data", data).code == 0
    # Its factory is code.
    monkeypatch.setattr(trust, "_OUR_FACTORY", re.compile("accel.*"))
    monkeypatch.setattr("test_api_evaluate.brightest", lambda real=brightest, **args: called.append(2) or real(**args))
    ran = accel_cli("evaluate", checkpoint, "--device", "cpu", "--data", data)
    assert (ran.code, called) == (5, [])
    assert "its model is built by calling test_api_evaluate:brightest" in ran.err
    assert "--trusted" in ran.err
    ran = accel_cli("evaluate", checkpoint, "--device", "cpu", "--data", data, "--trusted")
    assert (ran.code, called) == (0, [2]), ran.err


def test_an_edited_checkpoint_is_corrupt(accel_cli: Cli, checkpoint: Path, data: str) -> None:
    (checkpoint / "weights.safetensors").write_bytes(b"edited")
    assert accel_cli("evaluate", checkpoint, "--data", data).code == 5


def test_batches_are_counted_together() -> None:
    module = brightest().eval()
    with torch.no_grad():
        module[2].weight.copy_(torch.eye(3))
    images = np.eye(3, dtype=np.float32)[[0, 1, 2, 2, 0]][:, :, None, None]
    matrix = confusion(module, [images[:2], images[2:]], np.array([0, 1, 2, 1, 1]), 3)
    assert matrix.tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 1]]
