"""Hand a bundle on: packed into one file, signed, and held against what it says of itself."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accel.api import bundles
from accel.api.settings import resolve
from accel.engines import Bundle, archive, commit, signing, trust, tuned, verified
from accel.engines.bundle import ARCHIVE_SUFFIX
from accel.engines.manifest import GOLDEN_FILE, MANIFEST_FILE, REFERENCE_FILE, SIGNATURE_FILE, TUNED_FILE, VERIFIED_FILE
from accel.errors import ArtifactError, UntrustedArtifact, UsageError
from accel.files import cache_dir, scratch_folder, sha256_file


@dataclasses.dataclass(frozen=True)
class Packed:
    """An archive that was written: its path, SHA-256 and size in bytes."""

    path: Path
    sha256: str
    size: int


@dataclasses.dataclass(frozen=True)
class Checked:
    """What `check` found.

    Attributes:
        rows: a file a row: `file`, `bytes`, `covered` (whether a signature covers it), `state` (`whole` or `damaged`) and `reason`.
        signer: who signed it, in words; None if that is not as it should be.
        problem: the gravest of what is wrong; None if nothing is.
    """

    rows: list[dict[str, Any]]
    signer: str | None
    problem: ArtifactError | None


def pack(bundle: Path | str, out: Path | None = None, *, force: bool = False) -> Packed:
    """Write a bundle into one file, `NAME.accel.zip` beside it; the same contents give the same bytes.

    Raises:
        UsageError: the file exists, and not `force`. ArtifactError: the bundle is damaged. BundleMissing: there is none. DiskFull.
    """
    opened = _open(bundle)
    folder = opened.path if opened.path.name else opened.path.resolve()  # `.` has no name
    path = out or folder.with_name(folder.name.removesuffix(".accel") + ARCHIVE_SUFFIX)
    if not path.name.endswith(ARCHIVE_SUFFIX):
        raise UsageError(f"{path} does not end in {ARCHIVE_SUFFIX}, as a packed bundle does", remedy=f"--out NAME{ARCHIVE_SUFFIX}")
    archive.pack(opened, path, force=force)
    return Packed(path, sha256_file(path), path.stat().st_size)


def unpack(path: Path, out: Path | None = None, *, force: bool = False) -> Bundle:
    """Make a folder of a packed bundle, `NAME.accel` beside it; it is there whole or not at all.

    Raises:
        UsageError: the folder exists, and not `force`. ArtifactError: the archive is damaged or hostile. BundleMissing: there is none.
    """
    return archive.unpack(path, out or path.with_name(path.name.removesuffix(ARCHIVE_SUFFIX) + ".accel"), force=force)


def sign(bundle: Path | str, key: Path) -> signing.Signature:
    """Sign accel.json of a bundle that is whole, with the Ed25519 key in the PEM file `key`.

    Raises:
        ArtifactError: the bundle is damaged. UsageError: `key` is no such key. MissingExtra: `cryptography` is absent.
    """
    path = _open(bundle).path
    with commit.locked(path):
        opened = Bundle.open(path)
        problem = next((error for _, error in _states(opened) if error is not None), None)
        if problem is not None:
            raise problem
        return signing.sign(path, opened.manifest_sha256, key)


def check(bundle: Path | str, key: Path | None = None) -> Checked:
    """Hold every file of a bundle or a packed one against its hash, and the signature against accel.json; nothing is run.

    Args:
        key: PEM file of the public key that must have signed it. Without it a key of ACCEL_TRUSTED_KEYS must have, if there are any.

    Raises:
        BundleMissing: there is none. ArtifactError: accel.json or the archive cannot be read. ConfigError: a key cannot.
    """
    with _unpacked(bundle) as opened:
        states = _states(opened)
        rows = [
            {
                "file": name,
                "bytes": (opened.path / name).stat().st_size if (opened.path / name).is_file() else None,
                "covered": name not in archive.OPTIONAL,
                "state": "whole" if error is None else "damaged",
                "reason": error.message if error is not None else None,
            }
            for name, error in states
        ]
        problem = next((error for _, error in states if error is not None), None)
        try:
            signer = _signer(opened, key)
        except ArtifactError as error:
            return Checked(rows, None, problem or error)
        return Checked(rows, signer, problem)


def keygen(path: Path) -> tuple[Path, bytes]:
    """Make a key pair, the private key at `path`; returns the public key's file and its 32 bytes. Raises as `signing.generate`."""
    return signing.generate(path)


def _open(bundle: Path | str) -> Bundle:
    return bundles.open_bundle(bundle, resolve({})["engines_dir"])


@contextlib.contextmanager
def _unpacked(bundle: Path | str) -> Iterator[Bundle]:
    path = Path(bundle).expanduser()
    if not (path.name.endswith(ARCHIVE_SUFFIX) and path.is_file()):
        yield _open(bundle)
        return
    with scratch_folder(cache_dir(), "verify") as scratch:
        yield archive.unpack(path, scratch / path.name.removesuffix(".zip"))


def _states(bundle: Bundle) -> list[tuple[str, ArtifactError | None]]:
    """Every file of the bundle with what is wrong with it; accel.json has been read."""
    found: list[tuple[str, ArtifactError | None]] = [(MANIFEST_FILE, None)]
    record = bundle.manifest.checkpoint
    owners: list[tuple[list[str], Callable[[], object]]] = [([GOLDEN_FILE], bundle.golden)]
    if record is not None:
        owners.append((list(record.files), lambda: bundle.checkpoint))
    owners += [(list(entry.files), lambda entry=entry: trust.checked_file(bundle, entry)) for entry in bundle.entries]  # type: ignore[misc]
    records: dict[str, Callable[[], object]] = {
        REFERENCE_FILE: bundle.reference,
        VERIFIED_FILE: lambda: verified.read(bundle.path),
        TUNED_FILE: lambda: tuned.read(bundle.path),
        SIGNATURE_FILE: lambda: signing.read(bundle.path),
    }
    owners += [([name], read) for name, read in records.items() if (bundle.path / name).is_file()]
    for names, read in owners:
        try:
            read()
        except ArtifactError as error:
            found += [(name, error) for name in names]
        else:
            found += [(name, None) for name in names]
    return found


def _signer(bundle: Bundle, key: Path | None) -> str:
    signature = signing.read(bundle.path)
    wanted = {signing.read_public_key(key, "--key names"): str(key)} if key is not None else signing.trusted_keys()
    if signature is None:
        if wanted:
            raise UntrustedArtifact(
                f"{bundle.path} is not signed, and {_named(wanted)} should have signed it",
                remedy=f"accel bundle sign {bundle.path} --key FILE, if it is yours; or get a signed one",
            )
        return "nobody"
    signing.check(bundle.path, signature, bundle.manifest_sha256)
    if signature.public_key in wanted:
        return f"{signature.key_id} ({wanted[signature.public_key]}), a trusted key"
    if wanted:
        raise UntrustedArtifact(
            f"{bundle.path} is signed by {signature.key_id}, and {_named(wanted)} should have signed it",
            remedy=f"if you trust that signer, name its public key in {signing.KEYS} or with --key",
        )
    return f"{signature.key_id}, a key that nobody named as trusted ({signing.KEYS} is empty)"


def _named(keys: dict[bytes, str]) -> str:
    return " or ".join(f"{signing.key_id(raw)} ({where})" for raw, where in keys.items())
