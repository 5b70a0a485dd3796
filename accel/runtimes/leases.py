"""Heavy things that several runtimes of a process share: made by the first that asks, given back with the last."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any


@dataclasses.dataclass
class _Shared:
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    made: Any = None
    users: int = 0


class Leases:
    """Values by key; each is kept as long as somebody holds a lease on it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._shared: dict[Hashable, _Shared] = {}

    def __len__(self) -> int:
        return len(self._shared)

    @contextlib.contextmanager
    def held(self, key: Hashable, make: Callable[[], Any]) -> Iterator[Any]:
        """The value of `key`, made by the first that asks; others that ask meanwhile wait for it.

        Raises:
            What `make` raises; the next that asks tries again.
        """
        with self._lock:
            shared = self._shared.setdefault(key, _Shared())
            shared.users += 1
        try:
            with shared.lock:
                if shared.made is None:
                    shared.made = make()
            yield shared.made
        finally:
            with self._lock:
                shared.users -= 1
                if not shared.users:
                    del self._shared[key]
