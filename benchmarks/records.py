"""JSON as measurements are kept: a line for each key, so that it can be read and compared, and little else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def text(value: Any, depth: int = 2, indent: str = "") -> str:
    """`value` as JSON: the keys of `depth` levels have lines of their own, what lies deeper shares its key's; a list of objects has a line
    for each. Ends without a line break."""
    inner = indent + " "
    if depth and isinstance(value, Mapping) and value:
        said = [f"{inner}{json.dumps(str(key))}: {text(item, depth - 1, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(said) + f"\n{indent}}}"
    if depth and isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return "[\n" + ",\n".join(inner + text(item, 0) for item in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
