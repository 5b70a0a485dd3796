"""File locks between processes: two exports into one bundle, two fetches of one dataset, two benches on one GPU."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from accel.files import disk_errors


@contextlib.contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`; if another process has it, say so once on stderr and wait.

    Args:
        path: the lock file, made if absent and left behind (removing it would race).
        what: what is being waited for, as in "waiting for another process to finish {what}".
    """
    import filelock  # here, because a worker in a foreign environment reads bundles and has only numpy

    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            print(f"accel: waiting for another process to finish {what} ({path})", file=sys.stderr)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
