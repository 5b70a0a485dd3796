"""`accel.sig`: an Ed25519 signature of accel.json, which names the SHA-256 of all that is executed.

Covered are accel.json itself and through it the engines, the checkpoint and the golden samples. Not covered are the records that this
machine writes: verified.json, measured.json, tuned.json and reference.npz.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from accel.engines import paths, strict
from accel.engines.manifest import SIGNATURE_FILE
from accel.errors import ConfigError, CorruptArtifact, UsageError
from accel.files import sha256_bytes, write_text
from accel.optional import require

KEYS = "ACCEL_TRUSTED_KEYS"
"""The environment variable with the keys whose signatures are trusted: paths of PEM files, or raw public keys in base64, separated as
folders in PATH are."""

ALGORITHM = "ed25519"
_PURPOSE = b"accel bundle, signature version 1\n"
"""Signed before the hash, so that nothing signed for another purpose passes here."""

_RAW_KEY = re.compile(r"[A-Za-z0-9+/]{43}=")
_REMEDY = "sign it again (accel bundle sign), or remove accel.sig"


def _is_base64_of(size: int) -> strict.Kind:
    def is_base64(value: Any) -> bool:
        try:
            return isinstance(value, str) and len(base64.b64decode(value, validate=True)) == size
        except (binascii.Error, ValueError):
            return False

    return is_base64


_FILE = {
    "schema_version": strict.is_schema_version_1,
    "algorithm": strict.is_text,
    "public_key": _is_base64_of(32),
    "accel_json_sha256": strict.is_sha256,
    "signature": _is_base64_of(64),
}


@dataclasses.dataclass(frozen=True)
class Signature:
    """What `accel.sig` says.

    Attributes:
        public_key: 32 raw bytes; whose they are is for the reader to know.
        manifest_sha256: of the bytes of the accel.json that was signed.
        signature: 64 raw bytes.
    """

    public_key: bytes
    manifest_sha256: str
    signature: bytes

    @property
    def key_id(self) -> str:
        """Short name of the key, as `ed25519:0f3a…` with 16 hexadecimal digits of the key's SHA-256."""
        return key_id(self.public_key)


def key_id(public_key: bytes) -> str:
    return f"{ALGORITHM}:{sha256_bytes(public_key)[:16]}"


def read(bundle_path: Path) -> Signature | None:
    """The signature of the bundle, not yet checked; None where there is none.

    Raises:
        CorruptArtifact: the file cannot be read.
    """
    file = bundle_path / SIGNATURE_FILE
    if not file.is_file():
        return None
    paths.demand_inside(file, bundle_path, _REMEDY)
    data = strict.check_keys(strict.read_object(file, _REMEDY), _FILE, str(file), _REMEDY)
    if data["algorithm"] != ALGORITHM:
        raise CorruptArtifact(f"{file} is signed with {data['algorithm']!r}; this accel checks {ALGORITHM}", remedy=_REMEDY)
    raw = {key: base64.b64decode(data[key]) for key in ("public_key", "signature")}
    return Signature(raw["public_key"], data["accel_json_sha256"], raw["signature"])


def check(bundle_path: Path, signature: Signature, manifest_sha256: str) -> None:
    """Hold `signature` against the bundle's accel.json; whether its key is to be trusted is another question.

    Raises:
        CorruptArtifact: it is of another accel.json, or not by the key that it names. MissingExtra: `cryptography` is absent.
    """
    file = bundle_path / SIGNATURE_FILE
    if signature.manifest_sha256 != manifest_sha256:
        raise CorruptArtifact(
            f"{file} signs an accel.json of SHA-256 {signature.manifest_sha256}; the one here has {manifest_sha256}",
            remedy=f"copy the whole bundle again from where it came; if you changed it, {_REMEDY}",
        )
    ed25519, exceptions = _ed25519(), require("cryptography.exceptions", extra="sign")
    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(signature.public_key)
        key.verify(signature.signature, _message(manifest_sha256))
    except (exceptions.InvalidSignature, ValueError) as error:
        raise CorruptArtifact(
            f"{file} says that {signature.key_id} signed this accel.json, and that key did not",
            remedy=f"copy the whole bundle again from where it came; if it is yours, {_REMEDY}",
        ) from error


def trusted_signer(bundle_path: Path, manifest_sha256: str) -> str | None:
    """The key of ACCEL_TRUSTED_KEYS that signed this accel.json, as `ed25519:0f3a… (release.pub.pem)`; None if none did.

    Raises:
        CorruptArtifact: the signature is unreadable or wrong. ConfigError: ACCEL_TRUSTED_KEYS cannot be read.
        MissingExtra: `cryptography` is absent.
    """
    trusted = trusted_keys()
    signature = read(bundle_path) if trusted else None
    if signature is None or signature.public_key not in trusted:
        return None
    check(bundle_path, signature, manifest_sha256)
    return f"{signature.key_id} ({trusted[signature.public_key]})"


def standing(bundle_path: Path) -> str:
    """How the bundle stands with signatures when no trusted one was found, for a message."""
    signature = read(bundle_path)
    return "it is not signed" if signature is None else f"its signer {signature.key_id} is not in {KEYS}"


def trusted_keys() -> dict[bytes, str]:
    """The public keys in ACCEL_TRUSTED_KEYS → where each came from.

    Raises:
        ConfigError: one is no key. MissingExtra: one is a PEM file, and `cryptography` is absent.
    """
    found = {}
    for number, item in enumerate(filter(None, os.environ.get(KEYS, "").split(os.pathsep)), start=1):
        if _RAW_KEY.fullmatch(item):
            found[base64.b64decode(item)] = f"number {number} of {KEYS}"
        else:
            found[read_public_key(Path(item).expanduser(), f"{KEYS} names")] = item
    return found


def read_public_key(path: Path, who: str) -> bytes:
    """The 32 raw bytes of the PEM file `path`; `who` begins the message of an error.

    Raises:
        ConfigError: there is none. MissingExtra: `cryptography` is absent.
    """
    ed25519, serialization = _ed25519(), require("cryptography.hazmat.primitives.serialization", extra="sign")
    exceptions = require("cryptography.exceptions", extra="sign")
    remedy = "name the PEM file of an Ed25519 public key, as `accel bundle keygen` writes it, or its 32 bytes in base64"
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, exceptions.UnsupportedAlgorithm) as error:
        raise ConfigError(f"{who} {path}, which cannot be read as a public key: {error}", remedy=remedy) from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise ConfigError(f"{who} {path}, which holds another kind of key", remedy=remedy)
    return bytes(key.public_bytes_raw())


def sign(bundle_path: Path, manifest_sha256: str, key_path: Path) -> Signature:
    """Write `accel.sig` for the accel.json of this SHA-256, in the place of an older one; the caller holds the bundle's lock.

    Raises:
        UsageError: `key_path` is no PEM file of an Ed25519 private key. MissingExtra: `cryptography` is absent. DiskFull.
    """
    key = _private_key(key_path)
    made = Signature(bytes(key.public_key().public_bytes_raw()), manifest_sha256, bytes(key.sign(_message(manifest_sha256))))
    text = {
        "schema_version": 1,
        "algorithm": ALGORITHM,
        "public_key": base64.b64encode(made.public_key).decode("ascii"),
        "accel_json_sha256": manifest_sha256,
        "signature": base64.b64encode(made.signature).decode("ascii"),
    }
    write_text(bundle_path / SIGNATURE_FILE, strict.pretty(text))
    return made


def generate(path: Path) -> tuple[Path, bytes]:
    """Make a key pair: the private key at `path`, for its owner's eyes only, the public one beside it; returns that path and its 32 bytes.

    Raises:
        UsageError: one of the two files is there. MissingExtra: `cryptography` is absent.
    """
    ed25519, serialization = _ed25519(), require("cryptography.hazmat.primitives.serialization", extra="sign")
    public = path.with_name(f"{path.name.removesuffix('.pem')}.pub.pem")
    for file in (path, public):
        if file.exists():
            raise UsageError(f"{file} exists; a key is never overwritten", remedy="name another file")
    key = ed25519.Ed25519PrivateKey.generate()
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(secret)
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return public, bytes(key.public_key().public_bytes_raw())


def _private_key(path: Path) -> Any:
    ed25519, serialization = _ed25519(), require("cryptography.hazmat.primitives.serialization", extra="sign")
    exceptions = require("cryptography.exceptions", extra="sign")
    remedy = "make one with `accel bundle keygen FILE`, or `openssl genpkey -algorithm ed25519 -out FILE`"
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except TypeError as error:  # so cryptography says that it is encrypted
        raise UsageError(f"the key {path} is encrypted", remedy=f"decrypt it: openssl pkey -in {path} -out FILE") from error
    except (OSError, ValueError, exceptions.UnsupportedAlgorithm) as error:
        raise UsageError(f"{path} cannot be read as a private key: {error}", remedy=remedy) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise UsageError(f"{path} holds another kind of key than Ed25519", remedy=remedy)
    return key


def _message(manifest_sha256: str) -> bytes:
    return _PURPOSE + manifest_sha256.encode("ascii")


def _ed25519() -> Any:
    require("cryptography", extra="sign")
    return require("cryptography.hazmat.primitives.asymmetric.ed25519", extra="sign")
