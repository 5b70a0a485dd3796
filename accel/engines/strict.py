"""JSON that is read strictly: an unknown, missing, repeated or ill-typed key is named, never guessed around."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accel.errors import CorruptArtifact

Kind = Callable[[Any], bool]

LARGEST = 64 << 20
"""Bytes of a JSON file; tuned.json, the largest, has a few hundred KB."""

DEEPEST = 40
"""Objects and lists within each other; ours have 7."""

_DIGITS = 20


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def is_any_text(value: Any) -> bool:
    return isinstance(value, str)


def is_whole(value: Any) -> bool:
    """A JSON integer; `true` is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_schema_version_1(value: Any) -> bool:
    return is_whole(value) and value == 1


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_seconds(value: Any) -> bool:
    return is_number(value) and value >= 0


def is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def is_object(value: Any) -> bool:
    return isinstance(value, dict)


def is_list(value: Any) -> bool:
    return isinstance(value, list)


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def is_sha256(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def is_sha256_map(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(is_sha256, value.values()))


def or_null(kind: Kind) -> Kind:
    """`kind`, or JSON's null."""

    def check(value: Any) -> bool:
        return value is None or kind(value)

    check.__name__ = f"{kind.__name__}_or_null"
    return check


def read_bytes(path: Path, remedy: str) -> bytes:
    """The bytes of `path`; raises CorruptArtifact if they cannot be read, or are more than any file of ours has."""
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise CorruptArtifact(f"{path} has {size} bytes; {LARGEST} are the most that accel reads", remedy=remedy)
        return path.read_bytes()
    except OSError as error:
        raise CorruptArtifact(f"{path} cannot be read: {error}", remedy=remedy) from error


def parse_object(text: bytes, where: str, remedy: str) -> dict[str, Any]:
    """The JSON object that `text` spells.

    Raises:
        CorruptArtifact: not UTF-8, not JSON, a repeated key, NaN or infinity, a whole number of more than 64 bits, half a character,
            nested too deeply, or no object; `where` names the file.
    """
    try:
        data = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite, parse_int=_of_64_bits
        )
        _check_depth(data)
        # A lone surrogate can be spelled in JSON, and neither printed nor written again.
        compact(data)
    except (ValueError, RecursionError) as error:
        raise CorruptArtifact(f"{where} cannot be read: {error}", remedy=remedy) from error
    if not isinstance(data, dict):
        raise CorruptArtifact(f"{where} holds a {type(data).__name__}, not an object", remedy=remedy)
    return data


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in the file `path`; raises CorruptArtifact as parse_object does."""
    return parse_object(read_bytes(path, remedy), str(path), remedy)


def check_keys(data: Any, kinds: Mapping[str, Kind], where: str, remedy: str) -> dict[str, Any]:
    """Hold `data` against `kinds` and return it.

    Args:
        kinds: every key that must be there, and nothing else may, with the test of its value.
        where: what the object is, for the message, as `accel.json: engines[0]`.

    Raises:
        CorruptArtifact: names the key that is missing, unknown or of a wrong type.
    """
    if not isinstance(data, dict):
        raise CorruptArtifact(f"{where} is a {type(data).__name__}, not an object", remedy=remedy)
    for problem, keys in (("lacks the key", kinds.keys() - data.keys()), ("has an unknown key", data.keys() - kinds.keys())):
        if keys:
            raise CorruptArtifact(f"{where} {problem} {short(min(keys))}", remedy=remedy)
    for key, kind in kinds.items():
        if not kind(data[key]):
            wanted = kind.__name__.removeprefix("is_").replace("_", " ")
            raise CorruptArtifact(f"{where}: the key {key!r} has the value {short(data[key])}, which is no {wanted}", remedy=remedy)
    return data


def canonical(data: Any) -> bytes:
    """One spelling of `data`: sorted keys, no spaces, UTF-8; NaN and infinity raise ValueError."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


def compact(data: Any) -> bytes:
    """As `canonical`, in the order that `data` has: the first of an engine's files is the one that is opened."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


def pretty(data: Any) -> str:
    """How every JSON file of a bundle is written."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def short(value: Any) -> str:
    """`value` as Python spells it, cut to what a message can hold."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {short(next(key for key in keys if keys.count(key) > 1))} is there twice")
    return data


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no number that a computer holds")
    return value


def _of_64_bits(text: str) -> int:
    if len(text) > _DIGITS or abs(value := int(text)) >= 2**63:
        raise ValueError(f"a whole number of {len(text)} digits")
    return value


def _check_depth(data: Any) -> None:
    level, depth = [data], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")
        level = [inner for item in level if isinstance(item, dict | list) for inner in (item.values() if isinstance(item, dict) else item)]
