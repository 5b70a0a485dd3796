"""A folder of class folders of images, as most classification sets are kept."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from accel import optional
from accel.errors import CorruptArtifact, DatasetMissing, UsageError
from accel.files import sha256_file

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What counts as an image, by name; case does not matter."""


class ImageFolder:
    """The images below `path`: classes are its sub-folders sorted by name, labels are their positions, images are sorted by path.

    `[i]` is decoded when asked for: uint8 H×W×3 RGB, upright by its EXIF orientation, in its own size.

    Raises:
        DatasetMissing: no such folder. UsageError: no class folders, or no images in one. MissingExtra: Pillow is absent.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise DatasetMissing(f"imagefolder:{path} is not a folder", remedy="name a folder that holds one folder per class")
        optional.require("PIL.Image", extra="toolkit")
        self.path = path
        self.name = f"imagefolder:{path}"
        self.classes = tuple(sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
        if not self.classes:
            found = sum(_is_image(entry) for entry in path.iterdir())
            raise UsageError(
                f"{self.name} has no class folders ({found} images lie directly in it), so its images have no labels",
                remedy="move the images of each class into a folder of its own, as DIR/cat/1.jpg",
            )
        per_class = [_images_in(path / name) for name in self.classes]
        empty = [name for name, files in zip(self.classes, per_class, strict=True) if not files]
        if empty:
            raise UsageError(
                f"{self.name} has no images in {', '.join(empty)}", remedy=f"add some ({', '.join(SUFFIXES)}) or remove the folders"
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
        return decode_image(self.files[index])


def decode_image(path: Path) -> npt.NDArray[np.uint8]:
    """Decode an image file to uint8 H×W×3 RGB, upright by its EXIF orientation.

    Raises:
        CorruptArtifact: it cannot be decoded, or is so large that Pillow takes it for a decompression bomb.
        MissingExtra: Pillow is absent.
    """
    pillow = optional.require("PIL.Image", extra="toolkit")
    ops = optional.require("PIL.ImageOps", extra="toolkit")
    try:
        with pillow.open(path) as image:
            return np.array(ops.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, pillow.DecompressionBombError) as error:
        raise CorruptArtifact(f"{path} cannot be decoded: {error}", remedy="replace or remove the file") from error


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _images_in(folder: Path) -> list[Path]:
    found = (Path(root) / name for root, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted((path for path in found if _is_image(path)), key=lambda path: path.as_posix())
