"""Ctrl-C while foreign code calls back: never lost, never raised inside."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from accel import interrupts


@pytest.fixture(autouse=True)
def at_a_prompt() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def foreign(callback: Callable[[], None]) -> str:
    """What bindings do with a callback that raises: they say so and go on."""
    try:
        callback()
    except BaseException:
        return "dropped"
    return "called"


def test_an_interrupt_inside_a_callback_is_raised_at_the_blocks_end() -> None:
    found: list[str] = []
    with pytest.raises(KeyboardInterrupt), interrupts.deferred():
        found.append(foreign(lambda: signal.raise_signal(signal.SIGINT)))
        found.append("after")
    assert found == ["called", "after"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_one_nothing_is_raised_and_the_handler_is_as_it_was() -> None:
    with interrupts.deferred():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_of_the_block_is_the_interrupts_context() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, interrupts.deferred():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("of the block")
    assert isinstance(caught.value.__context__, ValueError)


def test_a_programs_own_handler_hears_it() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    with interrupts.deferred():
        signal.raise_signal(signal.SIGINT)
        assert heard == []
    assert heard == [signal.SIGINT]


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_handler_of_the_system_stays(handler: Any) -> None:
    signal.signal(signal.SIGINT, handler)
    with interrupts.deferred():
        assert signal.getsignal(signal.SIGINT) is handler


def test_another_thread_changes_no_handler() -> None:
    seen: list[Any] = []

    def work() -> None:
        with interrupts.deferred():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_where_no_handler_can_be_set_the_block_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(number: int, handler: Any) -> None:
        raise ValueError("signal only works in main thread of the main interpreter")

    ran = []
    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", refused)
        with interrupts.deferred():
            ran.append("block")
    assert ran == ["block"]


def test_a_thread_that_nobody_waits_for_is_known_until_it_ends() -> None:
    assert not interrupts.abandoned()
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    interrupts.abandon(thread)
    assert interrupts.abandoned()
    over.set()
    thread.join()
    assert not interrupts.abandoned()


TWICE = """
import atexit, sys, threading, time
from accel import cli, interrupts

def wait():
    # A builder that cannot be stopped runs on, and calls Python when the interpreter is half gone: seen to end by SIGSEGV and SIGABRT.
    thread = threading.Thread(target=time.sleep, args=(60,), daemon=True)
    thread.start()
    interrupts.abandon(thread)
    raise KeyboardInterrupt

atexit.register(print, "taken apart")
cli.app.command("wait")(wait)
print("begun")
sys.exit(cli.main(["wait"]))
"""


def test_a_command_that_leaves_one_ends_at_once_without_taking_the_interpreter_apart() -> None:
    ended = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=50, check=False)
    assert (ended.returncode, ended.stdout) == (130, "begun\n")
    assert ended.stderr == "accel: interrupted; what was recorded is kept\n"
