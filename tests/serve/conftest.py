"""Servers that several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_http import Running, ScriptedEngine, scripted, serving


@pytest.fixture(scope="module")
def adding() -> Iterator[Running]:
    """A server of the scripted engine, for all tests of a module."""
    with serving(scripted(ScriptedEngine())) as running:
        yield running


@pytest.fixture(scope="module")
def tiny_server(tiny_exported: Path) -> Iterator[Running]:
    """The tiny bundle behind HTTP as `accel serve` puts it there."""
    import accel
    from accel.api.serving import served
    from accel.engines import Bundle

    with accel.load(tiny_exported, device="cpu") as engine, serving(served(Bundle.open(tiny_exported), engine)) as running:
        yield running
