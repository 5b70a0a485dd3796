"""Training on a folder of the user's own images, from any size to a checkpoint that exports."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pillow = pytest.importorskip("PIL.Image")

from accel import api, trainers  # noqa: E402
from accel.checkpoint import read_checkpoint  # noqa: E402
from accel.errors import AccelError, ConfigError, CorruptArtifact, DatasetMissing, UsageError  # noqa: E402
from accel.trainers import train  # noqa: E402

SIDE = 24
SIZES = ((40, 20), (20, 60), (SIDE, SIDE), (90, 70))
"""Width and height of the pictures, in turn."""

CHANGES = {"loader": "workers", "image_size": SIDE, "batch_size": 8, "epochs": 2, "cutout": 0}


def draw(folder: Path, classes: dict[str, int], count: int, sizes: tuple[tuple[int, int], ...] = SIZES) -> Path:
    """`count` noisy pictures a class below `folder`, each class of a brightness of its own."""
    generator = np.random.default_rng(count)
    for name, brightness in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            width, height = sizes[number % len(sizes)]
            pixels = brightness + generator.integers(0, 40, (height, width, 3))
            pillow.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two sub-folders: train of three classes and val of two of these."""
    draw(tmp_path / "photos" / "train", {"bright": 200, "dark": 10, "grey": 100}, 12)
    draw(tmp_path / "photos" / "val", {"dark": 10, "grey": 100}, 5)
    return tmp_path / "photos"


def changes(folder: Path, **more) -> dict:
    return {"dataset": f"imagefolder:{folder}", **CHANGES, **more}


def test_a_folder_is_learned_from_and_its_checkpoint_exports_and_is_evaluated_on_val(tiny, tmp_path, photos):
    pytest.importorskip("onnx")
    checkpoint = train("tiny", recipe=tiny, overrides=changes(photos, epochs=12), out=tmp_path / "mine", device="cpu")
    assert read_checkpoint(tmp_path / "mine") == checkpoint
    assert (checkpoint.num_classes, checkpoint.labels) == (3, ("bright", "dark", "grey"))
    assert checkpoint.input.shape == ("batch", 3, SIDE, SIDE)
    assert checkpoint.output.shape == ("batch", 3)
    assert (checkpoint.preprocess["resize"], checkpoint.preprocess["height"], checkpoint.preprocess["width"]) == ("letterbox", SIDE, SIDE)
    assert checkpoint.top1 >= 50
    evaluated = api.evaluate(checkpoint.path, device="cpu")
    assert evaluated.data == f"imagefolder:{photos / 'val'}"
    assert evaluated.confusion.sum(axis=1).tolist() == [0, 5, 5]
    assert evaluated.top1 == checkpoint.top1

    (exported,) = api.export(str(checkpoint.path), "onnx", out=tmp_path / "engines", device="cpu")
    assert exported.entry.parity["status"] == "passed"
    from accel.engines import Bundle

    golden = Bundle.open(exported.bundle).golden()
    assert golden.images.shape == (36, SIDE, SIDE, 3)  # the classes have 12 pictures each, fewer than their share of 64
    assert golden.inputs["input"].shape == (44, 3, SIDE, SIDE)
    facts = json.loads((checkpoint.path / "run.json").read_text())
    assert len(facts["dataset_sha256"]) == 64


FIXED = {"alexnet": 32, "airbench94": 32}
"""Models that take no other side; the others get one that is no multiple of their strides."""


@pytest.mark.parametrize("model", sorted(trainers.MODELS))
def test_every_model_learns_the_classes_of_a_folder_at_its_size(tmp_path, photos, model):
    side = FIXED.get(model, 45)
    asked = {"dataset": f"imagefolder:{photos}", "loader": "workers", "image_size": side, "batch_size": 8, "epochs": 1, "limit": 16}
    checkpoint = train(model, overrides=asked, out=tmp_path / "mine", device="cpu")
    assert (checkpoint.num_classes, checkpoint.labels) == (3, ("bright", "dark", "grey"))
    assert checkpoint.input.shape == ("batch", 3, side, side)
    assert checkpoint.top1 in {100 * right / 10 for right in range(11)}  # of ten pictures


def test_pictures_of_the_right_size_may_lie_on_the_device_and_give_the_same_run(tiny, tmp_path):
    draw(tmp_path / "exact" / "train", {"a": 10, "b": 200}, 12, ((SIDE, SIDE),))
    one = train("tiny", recipe=tiny, overrides=changes(tmp_path / "exact"), out=tmp_path / "one", device="cpu")
    two = train("tiny", recipe=tiny, overrides=changes(tmp_path / "exact", loader="gpu"), out=tmp_path / "two", device="cpu")
    assert one.sha256 == two.sha256
    assert one.top1 is None  # there is no val
    assert one.dataset == ""


def test_a_limit_takes_pictures_of_all_classes_and_a_split_holds_some_back(tiny, tmp_path, photos):
    checkpoint = train("tiny", recipe=tiny, overrides=changes(photos, limit=20, split="45k/5k"), out=tmp_path / "out", device="cpu")
    assert checkpoint.top1 is None  # the split leaves val alone
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert facts["val_top1"] in (0.0, 50.0, 100.0)  # of two pictures
    with np.load(tmp_path / "out" / "golden.npz") as file:
        assert np.bincount(file["labels"]).tolist() == [12, 12, 12]


def broken(photos: Path) -> None:
    (photos / "train" / "dark" / "3.png").write_bytes(b"\x89PNG not whole")


def without_train(photos: Path) -> None:
    (photos / "train").rename(photos / "learn")


def without_images(photos: Path) -> None:
    (photos / "train" / "empty").mkdir()


def unknown_class(photos: Path) -> None:
    (photos / "val" / "grey").rename(photos / "val" / "green")


def one_class(photos: Path) -> None:
    for name in ("bright", "grey"):
        (photos / "train" / name).rename(photos / name)


MENDED = [
    ({"image_size": 0}, None, ConfigError, "image_size", "--image-size N"),
    ({"loader": "gpu"}, None, ConfigError, r"takes images of 24×24 as they are, and .*0\.png has 40×20", "--loader workers"),
    ({"crop_padding": 24}, None, ConfigError, "crop_padding = 24 is no less than image_size = 24", "lower crop_padding"),
    ({"dataset": "imagefolder:/nowhere"}, None, DatasetMissing, "imagefolder:/nowhere is not a folder", "train/CLASS"),
    ({}, without_train, DatasetMissing, "photos has no folder train", "move the folders of the classes into"),
    ({}, without_images, UsageError, "has no images in empty", "add some"),
    ({}, broken, CorruptArtifact, r"dark/3\.png cannot be decoded", "replace or remove the file"),
    ({}, unknown_class, UsageError, "has the classes green, which", "the same folders"),
    ({}, one_class, UsageError, "has the one class dark", "another|other class"),
    ({"model": "alexnet"}, None, ConfigError, "alexnet does not take images of 24×24", "--image-size"),
]


@pytest.mark.parametrize(("changed", "damage", "error", "message", "remedy"), MENDED, ids=[row[3][:30] for row in MENDED])
def test_an_error_names_what_is_wrong_and_what_mends_it(tiny, tmp_path, photos, changed, damage, error, message, remedy):
    if damage is not None:
        damage(photos)
    name = changed.get("model", "tiny")
    overrides = {**changes(photos), **{key: value for key, value in changed.items() if key != "model"}}
    with pytest.raises(error, match=message) as caught:
        train(name, recipe=tiny, overrides=overrides, out=tmp_path / "out", device="cpu")
    assert isinstance(caught.value, AccelError)
    assert re.search(remedy, caught.value.remedy)
    assert not (tmp_path / "out" / "checkpoint.json").exists()


def test_a_dataset_of_the_cache_has_its_own_size(tiny, tmp_path):
    with pytest.raises(ConfigError, match="image_size = 64 was asked for; the images of cifar10 have 32×32"):
        train("tiny", recipe=tiny, overrides={"image_size": 64}, out=tmp_path, device="cpu")
    train("tiny", recipe=tiny, overrides={"image_size": 32}, out=tmp_path, device="cpu")


def test_the_command_takes_a_folder(accel_cli, tiny, tmp_path, photos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainers, "default_recipe", lambda name: tiny)
    options = ["--dataset", "imagefolder:photos", "--loader", "workers", "--image-size", SIDE, "--batch-size", 8, "--epochs", 1]
    ran = accel_cli("train", "tiny", *options, "--out", "mine", "--device", "cpu")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("mine (top-1 ")
    assert read_checkpoint(tmp_path / "mine").dataset == f"imagefolder:{photos / 'val'}"
