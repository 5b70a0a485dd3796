"""What `open_samples` makes of each kind of specification."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from accel import datasets
from accel.errors import CorruptArtifact, DatasetMissing, UsageError

RED, GREEN = (255, 0, 0), (0, 255, 0)


def save(path, color=RED, size=(4, 3), **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    save(folder / "dog" / "2.png")
    save(folder / "cat" / "10.png", GREEN)
    save(folder / "cat" / "deep" / "1.PNG", size=(8, 8))
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / ".git").mkdir()
    return folder


def write_module(tmp_path, monkeypatch, name: str, *lines: str) -> None:
    (tmp_path / f"{name}.py").write_text("\n".join(["import numpy as np", *lines]))
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_dataset_by_name_is_its_test_split(world, name):
    datasets.fetch(name, from_path=world.npz(name))
    samples = datasets.open_samples(name)
    expected = world.splits[name]["test"]
    assert (samples.name, len(samples)) == (name, 3)
    assert samples.labels.dtype == np.int64
    assert samples.labels.tolist() == expected.labels.tolist()
    assert np.array_equal(samples[2], expected.images[2])
    assert samples.sha256 == datasets.load(name, "test").sha256
    assert samples.classes == world.info(name).classes


def test_an_imagefolders_classes_are_its_folders_in_order_and_its_images_are_sorted(photos):
    samples = datasets.open_samples(f"imagefolder:{photos}")
    assert samples.classes == ("cat", "dog")
    assert samples.labels.tolist() == [0, 0, 1]
    assert [samples[index].shape for index in range(3)] == [(3, 4, 3), (8, 8, 3), (3, 4, 3)]
    assert samples[0][0, 0].tolist() == list(GREEN)


def test_an_imagefolders_hash_covers_pixels_names_and_classes_but_not_where_it_lies(photos):
    def digest(folder):
        return datasets.open_samples(f"imagefolder:{folder}").sha256

    seen = [digest(photos)]
    seen.append(digest(photos.rename(photos.with_name("moved"))))
    assert seen[0] == seen[1]
    photos = photos.with_name("moved")
    save(photos / "dog" / "2.png", GREEN)
    seen.append(digest(photos))
    (photos / "cat" / "10.png").rename(photos / "dog" / "10.png")
    seen.append(digest(photos))
    (photos / "dog").rename(photos / "wolf")
    seen.append(digest(photos))
    assert len(set(seen)) == 4


def test_a_photo_is_turned_upright_by_its_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    picture = Image.new("RGB", (6, 2), RED)
    picture.paste(GREEN, (0, 0, 3, 2))
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a" / "1.png", exif=exif)
    image = datasets.open_samples(f"imagefolder:{tmp_path}")[0]
    assert image.shape == (6, 2, 3)
    assert image[0, 0].tolist() == list(GREEN)
    assert image[5, 0].tolist() == list(RED)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_every_mode_of_image_becomes_rgb(tmp_path, mode):
    (tmp_path / "a").mkdir()
    Image.new(mode, (5, 4)).save(tmp_path / "a" / ("1.tif" if mode == "CMYK" else "1.png"))
    image = datasets.open_samples(f"imagefolder:{tmp_path}")[0]
    assert (image.shape, image.dtype) == ((4, 5, 3), np.uint8)


def test_a_flat_folder_of_images_is_refused_because_it_has_no_labels(tmp_path):
    save(tmp_path / "1.png")
    with pytest.raises(UsageError, match=r"no class folders \(1 images"):
        datasets.open_samples(f"imagefolder:{tmp_path}")


def test_an_empty_class_is_named(photos):
    (photos / "owl").mkdir()
    with pytest.raises(UsageError, match="no images in owl"):
        datasets.open_samples(f"imagefolder:{photos}")


def test_an_image_that_cannot_be_decoded_is_named(photos):
    (photos / "dog" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(CorruptArtifact, match=r"2\.png cannot be decoded"):
        datasets.open_samples(f"imagefolder:{photos}")[2]


def test_an_npz_of_pixels_has_labels_and_classes(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([1, 0, 1, 2], np.int32), classes=np.array(["a", "b", "c"]))
    samples = datasets.open_samples(f"npz:{tmp_path / 'a.npz'}")
    assert samples.classes == ("a", "b", "c")
    assert samples.labels.tolist() == [1, 0, 1, 2]
    assert np.array_equal(samples[3], images[3])


def test_an_npz_of_preprocessed_inputs_needs_no_labels(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.ones((2, 1, 28, 28), np.float32))
    samples = datasets.open_samples(f"npz:{tmp_path / 'a.npz'}")
    assert samples.labels is None
    assert samples.classes == ()
    assert (samples[0].shape, samples[0].dtype) == ((1, 28, 28), np.float32)


def test_an_npzs_hash_covers_images_and_labels(tmp_path):
    def digest(images, **labels):
        np.savez(tmp_path / "a.npz", images=images, **labels)
        return datasets.open_samples(f"npz:{tmp_path / 'a.npz'}").sha256

    images = np.zeros((2, 4, 4, 3), np.uint8)
    seen = [digest(images), digest(images, labels=[0, 1]), digest(images, labels=[1, 0]), digest(images + 1, labels=[0, 1])]
    assert len(set(seen)) == 4
    assert digest(images, labels=np.array([0, 1], np.uint8)) == seen[1]


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"pictures": np.zeros(3)}, "no `images`"),
        ({"images": np.zeros((2, 4, 4, 3))}, "`images` of float64"),
        ({"images": np.zeros((0, 4, 4, 3), np.uint8)}, r"\(0, 4, 4, 3\)"),
        ({"images": np.zeros((2, 3, 4, 4), np.uint8)}, r"`images` of uint8 \(2, 3, 4, 4\)"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": [1]}, "for 2 inputs"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": [0.0, 1.0]}, "labels of float64"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": [0, -1]}, "labels of int64"),
    ],
)
def test_an_npz_with_other_arrays_is_told_what_it_has(tmp_path, arrays, complaint):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UsageError, match=complaint):
        datasets.open_samples(f"npz:{tmp_path / 'a.npz'}")


def test_a_file_that_is_no_npz_is_corrupt(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "lone.npy", np.zeros(3))
    for name in ("text.npz", "lone.npy"):
        with pytest.raises(CorruptArtifact, match=r"not an \.npz file"):
            datasets.open_samples(f"npz:{tmp_path / name}")


@pytest.mark.parametrize("spec", ["npz:/no/such.npz", "imagefolder:/no/such"])
def test_a_path_that_is_not_there_is_missing(spec):
    with pytest.raises(DatasetMissing, match="is not a"):
        datasets.open_samples(spec)


def test_an_iterable_and_a_callable_that_returns_one_give_the_same_samples(tmp_path, monkeypatch):
    write_module(
        tmp_path, monkeypatch, "some_data",
        "def pairs():", "    for n in range(3):", "        yield np.full((n + 2, 4, 3), n, np.uint8), n",
        "listed = list(pairs())", "class Held:", "    inner = listed",
    )  # fmt: skip
    made = [datasets.open_samples(f"some_data:{name}") for name in ("pairs", "listed", "Held.inner")]
    assert [samples.labels.tolist() for samples in made] == [[0, 1, 2]] * 3
    assert len({samples.sha256 for samples in made}) == 1
    assert made[0][2].shape == (4, 4, 3)


def test_labels_that_are_all_none_are_no_labels(tmp_path, monkeypatch):
    write_module(tmp_path, monkeypatch, "bare_data", "x = [(np.zeros((3, 2, 2), np.float32), None)] * 2")
    assert datasets.open_samples("bare_data:x").labels is None


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("3", "is a int"),
        ("[]", "is empty"),
        ("[1]", "gave a int at position 0"),
        ("[(np.zeros((2, 2, 3)), 0)]", "input of float64"),
        ("[([[1], [1, 2]], 0)]", "no array"),
        ("[(np.zeros((2, 2, 3), np.uint8), 'cat')]", "labels of"),
        ("[(np.zeros((2, 2, 3), np.uint8), None), (np.zeros((2, 2, 3), np.uint8), 1)]", "one whole number"),
        ("lambda argument: []", "without arguments"),
        ("lambda: {}['key']", "odd_data:x failed: KeyError"),
        ("((np.zeros((2, 2, 3), np.uint8), 1 // n) for n in (1, 0))", "odd_data:x failed: ZeroDivisionError"),
        ("1 / 0", "odd_data:x cannot be imported: ZeroDivisionError"),
    ],
)
def test_an_iterable_of_something_else_is_told_what_it_gave(tmp_path, monkeypatch, value, complaint):
    monkeypatch.delitem(__import__("sys").modules, "odd_data", raising=False)
    folder = tmp_path / "fresh"
    folder.mkdir()
    write_module(folder, monkeypatch, "odd_data", f"x = {value}")
    with pytest.raises(UsageError, match=complaint):
        datasets.open_samples("odd_data:x")


@pytest.mark.parametrize("spec", ["", "cifra10", "npz:", ":x", "no_such_module_at_all:x", "json:no_such_attribute", "a b:c", ".:x"])
def test_anything_else_is_a_usage_error_that_lists_the_forms(spec):
    with pytest.raises(UsageError) as caught:
        datasets.open_samples(spec)
    assert "imagefolder:DIR" in caught.value.remedy
