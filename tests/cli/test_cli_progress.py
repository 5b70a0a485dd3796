"""Progress: a bar on a terminal, nothing off one."""

from __future__ import annotations

import io
import sys

import pytest

from accel.cli.progress import drawn
from accel.progress import silent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_off_a_terminal_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with drawn() as progress:
        assert progress is silent


def test_on_a_terminal_each_step_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with drawn() as progress:
        progress("fetch cifar10", 1, 4)
        progress("fetch cifar10", 4, 4)
        progress("bench resnet18", 0)
    text = terminal.getvalue()
    assert "fetch cifar10" in text
    assert "100%" in text
    assert "bench resnet18" in text


def test_nothing_is_repainted_between_two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    import threading

    monkeypatch.setattr(sys, "stderr", Terminal())
    before = threading.active_count()
    with drawn() as progress:
        progress("bench resnet18", 1, 3)
        assert threading.active_count() == before


def test_a_task_of_unknown_length_shows_that_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with drawn() as progress:
        progress("build tensorrt-fp16", 0.0, None)
        progress("build tensorrt-fp16", 61.0, None)
    assert "build tensorrt-fp16" in terminal.getvalue()
    assert "0:00:00" in terminal.getvalue()
