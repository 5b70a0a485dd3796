"""Two sets of a few images each, in every form that a source may have."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from accel.datasets import arrays, catalog

PER_BATCH = 3
NOWHERE = "http://127.0.0.1:9/archive.tar.gz"


class World:
    """Arrays of a shrunken cifar10 and cifar100, and writers of every form that a source may have."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = root / "cache"
        self.splits = {name: _random_splits(info, seed) for seed, (name, info) in enumerate(catalog.DATASETS.items())}

    def info(self, name: str) -> catalog.DatasetInfo:
        return catalog.DATASETS[name]

    def members(self, name: str) -> dict[str, bytes]:
        info = self.info(name)
        found = {}
        for split, part in info.splits.items():
            data = self.splits[name][split]
            for index, member in enumerate(part.members):
                rows = slice(index * PER_BATCH, (index + 1) * PER_BATCH)
                planes = np.ascontiguousarray(data.images[rows].transpose(0, 3, 1, 2)).reshape(PER_BATCH, -1)
                found[member] = pickle_batch(planes, data.labels[rows].tolist(), info.label_key)
        return found

    def batches(self, name: str) -> Path:
        folder = self.root / "torchvision" / self.info(name).folder
        folder.mkdir(parents=True, exist_ok=True)
        for member, data in self.members(name).items():
            (folder / member).write_bytes(data)
        return folder

    def archive(self, name: str, extra: tuple[tarfile.TarInfo, ...] = ()) -> Path:
        info = self.info(name)
        path = self.root / info.archive
        write_tar(path, {f"{info.folder}/{member}": data for member, data in self.members(name).items()}, extra)
        return path

    def npz(self, name: str) -> Path:
        folder = self.root / f"{name}-npz"
        folder.mkdir(exist_ok=True)
        for split, data in self.splits[name].items():
            np.savez(folder / f"{split}.npz", images=data.images, labels=data.labels.astype(np.int64))
        return folder

    def npm_tarball(self) -> Path:
        package = self.info("cifar10").npm
        assert package is not None
        files = {}
        for split, sheets in package.sheets.items():
            data = self.splits["cifar10"][split]
            files[f"package/{package.labels[split]}"] = json.dumps(data.labels.tolist()).encode()
            for index, sheet in enumerate(sheets):
                rows = data.images[index * PER_BATCH : (index + 1) * PER_BATCH]
                files[f"package/{sheet}"] = encode_png(rows.reshape(PER_BATCH, 1024, 3))
        path = self.root / "package.tgz"
        write_tar(path, files)
        return path


def _random_splits(info: catalog.DatasetInfo, seed: int) -> dict[str, arrays.Arrays]:
    random = np.random.default_rng(seed)
    return {
        split: arrays.Arrays(
            random.integers(0, 256, (part.images, 32, 32, 3), dtype=np.uint8),
            random.integers(0, len(info.classes), part.images, dtype=np.uint8),
        )
        for split, part in info.splits.items()
    }


def pickle_batch(planes: np.ndarray, labels: list[int], label_key: str) -> bytes:
    """Python 3's protocol 2, with the module name that Python 2's numpy wrote."""
    data = pickle.dumps({"batch_label": "a batch", label_key: labels, "data": planes, "filenames": ["a.png"]}, protocol=2)
    return data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def encode_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes], extra: tuple[tarfile.TarInfo, ...] = ()) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for member in extra:
            archive.addfile(member)
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
