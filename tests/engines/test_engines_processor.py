"""Which instruction sets this machine has, as Linux tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from accel.engines import processor


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse4_2 avx512f avx2 nopl\n\nprocessor\t: 1\nflags\t\t: none\n", ("avx2", "avx512f", "sse4_2")),
        ("processor\t: 0\nFeatures\t: fp asimd sve\n", ("asimd", "fp", "sve")),
        ("processor\t: 0\n", ()),
    ],
)
def test_they_are_read_from_the_first_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, found: tuple[str, ...]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    assert processor.instructions() == found


def test_a_system_without_the_file_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "absent")
    assert processor.instructions() == ()


def test_the_machine_is_spelled_as_linux_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "ARM64")
    assert processor.machine() == "aarch64"
