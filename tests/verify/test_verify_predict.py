from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from accel.errors import UsageError
from accel.runtimes import fake, table
from accel.types import EngineSource, TensorSpec, Variant
from accel.verify import parity, predict
from accel.verify.metric import resolve

IMAGE = TensorSpec("input", ("batch", 3, 2, 2))
LOGITS = TensorSpec("logits", ("batch", 2))


@dataclasses.dataclass
class Listed:
    """Samples in a list."""

    items: list[np.ndarray]
    name: str = "listed"
    sha256: str = "0" * 64
    classes: tuple[str, ...] = ()
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.items[index]


def sums(inputs):
    rows = next(iter(inputs.values())).reshape(len(next(iter(inputs.values()))), -1)
    return {"logits": np.stack([rows.sum(1), -rows.sum(1)], axis=1).astype(np.float32)}


class Summing(fake.Fake):
    def __init__(self, source):
        super().__init__(source, answer=sums)


@pytest.fixture
def source(monkeypatch):
    monkeypatch.setitem(table.RUNTIMES, "fake", dataclasses.replace(fake.INFO, factory=f"{__name__}:Summing"))
    return EngineSource(Variant("fake", "fp32"), "cpu", (IMAGE,), (LOGITS,), batch=4)


@pytest.mark.parametrize("shapes", [[(3, 2, 1)], [(3, 2, 2), (3, 4, 4)], [(1, 2, 2)]])
def test_samples_of_another_shape_are_refused_by_both_shapes(source, shapes):
    samples = Listed([np.zeros(shape, np.float32) for shape in shapes])

    with pytest.raises(UsageError, match=f"listed holds samples of {'×'.join(map(str, shapes[-1]))}, and the model's input takes 3×2×2"):
        predict.logits(source, samples, None)


def test_the_last_partial_batch_is_included(source):
    samples = Listed([np.full((3, 2, 2), index, np.float32) for index in range(10)])
    told = []

    found = predict.logits(source, samples, None, lambda step, done, total=None: told.append((done, total)))

    assert found.dtype == np.float32
    assert found.tolist() == [[12.0 * index, -12.0 * index] for index in range(10)]
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_uint8_images_are_prepared_and_float32_samples_taken_as_they_are(source):
    images = Listed([np.full((2, 2, 3), 51, np.uint8)] * 3)

    prepared = predict.logits(source, images, lambda batch: (batch / np.float32(255)).transpose(0, 3, 1, 2).astype(np.float32))

    assert prepared[:, 0] == pytest.approx([12 * 0.2] * 3)


def test_uint8_images_of_a_model_without_preprocessing_are_refused(source):
    with pytest.raises(UsageError, match="uint8"):
        predict.logits(source, Listed([np.zeros((2, 2, 3), np.uint8)]), None)
    with pytest.raises(UsageError, match="float64"):
        predict.logits(source, Listed([np.zeros((3, 2, 2))]), None)
    with pytest.raises(UsageError, match="no samples"):
        predict.logits(source, Listed([]), None)


def test_parity_runs_every_golden_sample_at_the_engines_batch(source):
    from accel.engines import Golden

    inputs = np.random.default_rng(0).standard_normal((9, 3, 2, 2)).astype(np.float32)
    golden = Golden(None, {"input": inputs}, sums({"input": inputs}))
    wrong = Golden(None, {"input": inputs}, {"logits": golden.outputs["logits"] + np.eye(9, 2, dtype=np.float32)})

    assert parity.run(source, golden)["status"] == "passed"
    assert parity.run(source, wrong)["status"] == "failed"


def test_parity_is_asked_with_one_thread_and_the_process_keeps_its_own(source, monkeypatch):
    from accel.engines import Golden

    torch, seen = pytest.importorskip("torch"), []

    class Asked(Summing):
        def __init__(self, source):
            seen.append((source.threads, torch.get_num_threads()))
            super().__init__(source)

    monkeypatch.setattr(f"{__name__}.Summing", Asked)
    inputs = {"input": np.ones((2, 3, 2, 2), np.float32)}
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        parity.run(source, Golden(None, inputs, sums(inputs)))
        assert seen == [(1, 1)]
        assert torch.get_num_threads() == 5
    finally:
        torch.set_num_threads(before)


def test_fp16_on_a_cpu_is_compared_on_every_core_and_in_order(source, monkeypatch):
    from accel.engines import Golden

    monkeypatch.setattr(parity.os, "cpu_count", lambda: 3)
    slow = dataclasses.replace(source, variant=Variant("fake", "fp16"), parity_only=True)
    inputs = {"input": np.random.default_rng(0).standard_normal((9, 3, 2, 2)).astype(np.float32)}
    golden = Golden(None, inputs, sums(inputs))
    backwards = Golden(None, inputs, {"logits": golden.outputs["logits"][::-1].copy()})

    assert [len(share["input"]) for share in parity._shares(slow, inputs)] == [4, 4, 1]
    assert [len(share["input"]) for share in parity._shares(source, inputs)] == [9]
    assert parity.run(slow, golden)["status"] == "passed"
    assert parity.run(slow, backwards)["status"] == "failed"


def test_a_metric_is_named_by_module_and_function():
    assert resolve("top1") is None
    assert resolve("statistics:mean") is not None


@pytest.mark.parametrize("name", ["accuracy", "no_such_module:fn", "statistics:no_such_function", "math:pi", ":fn"])
def test_a_name_that_is_no_metric_is_refused(name):
    with pytest.raises(UsageError):
        resolve(name)
