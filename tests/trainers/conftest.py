from __future__ import annotations

import pytest
from trainable_net import TINY, pictures

from accel import datasets, trainers
from accel.trainers import Recipe


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe of a registered tiny model; the dataset is 200 train and 50 test images of noise."""
    monkeypatch.setitem(trainers.MODELS, "tiny", "trainable_net:build")
    monkeypatch.setattr(datasets, "load", lambda name, split: pictures({"train": 200, "test": 50}[split], split))
    return TINY
