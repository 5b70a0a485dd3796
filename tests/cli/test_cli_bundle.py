"""`accel bundle`: what is typed, printed and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from resealed import reseal

import accel
from accel.engines import Bundle
from accel.errors import CorruptArtifact, UntrustedArtifact
from accel.files import sha256_file

pytest.importorskip("cryptography")

Cli = Callable[..., Any]


@pytest.fixture
def keys(accel_cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`release.pem` in the working folder, and a user who exported nothing."""
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tiny.parents[1] / "another user"))
    assert accel_cli("bundle", "keygen", "release.pem").code == 0


def test_from_a_signed_bundle_to_a_stranger_who_trusts_the_key(
    accel_cli: Cli, tiny: Path, keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = np.zeros((1, 3, 8, 8), np.float32)
    assert "signed by ed25519:" in accel_cli("bundle", "sign", "tiny", "--key", "release.pem").out
    ran = accel_cli("bundle", "pack", "tiny")
    path = Path("engines/tiny.accel.zip")
    assert ran.out.splitlines()[0] == str(path)
    assert sha256_file(path) in ran.out
    with accel.load(path, device="cpu") as engine:
        right = engine(zeros)
    with pytest.raises(UntrustedArtifact, match="its signer ed25519:"):
        accel.load(path, "torchscript:fp32", device="cpu")
    monkeypatch.setenv("ACCEL_TRUSTED_KEYS", "release.pub.pem")
    with accel.load(path, "torchscript:fp32", device="cpu") as engine:
        np.testing.assert_allclose(engine(zeros), right, atol=1e-5)
    ran = accel_cli("bundle", "verify", path)
    assert (ran.code, "a trusted key" in ran.err) == (0, True)
    ran = accel_cli("bundle", "unpack", path, "--out", "out/tiny.accel")
    assert (ran.code, ran.out) == (0, "out/tiny.accel\n")
    assert Bundle.open("out/tiny.accel").manifest == Bundle.open(tiny).manifest
    ran = accel_cli("inspect", "out/tiny.accel")
    assert "trusted     yes, signed by ed25519:" in ran.out


def test_verify_says_what_is_wrong_and_ends_with_5(accel_cli: Cli, tiny: Path, keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = accel_cli("bundle", "verify", "tiny", "--format", "json")
    assert (ran.code, ran.err) == (0, "accel: signed by nobody\n")
    rows = {row["file"]: row for row in json.loads(ran.out)}
    assert rows["onnx-fp32/model.onnx"]["state"] == "whole"
    monkeypatch.setenv("ACCEL_TRUSTED_KEYS", "release.pub.pem")
    ran = accel_cli("bundle", "verify", "tiny")
    assert (ran.code, "is not signed, and ed25519:" in ran.err) == (5, True)
    accel_cli("bundle", "sign", "tiny", "--key", "release.pem")
    assert accel_cli("bundle", "verify", "tiny").code == 0
    accel_cli("bundle", "keygen", "other.pem")
    ran = accel_cli("bundle", "verify", "tiny", "--key", "other.pub.pem")
    assert (ran.code, "should have signed it" in ran.err) == (5, True)
    reseal(tiny / "accel.json", lambda data: data.update(labels=["dog"]))
    ran = accel_cli("bundle", "verify", "tiny")
    assert (ran.code, "accel.sig signs an accel.json of SHA-256" in ran.err) == (5, True)
    (tiny / "onnx-fp32/model.onnx").write_bytes(b"short")
    ran = accel_cli("bundle", "verify", "tiny")
    assert (ran.code, "(5 bytes) has SHA-256" in ran.err, "Traceback" in ran.err) == (5, True, False)
    assert "onnx-fp32/model.onnx             5       True      damaged" in ran.out


def test_a_damaged_bundle_is_neither_signed_nor_packed(accel_cli: Cli, tiny: Path, keys: None) -> None:
    (tiny / "torchscript-fp16/model.ts").unlink()
    for command in (["sign", "tiny", "--key", "release.pem"], ["pack", "tiny"]):
        ran = accel_cli("bundle", *command)
        assert (ran.code, "torchscript-fp16/model.ts" in ran.err) == (5, True), ran.err
    assert not (tiny / "accel.sig").exists()
    assert not Path("engines/tiny.accel.zip").exists()


def test_what_is_there_is_not_overwritten(accel_cli: Cli, tiny: Path) -> None:
    assert accel_cli("bundle", "pack", "tiny", "--out", "x.accel.zip").code == 0
    for command in (["pack", "tiny", "--out", "x.accel.zip"], ["unpack", "x.accel.zip", "--out", "engines/tiny.accel"]):
        ran = accel_cli("bundle", *command)
        assert (ran.code, "--force" in ran.err) == (2, True)
        assert accel_cli("bundle", *command, "--force").code == 0
    ran = accel_cli("bundle", "pack", "tiny", "--out", "x.zip")
    assert (ran.code, "does not end in .accel.zip" in ran.err) == (2, True)
    assert accel_cli("bundle", "unpack", "x.accel.zip").out == "x.accel\n"


def test_other_commands_and_a_damaged_archive_say_what_to_do(accel_cli: Cli, tiny: Path) -> None:
    accel_cli("bundle", "pack", "tiny", "--out", "x.accel.zip")
    ran = accel_cli("inspect", "x.accel.zip")
    assert (ran.code, "accel bundle unpack x.accel.zip" in ran.err) == (4, True)
    path = Path("x.accel.zip")
    path.write_bytes(path.read_bytes()[:-100])
    for command in (["bundle", "unpack", path], ["bundle", "verify", path]):
        ran = accel_cli(*command)
        assert (ran.code, "is no packed bundle, or it is damaged" in ran.err, "Traceback" in ran.err) == (5, True, False)
    with pytest.raises(CorruptArtifact, match="is no packed bundle"):
        accel.load(path, device="cpu")
    assert accel_cli("bundle", "unpack", "none.accel.zip").code == 4
    shutil.rmtree(tiny)
    assert accel_cli("bundle", "pack", "tiny").code == 4
