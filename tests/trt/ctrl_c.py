"""A real Ctrl-C in the middle of a build: the signal, not an exception that a test raises in its place."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator


class Press:
    """`hold` is called by the builder's thread: at the first call the signal is sent, and it goes on a moment after that was heard."""

    def __init__(self) -> None:
        self.under_way, self.heard = threading.Event(), threading.Event()

    def hold(self, *told: object, **named: object) -> None:
        if not self.under_way.is_set():
            self.under_way.set()
            self.heard.wait(10)
            time.sleep(0.1)

    def send(self) -> None:
        if self.under_way.wait(20):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def interrupt(self, *told: object) -> None:
        self.heard.set()
        raise KeyboardInterrupt


@contextlib.contextmanager
def pressed() -> Iterator[Press]:
    """Inside the block Ctrl-C is what it is at a prompt, and one is coming."""
    press = Press()
    before = signal.signal(signal.SIGINT, press.interrupt)
    thread = threading.Thread(target=press.send, name="Ctrl-C")
    thread.start()
    try:
        yield press
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
