"""The settings that torch keeps for a thread: the current stream and inference mode."""

from __future__ import annotations

import contextlib
from typing import Any


class ThreadScope:
    """Our stream and inference mode, current on this thread between enter() and leave(); scopes nest like brackets.

    Args:
        stream: the caller's stream on `device`; None on a CPU.
    """

    def __init__(self, torch: Any, device: str, stream: int | None) -> None:
        self._torch = torch
        self._stream = None if stream is None else torch.cuda.ExternalStream(stream, device=device)
        self._entered: contextlib.ExitStack | None = None

    def enter(self) -> None:
        if self._entered is None:
            stack = contextlib.ExitStack()
            if self._stream is not None:
                stack.enter_context(self._torch.cuda.stream(self._stream))
            stack.enter_context(self._torch.inference_mode())
            self._entered = stack

    def leave(self) -> None:
        if self._entered is not None:
            self._entered.close()
            self._entered = None
