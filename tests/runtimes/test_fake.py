"""The scripted runtime does what it is told and remembers what it was asked."""

from __future__ import annotations

import numpy as np
import pytest

from accel import device, runtimes
from accel.runtimes import fake
from accel.types import EngineSource, TensorSpec, Variant

SOURCE = EngineSource(Variant("fake", "fp32"), "cpu", (TensorSpec("x", ("batch", 2)),), (TensorSpec("y", ("batch", 3)),), batch=2)


def test_from_the_table_it_answers_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(runtimes.RUNTIMES, "fake", fake.INFO)
    runtime = runtimes.create(SOURCE)
    runtime.open(None)
    results = device.Staging(runtime.home, None).run(runtime, {"x": np.ones((2, 2))})
    np.testing.assert_array_equal(results["y"], np.zeros((2, 3), np.float32))
    assert runtime.facts["precision"] == "fp32"


def test_a_script_answers_and_calls_are_recorded() -> None:
    runtime = fake.Fake(SOURCE, answer=lambda given: {"y": given["x"][:, :1].repeat(3, axis=1)}, facts={"recompiles": 1})
    runtime.open(None)
    binding = runtime.prepare({"x": device.to_device(np.array([[1, 2], [3, 4]]), "float32", "cpu", None)})
    runtime.enqueue(binding)
    np.testing.assert_array_equal(runtime.output(binding)["y"].owner, [[1, 1, 1], [3, 3, 3]])
    runtime.close()
    assert runtime.calls == ["open", "prepare", "enqueue", "output", "close"]
    assert runtime.facts["recompiles"] == 1


def test_it_fails_where_the_script_says() -> None:
    runtime = fake.Fake(SOURCE, fail={"enqueue": MemoryError("scripted")})
    runtime.open(None)
    with pytest.raises(MemoryError, match="scripted"):
        runtime.enqueue(runtime.home)
