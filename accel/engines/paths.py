"""Which names a file in a bundle may have: plain on every system, so that none leaves the folder and no two are one file."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from accel.errors import CorruptArtifact

LONGEST_PART, LONGEST_NAME = 200, 1000
"""Bytes of UTF-8; file systems take 255 for a part."""

_MARKS = frozenset('\\:*?"<>|')
"""What Windows reads as drives, folders, streams and patterns."""

_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
"""Names that Windows opens as devices, whatever their suffix."""


def problem(name: str) -> str | None:
    """Why `name` is no plain path relative to a folder, for any system; None if it is one."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "is absolute, or has an empty part, . or .."
    if not name.isprintable() or _MARKS & set(name):
        return "has a character that some system reads as more than a name"
    if unicodedata.normalize("NFC", name) != name:
        return "is not in Unicode's composed form (NFC)"
    if any(part[-1] in " ." or _DEVICES.fullmatch(part) for part in parts):
        return "is a device, or ends in a dot or space, which Windows drops"
    if len(name.encode()) > LONGEST_NAME or any(len(part.encode()) > LONGEST_PART for part in parts):
        return f"is longer than {LONGEST_NAME} bytes, or than {LONGEST_PART} between two slashes"
    return None


def clash(names: Iterable[str]) -> tuple[str, str] | None:
    """Two of `names` (plain ones) that are one file where case does not count, or of which one would have to be a folder and a file."""
    seen: dict[str, str] = {}
    for name in names:
        if (folded := name.casefold()) in seen:
            return seen[folded], name
        seen[folded] = name
    for folded, name in seen.items():
        for end in (at for at, mark in enumerate(folded) if mark == "/"):
            if folded[:end] in seen:
                return seen[folded[:end]], name
    return None


def demand_inside(path: Path, root: Path, remedy: str) -> None:
    """Refuse a path that leads out of the bundle `root` by links.

    Raises:
        CorruptArtifact: it does.
    """
    if not path.resolve().is_relative_to(root.resolve()):
        raise CorruptArtifact(f"{path} is a link that leaves the bundle", remedy=remedy)
