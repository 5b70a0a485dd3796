from __future__ import annotations

import gc
import types

import bench_scripted
import pytest

from accel.bench.settings import BenchSettings
from accel.engines import Bundle
from accel.runtimes import table as runtime_table


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path) -> bench_scripted.Script:
    """Scripted runtimes in the place of the table's, and a cache folder of the test's own."""
    fresh = bench_scripted.Script()
    monkeypatch.setattr(bench_scripted, "script", fresh)
    for name in list(runtime_table.RUNTIMES):
        monkeypatch.delitem(runtime_table.RUNTIMES, name)
    for name, row in bench_scripted.table().items():
        monkeypatch.setitem(runtime_table.RUNTIMES, name, row)
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "cache"))
    # The suite's own objects, gone through before every block, took most of the time of these tests; test_bench_measure has the blocks.
    # For what measures alone, and once a test: workers run in threads here, and what fakes a driver needs a real collection.
    collector = {name: getattr(gc, name) for name in dir(gc)} | {"collect": lambda *generation: 0}
    monkeypatch.setattr("accel.bench.measure.gc", types.SimpleNamespace(**collector))
    return fresh


@pytest.fixture
def data(tmp_path) -> str:
    return bench_scripted.write_data(tmp_path / "test.npz")


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    return bench_scripted.make_bundle(tmp_path, "")


@pytest.fixture
def settings(data) -> BenchSettings:
    return BenchSettings(data=data, command="accel bench tiny")
