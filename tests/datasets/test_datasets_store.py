"""What `datasets.load` and `datasets.status` say about the cache."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import pytest

from accel import datasets
from accel.datasets import arrays, store
from accel.errors import CorruptArtifact, DatasetMissing, UnknownName


@pytest.fixture
def cached(world):
    datasets.fetch("cifar10", from_path=world.npz("cifar10"))
    return world


def overwrite(path, array) -> None:
    """Write `array` in place with another mtime, as an editor would."""
    np.save(path, array)
    later = path.stat().st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(later, later))


def test_images_are_a_read_only_memmap_and_the_hash_covers_images_then_labels(cached):
    test = datasets.load("cifar10", "test")
    assert isinstance(test.images, np.memmap)
    assert not test.images.flags.writeable
    expected = cached.splits["cifar10"]["test"]
    assert test.sha256 == hashlib.sha256(expected.images.tobytes() + expected.labels.tobytes()).hexdigest()
    assert test.classes[:2] == ("airplane", "automobile")


def test_what_was_not_fetched_is_missing_with_the_command(world):
    with pytest.raises(DatasetMissing) as caught:
        datasets.load("cifar10", "test")
    assert caught.value.remedy.startswith("accel data fetch cifar10")


def test_offline_the_missing_split_is_named_with_its_path_and_hash(world, monkeypatch):
    monkeypatch.setenv("ACCEL_OFFLINE", "1")
    with pytest.raises(DatasetMissing) as caught:
        datasets.load("cifar10", "test")
    assert str(world.cache / "datasets" / "cifar10" / "test_images.npy") in caught.value.message
    assert world.info("cifar10").splits["test"].images_sha256 in caught.value.message
    assert "train_images" not in caught.value.message


def test_an_unknown_split_is_a_usage_error(cached):
    with pytest.raises(UnknownName, match="val"):
        datasets.load("cifar10", "val")


def test_an_edited_file_is_noticed_even_after_it_was_loaded_once(cached):
    path = store.folder_of("cifar10") / "test_images.npy"
    images = np.array(datasets.load("cifar10", "test").images)
    images[0] ^= 255
    overwrite(path, images)
    with pytest.raises(CorruptArtifact, match="test images") as caught:
        datasets.load("cifar10", "test")
    assert caught.value.remedy.startswith("accel data fetch cifar10")


def test_an_edited_cifar100_file_is_held_against_the_recorded_hash(world):
    folder = datasets.fetch("cifar100", from_path=world.archive("cifar100"))
    datasets.load("cifar100", "test")
    overwrite(folder / "test_labels.npy", (world.splits["cifar100"]["test"].labels + 1) % 100)
    with pytest.raises(CorruptArtifact, match="test labels"):
        datasets.load("cifar100", "test")


def test_a_file_is_hashed_once_per_process(cached, monkeypatch):
    datasets.load("cifar10", "test")
    monkeypatch.setattr(arrays.Hashes, "of", lambda arrays: pytest.fail("hashed again"))
    datasets.load("cifar10", "test")


@pytest.mark.parametrize("keep", [0, 100, 3000])
def test_a_truncated_file_is_corrupt(cached, keep):
    path = store.folder_of("cifar10") / "test_images.npy"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptArtifact):
        datasets.load("cifar10", "test")


def test_columns_first_order_is_corrupt_and_not_silently_hashed_otherwise(cached):
    overwrite(store.folder_of("cifar10") / "test_images.npy", np.asfortranarray(cached.splits["cifar10"]["test"].images))
    with pytest.raises(CorruptArtifact, match="in C order"):
        datasets.load("cifar10", "test")


def test_an_array_of_python_objects_is_never_unpickled(cached):
    np.save(store.folder_of("cifar10") / "test_labels.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(CorruptArtifact):
        datasets.load("cifar10", "test")


@pytest.mark.parametrize("text", ["", "[]", '{"schema_version": 1}', '{"schema_version": 2, "name": "cifar10", "splits": {}}'])
def test_a_record_that_is_not_ours_is_corrupt(cached, text):
    (store.folder_of("cifar10") / store.RECORD).write_text(text)
    with pytest.raises(CorruptArtifact, match=r"dataset\.json"):
        datasets.load("cifar10", "test")


def test_the_record_says_where_the_images_came_from(cached):
    record = json.loads((store.folder_of("cifar10") / store.RECORD).read_text())
    assert record["source"] == str(cached.root / "cifar10-npz")


def test_status_lists_every_split_present_or_not(cached):
    found = {(row.name, row.split): row for row in datasets.status()}
    assert list(found) == [("cifar10", "train"), ("cifar10", "test"), ("cifar100", "train"), ("cifar100", "test")]
    assert [row.present for row in found.values()] == [True, True, False, False]
    assert found["cifar10", "train"].images == 15
    assert found["cifar10", "train"].sha256 == cached.info("cifar10").splits["train"].images_sha256
    assert found["cifar100", "test"].sha256 is None


def test_status_knows_a_truncated_file_by_its_size(cached):
    path = store.folder_of("cifar10") / "train_images.npy"
    path.write_bytes(path.read_bytes()[:1000])
    assert [row.present for row in datasets.status()][:2] == [False, True]
