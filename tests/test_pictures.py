"""Pictures as users have them become the same upright RGB pixels everywhere; what cannot is told."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel import pictures
from accel.errors import CorruptArtifact, UsageError

Image = pytest.importorskip("PIL.Image")

PIXELS = np.array([[[10, 0, 0], [20, 0, 0], [30, 0, 0]], [[40, 0, 0], [50, 0, 0], [60, 0, 0]]], np.uint8)
LOSSLESS = {"BMP": {}, "GIF": {}, "PNG": {}, "PPM": {}, "TIFF": {}, "WEBP": {"lossless": True}}

ORIENTED = {
    1: [[10, 20, 30], [40, 50, 60]],
    2: [[30, 20, 10], [60, 50, 40]],
    3: [[60, 50, 40], [30, 20, 10]],
    4: [[40, 50, 60], [10, 20, 30]],
    5: [[10, 40], [20, 50], [30, 60]],
    6: [[40, 10], [50, 20], [60, 30]],
    7: [[60, 30], [50, 20], [40, 10]],
    8: [[30, 60], [20, 50], [10, 40]],
}
"""What a viewer shows of [[10, 20, 30], [40, 50, 60]] by the orientation that the EXIF standard numbers so."""


def saved(image: Any, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def of_mode(mode: str, *values: Any) -> Any:
    """An image of one row."""
    image = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    return image


def row(data: Any) -> list[list[int]]:
    return pictures.read(data)[0].tolist()


def png16(colour: int, *pixels: tuple[int, ...], clear: tuple[int, ...] = ()) -> bytes:
    """A PNG of one row and 16 bits a channel (Pillow writes only the greyscale ones); colour 0 is L, 2 RGB, 4 LA, 6 RGBA."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    numbers = [number for pixel in pixels for number in pixel]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", len(pixels), 1, 16, colour, 0, 0, 0))
    transparent = chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)) if clear else b""
    data = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(f">{len(numbers)}H", *numbers)))
    return b"\x89PNG\r\n\x1a\n" + header + transparent + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", LOSSLESS)
def test_a_lossless_file_keeps_its_pixels(format: str, tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS)
    data = saved(image.quantize(8) if format == "GIF" else image, format, **LOSSLESS[format])
    (tmp_path / "picture").write_bytes(data)
    for picture in (data, tmp_path / "picture", str(tmp_path / "picture"), Image.open(io.BytesIO(data))):
        found = pictures.read(picture)
        assert (found.dtype, found.tolist()) == (np.uint8, PIXELS.tolist())


def test_a_jpeg_is_near_to_what_was_saved() -> None:
    found = pictures.read(saved(Image.new("RGB", (16, 16), (200, 100, 50)), "JPEG", quality=95))
    assert np.abs(found.astype(int) - (200, 100, 50)).max() <= 2


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", ORIENTED)
def test_every_exif_orientation_is_turned_upright(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(PIXELS), format, exif=exif, **LOSSLESS[format])
    assert pictures.read(data)[..., 0].tolist() == ORIENTED[orientation]


def test_a_jpeg_and_a_16_bit_picture_are_turned_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert pictures.read(saved(Image.new("RGB", (6, 2)), "JPEG", exif=exif)).shape == (6, 2, 3)
    deep = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    assert pictures.read(saved(deep, "PNG", exif=exif))[..., 0].tolist() == ORIENTED[6]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (of_mode("1", 0, 255), [[0] * 3, [255] * 3]),
        (of_mode("L", 0, 77, 255), [[0] * 3, [77] * 3, [255] * 3]),
        # Half of 200 and half of the grey: 200·128/255 + 128·127/255 = 164.1; clear shows the grey alone.
        (of_mode("LA", (200, 255), (200, 128), (200, 0)), [[200] * 3, [164] * 3, [128] * 3]),
        # 255·128/255 + 128·127/255 = 191.7 and 128·127/255 = 63.7.
        (of_mode("RGBA", (255, 0, 0, 128), (9, 9, 9, 0), (0, 0, 255, 255)), [[192, 64, 64], [128] * 3, [0, 0, 255]]),
    ],
    ids=["1-bit", "greyscale", "greyscale with alpha", "alpha"],
)
def test_what_a_png_holds_becomes_rgb(image: Any, expected: list[list[int]]) -> None:
    assert row(saved(image, "PNG")) == expected


def test_webp_has_alpha_as_png_has() -> None:
    data = saved(of_mode("RGBA", (255, 0, 0, 128), (9, 9, 9, 0)), "WEBP", lossless=True, exact=True)
    assert row(data) == [[192, 64, 64], [128] * 3]


@pytest.mark.parametrize(
    ("format", "options", "green"),
    [
        ("PNG", {}, [0, 255, 0]),
        ("GIF", {}, [0, 255, 0]),
        ("PNG", {"transparency": 1}, [128, 128, 128]),
        ("GIF", {"transparency": 1}, [128, 128, 128]),
        ("PNG", {"transparency": bytes([255, 128, 255])}, [64, 192, 64]),
    ],
)
def test_a_palette_is_looked_up_and_its_transparent_entry_is_grey(format: str, options: dict[str, Any], green: list[int]) -> None:
    image = of_mode("P", 0, 1, 2)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert row(saved(image, format, **options)) == [[255, 0, 0], green, [0, 0, 255]]


def test_one_grey_or_colour_of_a_png_may_be_transparent() -> None:
    assert row(saved(of_mode("L", 0, 200, 255), "PNG", transparency=200)) == [[0] * 3, [128] * 3, [255] * 3]
    assert row(saved(of_mode("RGB", (1, 2, 3), (4, 5, 6)), "PNG", transparency=(1, 2, 3))) == [[128] * 3, [4, 5, 6]]


def test_cmyk_is_converted_and_a_jpeg_of_it_is_not_inverted() -> None:
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255)]
    assert row(saved(of_mode("CMYK", *inks), "TIFF")) == [[255] * 3, [0, 255, 255], [255, 0, 0], [0] * 3]
    found = pictures.read(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(found.astype(int) - (255, 0, 0)).max() <= 3


SIXTEEN = [0, 255, 256, 4660, 32896, 65535]
EIGHT = [[0] * 3, [0] * 3, [1] * 3, [18] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_greyscale_is_scaled_and_not_clipped(format: str) -> None:
    assert row(saved(Image.fromarray(np.array([SIXTEEN], np.uint16)), format)) == EIGHT


def test_16_bits_of_either_byte_order_or_in_32_are_the_same() -> None:
    for kind in (">u2", "<i4"):
        assert row(saved(Image.fromarray(np.array([SIXTEEN], kind)), "TIFF")) == EIGHT


def test_16_bit_colour_and_alpha_agree_with_16_bit_greyscale() -> None:
    assert row(png16(0, *((number,) for number in SIXTEEN))) == EIGHT
    assert row(png16(2, (0, 255, 256), (65535, 32896, 4660))) == [[0, 0, 1], [255, 128, 18]]
    assert row(png16(4, (65535, 32896), (4660, 65535))) == [[192] * 3, [18] * 3]
    assert row(png16(6, (65535, 0, 0, 32896))) == [[192, 64, 64]]
    assert row(png16(0, (0,), (4661,), (4660,), clear=(4660,))) == [[0] * 3, [18] * 3, [128] * 3]


@pytest.mark.parametrize(
    "pixels", [np.float32([[0, 0.5]]), np.int32([[-1, 5]]), np.int32([[0, 70000]])], ids=["float", "negative", "32 bits"]
)
def test_pixels_of_unknown_range_are_refused_and_not_guessed(pixels: Any) -> None:
    with pytest.raises(CorruptArtifact, match=r"mode [IF] from .* black and white"):
        pictures.read(saved(Image.fromarray(pixels), "TIFF"))


def test_of_several_frames_and_pages_the_first_is_taken() -> None:
    first, second = Image.new("RGB", (2, 1), (255, 0, 0)), Image.new("RGB", (2, 1), (0, 0, 255))
    for format in ("GIF", "PNG", "TIFF", "WEBP"):
        data = saved(first, format, save_all=True, append_images=[second], **LOSSLESS[format])
        assert row(data) == [[255, 0, 0]] * 2


def test_a_callers_image_is_left_as_it_was() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(saved(Image.fromarray(PIXELS).convert("RGBA"), "PNG", exif=exif)))
    assert pictures.read(image).shape == (3, 2, 3)
    assert (image.mode, image.size, image.getexif()[0x0112]) == ("RGBA", (3, 2), 6)


def test_an_array_is_taken_as_it_is_and_needs_no_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    assert pictures.read(PIXELS) is PIXELS


@pytest.mark.parametrize("wrong", [PIXELS.astype(np.float32), PIXELS[0], PIXELS[:0], 3, None, object()])
def test_what_is_no_picture_is_a_usage_error(wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"received|is a "):
        pictures.read(wrong)


WHOLE = {format: saved(Image.fromarray(np.resize(PIXELS, (20, 30, 3))), format, **options) for format, options in LOSSLESS.items()}
WHOLE["JPEG"] = saved(Image.fromarray(np.resize(PIXELS, (20, 30, 3))), "JPEG")


@pytest.mark.parametrize("format", WHOLE)
def test_half_a_file_is_corrupt_and_named(format: str, tmp_path: Path) -> None:
    path = tmp_path / "half"
    path.write_bytes(WHOLE[format][: len(WHOLE[format]) // 2])
    with pytest.raises(CorruptArtifact, match=r"half cannot be decoded: .") as caught:
        pictures.read(path)
    assert caught.value.remedy
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.mkdir(), "it is a folder"),
        (lambda path: path.write_bytes(b""), "no picture that Pillow knows"),
        (lambda path: path.write_text("<html>not found</html>"), "no picture that Pillow knows"),
    ],
)
def test_a_file_that_is_none_says_why_and_what_mends_it(make: Any, said: str, tmp_path: Path) -> None:
    make(tmp_path / "a.png")
    with pytest.raises(CorruptArtifact, match=f"a.png cannot be .*{said}") as caught:
        pictures.read(tmp_path / "a.png")
    assert caught.value.remedy


def test_a_decompression_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(CorruptArtifact, match="decompression bomb") as caught:
        pictures.read(WHOLE["PNG"])
    assert "scale it down" in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_never_raise_anything_else() -> None:
    # The seed is fixed: a decoder that raises something new is found when Pillow changes, not by luck.
    chance = random.Random(1)
    outcomes = {True: 0, False: 0}
    for whole in WHOLE.values():
        for _ in range(60):
            data = bytearray(whole)
            for _ in range(chance.choice((1, 2, 5))):
                data[chance.randrange(min(len(data), 200))] = chance.randrange(256)
            try:
                pictures.read(bytes(data))
                outcomes[True] += 1
            except CorruptArtifact:
                outcomes[False] += 1
    assert min(outcomes.values()) > 50


def test_one_picture_or_several_of_any_kind_become_a_list(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS)
    for alone in ("a.png", tmp_path, b"bytes", image, PIXELS):
        (found,) = pictures.one_by_one(alone)
        assert found is alone
    assert pictures.one_by_one(["a.png", image]) == ["a.png", image]
    assert list(pictures.one_by_one(name for name in "ab")) == ["a", "b"]
    assert np.array_equal(pictures.one_by_one(np.stack([PIXELS, PIXELS]))[1], PIXELS)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_a_folder_is_walked_sorted_and_what_is_no_picture_is_counted(tmp_path: Path) -> None:
    touch(tmp_path / "b.JPG", tmp_path / "a" / "z.webp", tmp_path / "a" / "deep" / "1.png", tmp_path / "c.gif")
    touch(tmp_path / "notes.txt", tmp_path / "a" / "video.mp4", tmp_path / ".hidden.png", tmp_path / ".thumbnails" / "1.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = pictures.below(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found.files] == ["a/deep/1.png", "a/z.webp", "b.JPG", "c.gif"]
    assert (found.others, found.problems) == (3, {})


def test_links_to_folders_are_followed_once_even_in_a_circle(tmp_path: Path) -> None:
    touch(tmp_path / "here" / "1.png", tmp_path / "elsewhere" / "2.png")
    (tmp_path / "here" / "circle").symlink_to(tmp_path / "here")
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "elsewhere")
    assert [path.name for path in pictures.below(tmp_path / "here").files] == ["1.png", "2.png"]


def test_a_folder_that_cannot_be_listed_is_told_and_the_rest_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "closed" / "1.png", tmp_path / "open" / "2.png")
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = pictures.below(tmp_path)
    assert [path.name for path in found.files] == ["2.png"]
    assert "closed cannot be read: this user may not read it" in str(found.problems[str(tmp_path / "closed")])
