"""Pictures in requests: the body itself, or the one file of a form; held against a limit of pixels before they are decoded."""

from __future__ import annotations

import email.message
import email.parser
import email.policy
import io

import numpy as np
import numpy.typing as npt

from accel import optional, pictures
from accel.serve.reply import Refusal

FORM = "multipart/form-data"
RAW = ("application/octet-stream",)

MOST_PIXELS = 50_000_000
"""Of a picture: 150 MB when decoded, times the requests that run at once."""

ACCEPTED = f"image/*, application/octet-stream or {FORM}"


def picture_in(body: bytes, content_type: str | None) -> bytes:
    """The bytes of the picture's file.

    Raises:
        Refusal: 415 for another Content-Type, 400 for a form that is damaged or has not exactly one file.
    """
    header = email.message.Message()
    header["Content-Type"] = content_type or ""
    kind = header.get_content_type()
    if kind == FORM:
        boundary = header.get_boundary()
        if not boundary:
            raise Refusal(400, f"{FORM} without a boundary")
        return _file_of_form(body, boundary.encode("latin-1", "replace"))
    if not content_type or not (kind.startswith("image/") or kind in RAW):
        raise Refusal(415, f"Content-Type is {content_type!r}; send a picture as {ACCEPTED}")
    return body


def decode(file: bytes) -> npt.NDArray[np.uint8]:
    """A picture's file as uint8 H×W×3 RGB.

    Raises:
        Refusal: 413, it has too many pixels. CorruptArtifact, MissingExtra: as `accel.pictures.read`.
    """
    pillow = optional.require("PIL.Image", extra="serve")
    try:
        with pillow.open(io.BytesIO(file)) as image:
            pixels = image.width * image.height
    except (pillow.DecompressionBombError, *pictures.DAMAGE):
        # `read` finds the same, and says it.
        pixels = 0
    if pixels > MOST_PIXELS:
        raise Refusal(413, f"the picture has {pixels} pixels; the limit is {MOST_PIXELS}")
    return pictures.read(file, "the picture")


def _file_of_form(body: bytes, boundary: bytes) -> bytes:
    """RFC 2046, 5.1.1: parts between lines of `--boundary`, the last of them with `--` after it."""
    _, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary)
    if not parts or not parts[-1].startswith(b"--"):
        raise Refusal(400, f"{FORM} does not end with its boundary")
    files = [content for head, content in map(_part, parts[:-1]) if head.get_filename() is not None]
    if len(files) != 1:
        raise Refusal(400, f"{FORM} has {len(files)} files; send one picture")
    return files[0]


def _part(part: bytes) -> tuple[email.message.Message, bytes]:
    head, blank, content = part.partition(b"\r\n\r\n")
    if not blank:
        raise Refusal(400, f"{FORM} has a part without an empty line after its headers")
    # After the boundary stands the rest of its line.
    _, _, lines = head.partition(b"\r\n")
    return email.parser.BytesParser(policy=email.policy.compat32).parsebytes(lines, headersonly=True), content
