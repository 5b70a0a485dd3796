"""Edit an accel.json as somebody does who knows how it is sealed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accel.engines.manifest import self_sha256


def reseal(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Apply `change` to the parsed file `path`, write its own hash anew, and return `path`."""
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps({**data, "self_sha256": self_sha256(data)}), encoding="utf-8")
    return path
