"""Pictures as users have them: files, bytes and Pillow images of any mode, as upright uint8 RGB.

Training on a folder, verifying and predicting all decode here, so that a picture has the same pixels wherever it is seen:

* upright by its EXIF orientation; of several frames or pages the first; no colour management (an ICC profile is not applied);
* transparency is composited onto GREY, which letterbox bars have too; palettes, greyscale, 1-bit and CMYK are converted by Pillow;
* of 16 bits a channel the upper 8 are kept (65535 → 255, 257·n → n). Pillow does that for 16-bit colour and would clip 16-bit greyscale;
  it cannot tell which pixels have the one transparent colour of a 16-bit colour PNG, so they are taken as opaque.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from accel import optional
from accel.errors import CorruptArtifact, UsageError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What counts as a picture in a folder, by name; case does not matter. A file that is named itself may be called anything."""

EXTRA = "images"

GREY = (128, 128, 128)

Pixels: TypeAlias = npt.NDArray[np.uint8]
Picture: TypeAlias = "str | os.PathLike[str] | bytes | Pixels | Image.Image"
"""A path, a file's bytes, a uint8 H×W×3 array of RGB, or a Pillow image."""

DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error)
"""What Pillow's decoders raise for files that are cut off or not what they say."""

WHY = {
    FileNotFoundError: ("there is no such file", "name a file that exists"),
    IsADirectoryError: ("it is a folder", "name the pictures in it"),
    PermissionError: ("this user may not read it", "change the file's permissions"),
}
REPLACE = "replace or remove the file"


def read(picture: Picture, name: str | None = None) -> Pixels:
    """Decode one picture to uint8 H×W×3 RGB; an array is returned as it is.

    Args:
        name: what messages call it; None takes the path's or the image's own.

    Raises:
        CorruptArtifact: it cannot be read or decoded, has pixels without a known range, or is so large that Pillow takes it for a
            decompression bomb. UsageError: no picture at all. MissingExtra: Pillow is absent.
    """
    if isinstance(picture, np.ndarray):
        return _checked(picture)
    pillow = optional.require("PIL.Image", extra=EXTRA)
    if isinstance(picture, pillow.Image):
        with _told(name or getattr(picture, "filename", "") or "the image"):
            return _upright_rgb(picture)
    if isinstance(picture, bytes | bytearray | memoryview):
        source: Any = io.BytesIO(picture)
    elif isinstance(picture, str | os.PathLike):
        source = Path(picture)
    else:
        raise UsageError(
            f"{name or 'one of the pictures'} is a {type(picture).__name__}",
            remedy="pass paths, bytes of files, Pillow images or uint8 arrays of shape (H, W, 3)",
        )
    with _told(name or ("the bytes" if isinstance(source, io.BytesIO) else str(picture))), pillow.open(source) as image:
        return _upright_rgb(image)


def one_by_one(pictures: Any) -> list[Any]:
    """One picture or several, of an array N×H×W×3 or any iterable, as a list."""
    if isinstance(pictures, np.ndarray):
        return list(pictures) if pictures.ndim == 4 else [pictures]
    alone = isinstance(pictures, str | os.PathLike | bytes | bytearray | memoryview) or not hasattr(pictures, "__iter__")
    return [pictures] if alone or is_pillow(pictures) else list(pictures)


def is_pillow(picture: Any) -> bool:
    # Whoever holds a Pillow image has imported it.
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(picture, pillow.Image)


@dataclasses.dataclass(frozen=True)
class Found:
    """What lies below a folder.

    Attributes:
        files: its pictures, sorted by path.
        others: how many files are no pictures by their names.
        problems: each folder in it that cannot be listed, and why.
    """

    files: tuple[Path, ...]
    others: int
    problems: dict[str, CorruptArtifact]


def below(folder: Path) -> Found:
    """Look for pictures in `folder` and its sub-folders.

    Hidden files and folders are neither taken nor counted. Links to folders are followed, and each folder is entered once.
    """
    entered: set[str] = set()
    taken: list[Path] = []
    refused: list[OSError] = []
    others = 0
    for root, folders, names in os.walk(folder, followlinks=True, onerror=refused.append):
        real = os.path.realpath(root)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = [Path(root) / name for name in names if not name.startswith(".")]
        pictures = [file for file in files if is_picture(file)]
        taken += pictures
        others += len(files) - len(pictures)
    files_in_order = tuple(sorted(taken, key=lambda path: path.as_posix()))
    return Found(files_in_order, others, {str(error.filename): _unreadable(str(error.filename), error) for error in refused})


def is_picture(path: Path) -> bool:
    """Whether a folder's entry is taken for a picture: a file, by its suffix, not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _checked(array: npt.NDArray[Any]) -> Pixels:
    if array.dtype != np.uint8 or array.ndim != 3 or not array.size:
        raise UsageError(
            f"a picture is a uint8 array of shape (H, W, 3); received {array.dtype} {array.shape}",
            remedy="pass RGB pixels of 0..255, channels last; call the engine itself with what is preprocessed already",
        )
    return array


def _upright_rgb(image: Image.Image) -> Pixels:
    pillow = optional.require("PIL.Image", extra=EXTRA)
    upright = optional.require("PIL.ImageOps", extra=EXTRA).exif_transpose(image)
    if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
        upright = _of_8_bits(upright)
    if upright.has_transparency_data:
        upright = pillow.alpha_composite(pillow.new("RGBA", upright.size, (*GREY, 255)), upright.convert("RGBA"))
    return np.array(upright.convert("RGB"))


def _of_8_bits(image: Image.Image) -> Image.Image:
    """Greyscale of more than 8 bits, as L, or as LA where one grey is said to be transparent."""
    pillow = optional.require("PIL.Image", extra=EXTRA)
    values = np.asarray(image)
    lowest, highest = values.min(), values.max()
    if image.mode == "F" or lowest < 0 or highest > 65535:
        raise ValueError(
            f"its pixels are of mode {image.mode} from {lowest:g} to {highest:g}, and nothing says which of them are black and white"
        )
    grey: Image.Image = pillow.fromarray((values >> 8).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(pillow.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn what Pillow raises into one message that names the picture."""
    pillow = optional.require("PIL.Image", extra=EXTRA)
    try:
        yield
    except pillow.DecompressionBombError as error:
        raise CorruptArtifact(f"{name} cannot be decoded: {error}", remedy="scale it down, or remove it") from error
    except DAMAGE as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: BaseException) -> CorruptArtifact:
    for kind, (why, remedy) in WHY.items():
        if isinstance(error, kind):
            return CorruptArtifact(f"{name} cannot be read: {why}", remedy=remedy)
    pillow = sys.modules.get("PIL")
    if pillow is not None and isinstance(error, pillow.UnidentifiedImageError):
        return CorruptArtifact(f"{name} cannot be decoded: it is no picture that Pillow knows, or its beginning is damaged", remedy=REPLACE)
    return CorruptArtifact(f"{name} cannot be decoded: {error or type(error).__name__}", remedy=REPLACE)
