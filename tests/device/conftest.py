"""The driver of host memory, in place of the real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_cuda import FakeCore, FakeDriver

from accel.device import driver


@pytest.fixture
def fake_driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    fake = FakeDriver()
    monkeypatch.setattr(driver, "bindings", lambda: fake)
    monkeypatch.setattr(driver, "require", lambda module, extra: FakeCore)
    driver._prepared.cache_clear()
    yield fake
    driver._prepared.cache_clear()
