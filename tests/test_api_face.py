"""The public face: what `import accel` offers."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import accel
import accel.api


def test_the_names_are_sorted_and_all_there() -> None:
    assert accel.__all__ == sorted(accel.__all__)
    assert set(accel.__all__) <= set(dir(accel))
    for name in ("export", "load", "predict", "train"):
        assert getattr(accel, name) is getattr(accel.api, name)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = accel.nothing
    with pytest.raises(AttributeError, match="nothing"):
        _ = accel.api.nothing


@pytest.mark.parametrize("name", ["bench", "verify"])
def test_a_name_that_is_also_a_room_stays_callable_once_the_room_is_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module(f"accel.{name}")
    assert importlib.import_module(f"accel.{name}") is getattr(accel, name)
    monkeypatch.setitem(accel.api.__dict__, name, lambda *given, **named: (given, named))
    assert getattr(accel, name)("resnet18", device="cpu") == (("resnet18",), {"device": "cpu"})


def test_importing_accel_takes_less_than_50_ms() -> None:
    code = "import time; a = time.perf_counter(); import accel; print(time.perf_counter() - a)"
    best = min(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(3))
    assert best < 0.05
