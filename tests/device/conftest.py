"""The driver of host memory, in place of the real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_cuda import FakeDriver, installed


@pytest.fixture
def fake_driver() -> Iterator[FakeDriver]:
    with installed() as fake:
        yield fake
