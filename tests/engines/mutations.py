"""What an accident or a stranger may do to the bytes and the JSON of a bundle, as hypothesis strategies."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Change = Callable[[bytes], bytes]

RAW = {
    "@nan@": "NaN",
    "@inf@": "-Infinity",
    "@huge@": "1e999",
    "@digits@": "9" * 5000,
    "@half@": '"\\ud800"',
    "@deep@": "[" * 5000 + "]" * 5000,
}
"""Placeholder → what cannot be had from `json.dumps`."""

WILD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**62, 2**63, 10**30, 0.5, -0.0, 1e308),
    *("", " ", "x" * 3000, "\x00", "\x1b[31m", "ä", "é", "名", "0" * 64, "f" * 64, "float16", "int64", "bfloat16", "onnx", "fp16", "batch"),
    *("../../etc/passwd", "/etc/passwd", "C:\\windows", "onnx-fp32/../../x", "onnx-fp32/con", "onnx-fp32/Model.ONNX", "accel.json"),
    *(
        [],
        {},
        [[]],
        [None],
        [1],
        ["batch"],
        [1, 3, 8, 8],
        [2, 3, 8, 8],
        [1, 3, 8, 9],
        [1000000, 3, 8, 8],
        ["batch", 3, 8, 8],
        [0],
        [-1, 3, 8, 8],
    ),
    *({"a": 1}, {"onnx-fp32/model.onnx": "0" * 64}, {"torch": "99.0"}, {"simd": 3}, {"gpu": []}, {"status": "failed"}, {"status": []}),
    *({"mean": [0.5], "std": [0.0], "height": 8, "width": 8}, {"mean": "abc", "std": "abc", "height": 8, "width": 8}, *RAW),
)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value of a tree, from the root, which is left out."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [found for key, value in items for found in ((*path, key), *places(value, (*path, key)))]


@st.composite
def byte_changes(draw: st.DrawFn, size: int) -> Change:
    """Of a file of `size` bytes: one or two of a flipped bit, a cut, a part that is left out, doubled, swapped or overwritten."""
    changes = [draw(_byte_change(max(size, 1))) for _ in range(draw(st.integers(1, 2)))]

    def apply(data: bytes) -> bytes:
        for change in changes:
            data = change(data)
        return data

    return apply


@st.composite
def _byte_change(draw: st.DrawFn, size: int) -> Change:
    # Hypothesis prefers small numbers, which is the head of the file.
    chance = random.Random(draw(st.integers(0, 2**32)))
    kind = chance.choice(["flipped", "flipped", *_BYTES])
    start, other, length, value = chance.randrange(size), chance.randrange(size), chance.randint(1, 40), chance.randrange(256)
    return lambda data: _BYTES[kind](data, start, length, value, other)


def _flip(data: bytes, start: int, length: int, value: int, other: int) -> bytes:
    changed = bytearray(data)
    if changed:
        changed[start % len(changed)] ^= 1 << (value % 8)
    return bytes(changed)


def _swap(data: bytes, start: int, length: int, value: int, other: int) -> bytes:
    first, second = sorted((start, other))
    length = min(length, second - first, len(data) - second)
    if length <= 0:
        return data
    middle, end = data[first + length : second], data[second + length :]
    return data[:first] + data[second : second + length] + middle + data[first : first + length] + end


_BYTES: dict[str, Callable[[bytes, int, int, int, int], bytes]] = {
    "cut": lambda data, start, length, value, other: data[:start],
    "doubled": lambda data, start, length, value, other: data[: start + length] + data[start:],
    "flipped": _flip,
    "headless": lambda data, start, length, value, other: data[length:],
    "left out": lambda data, start, length, value, other: data[:start] + data[start + length :],
    "longer": lambda data, start, length, value, other: data + bytes([value]) * length,
    "overwritten": lambda data, start, length, value, other: (
        data[:start] + bytes([value]) * min(length, len(data) - start) + data[start + length :]
    ),
    "swapped": _swap,
}


@st.composite
def json_changes(draw: st.DrawFn, tree: Any) -> Callable[[Any], tuple[Any, str]]:
    """Of a JSON object like `tree`: one to three values replaced, removed, renamed, exchanged or repeated.

    Returns:
        tree → the changed tree, and a key and value that are to be written twice (or nothing).
    """
    ways = places(tree)
    edits = [
        (draw(st.sampled_from(_EDITS)), draw(st.sampled_from(ways)), draw(st.sampled_from(ways)), draw(st.sampled_from(WILD)))
        for _ in range(draw(st.integers(1, 3)))
    ]
    twice = draw(st.sampled_from(["", "", "", *tree]))

    def apply(data: Any) -> tuple[Any, str]:
        for kind, way, other, value in edits:
            _edit(data, kind, way, other, value)
        return data, twice

    return apply


_EDITS = ("replaced", "replaced", "replaced", "removed", "renamed", "exchanged", "added")


def _edit(data: Any, kind: str, way: tuple[Any, ...], other: tuple[Any, ...], value: Any) -> None:
    try:
        parent, second = _at(data, way[:-1]), _at(data, other[:-1])
        if kind == "removed":
            del parent[way[-1]]
        elif kind == "renamed" and isinstance(parent, dict):
            parent[str(value)[:50]] = parent.pop(way[-1])
        elif kind == "added" and isinstance(parent, dict):
            parent[str(way[-1]).upper()] = value
        elif kind == "exchanged":
            mine, theirs = copy.deepcopy(parent[way[-1]]), copy.deepcopy(second[other[-1]])
            parent[way[-1]], second[other[-1]] = theirs, mine
        else:
            parent[way[-1]] = copy.deepcopy(value)
    except (KeyError, IndexError, TypeError):
        pass  # an earlier edit took the place away


def _at(data: Any, way: tuple[Any, ...]) -> Any:
    for key in way:
        data = data[key]
    return data


def spelled(data: Any, twice: str = "") -> bytes:
    """The text of `data` with what the placeholders stand for, and the key `twice` there a second time."""
    text = json.dumps(data)
    if twice in data and twice:
        text = f"{{{json.dumps(twice)}: {json.dumps(data[twice])}, {text[1:]}"
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text.encode()
