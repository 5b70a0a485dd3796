"""A folder of class folders of images, as most classification sets are kept."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from accel import optional, pictures
from accel.errors import DatasetMissing, UsageError
from accel.files import sha256_file


class ImageFolder:
    """The images below `path`: classes are its sub-folders sorted by name, labels are their positions, images are sorted by path.

    `[i]` is decoded when asked for, by `accel.pictures.read`: uint8 H×W×3 RGB, upright, in its own size.

    Raises:
        DatasetMissing: no such folder. UsageError: no class folders, or no images in one. MissingExtra: Pillow is absent.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise DatasetMissing(f"imagefolder:{path} is not a folder", remedy="name a folder that holds one folder per class")
        optional.require("PIL.Image", extra=pictures.EXTRA)
        self.path = path
        self.name = f"imagefolder:{path}"
        self.classes = tuple(sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
        if not self.classes:
            found = sum(pictures.is_picture(entry) for entry in path.iterdir())
            raise UsageError(
                f"{self.name} has no class folders ({found} images lie directly in it), so its images have no labels",
                remedy="move the images of each class into a folder of its own, as DIR/cat/1.jpg",
            )
        per_class = [_pictures_in(path / name) for name in self.classes]
        empty = [name for name, files in zip(self.classes, per_class, strict=True) if not files]
        if empty:
            raise UsageError(
                f"{self.name} has no images in {', '.join(empty)}",
                remedy=f"add some ({', '.join(pictures.SUFFIXES)}) or remove the folders",
            )
        self.files = [file for files in per_class for file in files]
        self.labels: npt.NDArray[np.int64] | None = np.repeat(np.arange(len(self.classes)), [len(files) for files in per_class])

    @functools.cached_property
    def sha256(self) -> str:
        """Over the class names and, for each image, its path below the folder (which holds its label) and its bytes."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for file in self.files:
            digest.update(f"\n{file.relative_to(self.path).as_posix()}\0{sha256_file(file)}".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        return pictures.read(self.files[index])


def _pictures_in(folder: Path) -> list[Path]:
    found = pictures.below(folder)
    for problem in found.problems.values():
        raise problem
    return list(found.files)
