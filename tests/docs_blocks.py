"""The fenced blocks of the documentation: what they say, and whether a command printed what its block shows."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from accel.bench.flags import FLAGS

REASONS = {
    "network": "it opens a connection",
    "gpu": "it needs a GPU",
    "tensorrt": "it needs TensorRT or TensorRT-RTX",
    "slow": "it takes minutes even in a small world",
    "installs": "it changes the machine",
    "serves": "it runs until it is stopped, or asks what does",
}
"""Why a block is not run, as its info string says it."""

LEFT_OUT = "…"
STATES = frozenset({"OK", "INVALID", "REFUSED", "MISSING", "ERROR", "UNVERIFIED", "added", "kept", "passed", "whole", "baseline"})
"""Cells that must be the same in the small world; a latency, and whether it is faster than another, need not."""

KEYS = ("variant", "engine", "name", "class", "file", "key", "check", "split")
"""The column that says which row is meant, if the table has one of them; else it is the first."""

MACHINE = ("machine:", "versions:", "plan:", "commit:", "measured:", "set:", "command:")

_NUMBER = re.compile(r"(?<![A-Za-z_\d])\d[\d.,]*(?:e[-+]?\d+)?")
_NAME = re.compile(r"\b[0-9a-f]{16,}\b|\b\d{8}T\d{6}Z")
"""A hash, or the time that a set is named by."""

_REMARK = re.compile(r"(?:all measured|\S+:\S+).* ([A-Z_]+): (.*)")
_RULE = re.compile(r"[─━\s]+")


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        line: of its opening fence, from 1.
        language: `console`, `python`, `toml`, `text` and so on.
        words: of the info string after the language.
    """

    page: Path
    line: int
    language: str
    words: tuple[str, ...]
    body: tuple[str, ...]

    @property
    def reason(self) -> str | None:
        """Why it is not run; None if it is."""
        return next((word for word in self.words if word in REASONS), None)

    @property
    def code(self) -> int:
        """The exit code that its last command must have."""
        return next((int(word.removeprefix("exit=")) for word in self.words if word.startswith("exit=")), 0)

    @property
    def file(self) -> str | None:
        """The file that the block is the text of."""
        return next((word.removeprefix("file=") for word in self.words if word.startswith("file=")), None)

    def commands(self) -> list[tuple[list[str], list[str]]]:
        """Of a console block: each command's words and the lines shown below it."""
        found: list[tuple[list[str], list[str]]] = []
        for line in self.body:
            if line.startswith("$ "):
                found.append((shlex.split(line[2:], comments=True), []))
            elif found:
                found[-1][1].append(line)
        return found


def blocks(page: Path) -> Iterator[Block]:
    """Every fenced block of a page, in order."""
    opened: tuple[int, list[str]] | None = None
    body: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.startswith("```"):
            body.append(line)
        elif opened is None:
            opened, body = (number, line[3:].split()), []
        else:
            start, (language, *words) = opened[0], opened[1] or [""]
            yield Block(page, start, language, tuple(words), tuple(body))
            opened = None


def unlike(shown: Sequence[str], printed: str) -> list[str]:
    """The lines that are shown and were not printed: numbers may differ, rows may be fewer, words may not."""
    actual = [line for line in printed.splitlines() if line.strip()]
    normal = {_normal(line) for line in actual}
    return [line for header, line in _with_headers(shown) if not _printed(line, header, actual, normal)]


def _with_headers(shown: Sequence[str]) -> Iterator[tuple[str | None, str]]:
    """Each shown line with the header of its table; a header itself has an empty one, other text None."""
    header: str | None = None
    for number, line in enumerate(shown):
        if not line.strip():
            header = None
        elif _RULE.fullmatch(line):
            header = shown[number - 1]
        elif not line.strip().startswith(LEFT_OUT):
            below = shown[number + 1 : number + 4]  # headings break into up to three lines
            yield "" if any(_RULE.fullmatch(text) and text.strip() for text in below) else header, line


def _printed(line: str, header: str | None, actual: Sequence[str], normal: set[str]) -> bool:
    if _normal(line) in normal:
        return True
    if (remark := _REMARK.fullmatch(line)) and _is_remark(*remark.groups()):
        return True
    if header == "":
        return any(set(line.split()) - {LEFT_OUT} <= set(text.split()) for text in actual)
    if header is not None:
        return any(_same_row(_cells(line), _cells(text), _key(header)) for text in actual)
    if line.startswith("|"):
        return any(text.startswith("|") and text.split("|")[1] == line.split("|")[1] for text in actual)
    if line.strip().startswith(MACHINE):
        return any(text.strip().startswith(line.split()[0]) for text in actual)
    beginning = _normal(line.partition(LEFT_OUT)[0])
    return LEFT_OUT in line and any(text.startswith(beginning) for text in normal)


def _is_remark(name: str, said: str) -> bool:
    """Which flags a row gets is the machine's business; what a flag says is not."""
    rule = FLAGS.get(name)
    return rule is not None and f"{rule.meaning}; to mend it: {rule.remedy}".startswith(said.removesuffix(LEFT_OUT).rstrip())


def _same_row(shown: Sequence[str], printed: Sequence[str], key: int) -> bool:
    wanted = {cell for cell in shown if cell in STATES}
    return len(shown) > key and shown[key] in printed and wanted <= set(printed)


def _key(header: str) -> int:
    cells = _cells(header)
    return next((cells.index(name) for name in KEYS if name in cells), 0)


def _cells(line: str) -> list[str]:
    return [cell.rstrip("*") for cell in re.split(r"\s{2,}", line.strip())]


def _normal(line: str) -> str:
    return " ".join(_NUMBER.sub("#", _NAME.sub("#", line)).split())
