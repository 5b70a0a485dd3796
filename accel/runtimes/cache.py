"""Engines that are loaded already, shared and counted: a second load is free, the last close gives the memory back."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Hashable
from pathlib import Path

from accel.errors import BundleMissing
from accel.runtimes.pool import Contexts


@dataclasses.dataclass
class _Held:
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    engine: Contexts | None = None
    handles: int = 0


_LOCK = threading.RLock()
"""Re-entrant, as those of the pool and the leases: a forgotten handle may be collected, and so closed, while this thread holds it."""
_HELD: dict[Hashable, _Held] = {}


def bundle_key(bundle_path: Path) -> tuple[str, int, int, int]:
    """What tells one state of a bundle from another: its resolved path and accel.json's inode, mtime (ns) and size.

    Raises:
        BundleMissing: there is no accel.json.
    """
    resolved = bundle_path.expanduser().resolve()
    try:
        state = (resolved / "accel.json").stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleMissing(f"there is no engine folder at {bundle_path}", remedy="accel export MODEL --to onnx") from error
    return str(resolved), state.st_ino, state.st_mtime_ns, state.st_size


def acquire(key: Hashable, make: Callable[[], Contexts]) -> Contexts:
    """The engine of `key`, made by the first that asks; others that ask meanwhile wait for it. Pair it with one release."""
    with _LOCK:
        held = _HELD.setdefault(key, _Held())
        held.handles += 1
    try:
        with held.lock:
            if held.engine is None:
                held.engine = make()
            return held.engine
    except BaseException:
        release(key)
        raise


def release(key: Hashable) -> None:
    """Give one handle back; the last one closes the engine."""
    with _LOCK:
        held = _HELD[key]
        held.handles -= 1
        if held.handles:
            return
        del _HELD[key]
    if held.engine is not None:
        held.engine.close()


def count() -> int:
    """How many engines are held now."""
    return len(_HELD)
