"""Ed25519 signatures of a bundle: what they cover, who is trusted, and what is refused."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_samples import checkpoint_of, entry_of, golden_of
from resealed import reseal

from accel import engines
from accel.api import bundling
from accel.engines import Bundle, signing, trust, verified
from accel.errors import ArtifactError, ConfigError, CorruptArtifact, MissingExtra, UntrustedArtifact, UsageError

serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    signing.generate(tmp_path / "release.pem")
    return tmp_path / "release.pem"


@pytest.fixture
def signed(bundle: Bundle, key: Path) -> Bundle:
    signing.sign(bundle.path, bundle.manifest_sha256, key)
    return bundle


def code_of(bundle: Bundle) -> Any:
    return dataclasses.replace(bundle.entries[0], name="torchscript-fp32", format="torchscript")


def trusting(monkeypatch: pytest.MonkeyPatch, *keys: str | Path) -> None:
    monkeypatch.setenv("ACCEL_TRUSTED_KEYS", os.pathsep.join(map(str, keys)))


def test_a_key_pair_is_two_files_and_the_private_one_is_its_owners_alone(tmp_path: Path) -> None:
    public, raw = signing.generate(tmp_path / "keys" / "release.pem")
    assert public == tmp_path / "keys" / "release.pub.pem"
    assert stat.S_IMODE((tmp_path / "keys" / "release.pem").stat().st_mode) == 0o600
    assert signing.read_public_key(public, "the test names") == raw
    with pytest.raises(UsageError, match="a key is never overwritten"):
        signing.generate(tmp_path / "keys" / "release.pem")


def test_code_runs_under_a_signature_by_a_trusted_key_in_either_spelling(
    signed: Bundle, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UntrustedArtifact, match=r"its signer ed25519:[0-9a-f]{16} is not in ACCEL_TRUSTED_KEYS"):
        trust.demand_engine(signed, code_of(signed))
    public = key.with_name("release.pub.pem")
    for spelling in (public, base64.b64encode(signing.read_public_key(public, "")).decode()):
        trusting(monkeypatch, spelling)
        trust.demand_engine(signed, code_of(signed))
        trust.demand_module(signed)
        assert str(trust.vouched_by(signed)).startswith("signed by ed25519:")


def test_another_key_than_the_trusted_one_is_not_enough(signed: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, _ = signing.generate(tmp_path / "other.pem")
    third, _ = signing.generate(tmp_path / "third.pem")
    trusting(monkeypatch, other, third)
    with pytest.raises(UntrustedArtifact, match="is not in ACCEL_TRUSTED_KEYS"):
        trust.demand_engine(signed, code_of(signed))
    trusting(monkeypatch, other, tmp_path / "release.pub.pem", "")
    trust.demand_engine(signed, code_of(signed))


def append(path: Path) -> None:
    with open(path, "ab") as stream:
        stream.write(b" ")


COVERED: dict[str, Callable[[Path], object]] = {
    "accel.json": lambda path: reseal(path / "accel.json", lambda data: data.update(labels=["x"])),
    "accel.json's spelling": lambda path: append(path / "accel.json"),
    "the engine": lambda path: append(path / "onnx-fp32/model.onnx"),
    "the weights": lambda path: append(path / "checkpoint/weights.safetensors"),
    "the checkpoint's description": lambda path: append(path / "checkpoint/checkpoint.json"),
    "the golden samples": lambda path: golden_of(seed=1).write(path / "golden.npz"),
}


@pytest.mark.parametrize("what", COVERED)
def test_a_signature_covers_all_that_is_executed_and_what_it_is_held_against(signed: Bundle, key: Path, what: str) -> None:
    COVERED[what](signed.path)
    assert bundling.check(signed.path, key.with_name("release.pub.pem")).problem is not None


def test_it_does_not_cover_the_records_of_a_machine(signed: Bundle, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "checked_file", lambda bundle, entry: bundle.file(entry))  # the engine of these tests is no ONNX file
    verified.record(signed.path, "a", {"passed": True, "metric": "top1", "top1": 95.1})
    found = bundling.check(signed.path, key.with_name("release.pub.pem"))
    assert found.problem is None
    assert {row["file"]: row["covered"] for row in found.rows} == {
        "accel.json": True,
        "golden.npz": True,
        "checkpoint/weights.safetensors": True,
        "checkpoint/checkpoint.json": True,
        "onnx-fp32/model.onnx": True,
        "verified.json": False,
        "accel.sig": False,
    }


def test_a_signature_is_of_one_accel_json_only(signed: Bundle, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trusting(monkeypatch, key.with_name("release.pub.pem"))
    other = engines.create(tmp_path / "other.accel", checkpoint_of(tmp_path / "other", seed=1), golden_of())
    shutil.copyfile(signed.path / "accel.sig", other.path / "accel.sig")
    with pytest.raises(CorruptArtifact, match=r"signs an accel\.json of SHA-256"):
        trust.demand_module(other)
    data = json.loads((other.path / "accel.sig").read_text())
    (other.path / "accel.sig").write_text(json.dumps({**data, "accel_json_sha256": other.manifest_sha256}))
    with pytest.raises(CorruptArtifact, match=r"says that ed25519:[0-9a-f]+ signed this accel\.json, and that key did not") as caught:
        trust.demand_module(other)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.update(algorithm="none"), "is signed with 'none'; this accel checks ed25519"),
        (lambda data: data.update(signature=""), "'signature'"),
        (lambda data: data.update(public_key="AAAA"), "'public_key'"),
        (lambda data: data.update(schema_version=2), "'schema_version'"),
        (lambda data: data.update(signer="mallory"), "unknown key 'signer'"),
        (lambda data: data.pop("signature"), "lacks the key 'signature'"),
    ],
)
def test_a_damaged_signature_is_refused(signed: Bundle, change: Callable[[dict[str, Any]], Any], said: str) -> None:
    data = json.loads((signed.path / "accel.sig").read_text())
    change(data)
    (signed.path / "accel.sig").write_text(json.dumps(data))
    with pytest.raises(CorruptArtifact, match=r"accel\.sig") as caught:
        signing.read(signed.path)
    assert said in caught.value.message


def test_the_user_who_exported_it_needs_no_signature_and_a_key_means_nothing_to_an_unsigned_one(
    bundle: Bundle, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusting(monkeypatch, key.with_name("release.pub.pem"))
    with pytest.raises(UntrustedArtifact, match="it is not signed"):
        trust.demand_engine(bundle, code_of(bundle))
    trust.record(bundle)
    assert trust.vouched_by(bundle) == "exported by this user"


def test_an_engine_that_is_added_ends_the_signature(signed: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engines.add(signed.path, entry_of(tmp_path / "new", b"new"), tmp_path / "new")
    assert signing.read(signed.path) is None
    assert "is no longer signed" in caplog.text


def test_keys_that_cannot_be_read_are_a_mistake_in_the_setting(signed: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryptography.hazmat.primitives.asymmetric import x25519

    pem, public = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "other.pub.pem").write_bytes(x25519.X25519PrivateKey.generate().public_key().public_bytes(pem, public))
    (tmp_path / "text").write_text("no key")
    for wrong, said in (
        ("absent.pem", "cannot be read as a public key"),
        ("text", "cannot be read"),
        ("other.pub.pem", "another kind of key"),
    ):
        trusting(monkeypatch, tmp_path / wrong)
        with pytest.raises(ConfigError, match=said) as caught:
            trust.demand_engine(signed, code_of(signed))
        assert caught.value.exit_code == 2
        assert "ACCEL_TRUSTED_KEYS names" in caught.value.message


def test_a_key_that_cannot_sign_says_how_to_make_one(bundle: Bundle, key: Path, tmp_path: Path) -> None:
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    (tmp_path / "locked.pem").write_bytes(
        private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked),
    )
    for wrong, said in (
        ("locked.pem", r"is encrypted\n.*openssl pkey -in"),
        ("release.pub.pem", "cannot be read as a private key"),
        ("none.pem", "accel bundle keygen FILE"),
    ):
        with pytest.raises(UsageError, match=said):
            signing.sign(bundle.path, bundle.manifest_sha256, tmp_path / wrong)
    assert signing.read(bundle.path) is None


def test_without_the_package_the_extra_is_named_and_data_still_runs(
    signed: Bundle, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    trust.demand_engine(signed, signed.entries[0])
    trusting(monkeypatch, key.with_name("release.pub.pem"))
    for step in (lambda: trust.demand_engine(signed, code_of(signed)), lambda: signing.generate(tmp_path / "new.pem")):
        with pytest.raises(MissingExtra, match=r"pip install 'accel-engines\[sign\]'"):
            step()


def test_a_link_in_the_place_of_a_signature_is_refused(signed: Bundle, tmp_path: Path) -> None:
    (signed.path / "accel.sig").rename(tmp_path / "accel.sig")
    (signed.path / "accel.sig").symlink_to(tmp_path / "accel.sig")
    with pytest.raises(ArtifactError, match="a link that leaves the bundle"):
        signing.read(signed.path)
