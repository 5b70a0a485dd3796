"""`accel bundle pack`, `unpack`, `sign`, `verify`, `keygen`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from accel.cli.options import Format, FormatOption

COLUMNS = ("file", "bytes", "covered", "state")
"""Of a table; what is wrong with the first damaged file is told after it, and of each in the other formats."""

app = typer.Typer(help="Hand a bundle on: pack it into one file, sign it, verify it.", no_args_is_help=True, rich_markup_mode=None)

NameArgument = Annotated[str, typer.Argument(metavar="BUNDLE", help="A folder NAME.accel, or the name of a model in the engines folder.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


@app.command()
def pack(
    bundle: NameArgument,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default NAME.accel.zip beside the bundle.")] = None,
    force: ForceOption = False,
) -> None:
    """Write a bundle into one file; equal bundles give equal bytes."""
    from accel.api import bundling

    done = bundling.pack(bundle, out, force=force)
    print(f"{done.path}\n{done.size} bytes, SHA-256 {done.sha256}")


@app.command()
def unpack(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="A file NAME.accel.zip.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default NAME.accel beside the archive.")] = None,
    force: ForceOption = False,
) -> None:
    """Make a folder of a packed bundle, every file held against its hash first."""
    from accel.api import bundling

    print(bundling.unpack(archive, out, force=force).path)


@app.command()
def sign(
    bundle: NameArgument,
    key: Annotated[Path, typer.Option(metavar="FILE", help="PEM file of an Ed25519 private key.")],
) -> None:
    """Sign a bundle; it covers all that is executed."""
    from accel.api import bundling

    print(f"signed by {bundling.sign(bundle, key).key_id}")


@app.command()
def verify(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="A folder NAME.accel, a packed one, or the name of a model.")],
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="Public key that must have signed it; PEM.")] = None,
    format: FormatOption = Format.table,
) -> None:
    """Hold every file against its hash, and say who signed the bundle; nothing is run."""
    from accel.api import bundling
    from accel.cli.output import print_notes, print_rows

    found = bundling.check(bundle, key)
    print_rows(found.rows, COLUMNS if format is Format.table else (*COLUMNS, "reason"), format)
    print_notes([f"signed by {found.signer}"] if found.signer else [])
    if found.problem is not None:
        raise found.problem


@app.command()
def keygen(
    key: Annotated[Path, typer.Argument(metavar="FILE", help="Where the private key goes; the public one is FILE.pub.pem.")],
) -> None:
    """Make a key pair for `sign` and ACCEL_TRUSTED_KEYS."""
    import base64

    from accel.api import bundling
    from accel.engines.signing import key_id

    public, raw = bundling.keygen(key)
    print(f"{key_id(raw)}\nprivate key  {key}\npublic key   {public}, or {base64.b64encode(raw).decode()}")
