"""How a long task tells what it has done, without knowing who draws it (the command line does)."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with the name of the step, how much is done, and the total (None while unknown), in the step's own unit."""

    def __call__(self, step: str, done: float, total: float | None = None) -> None: ...


def silent(step: str, done: float, total: float | None = None) -> None:
    """The Progress that draws nothing."""
