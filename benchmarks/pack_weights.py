"""Pack the weights of a trained model as the repository keeps large ones: weights.safetensors.xz in the place of weights.safetensors.

    python benchmarks/pack_weights.py accel/trainers/weights/resnet18

The bytes are the same each time (with one version of liblzma); `accel.trainers.shipped` unpacks them. FP16 weights of ResNet-18 become 15 %
smaller in 9 s, and unpacking takes 1 s, once for each user: small models stay as they are.
"""

from __future__ import annotations

import argparse
import lzma
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accel import packed
from accel.checkpoint import read_checkpoint
from accel.errors import AccelError, CorruptArtifact, UsageError
from accel.files import replacing, sha256_bytes

FILTERS: list[dict[str, Any]] = [
    {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 1, "pb": 1, "dict_size": 2**25}
]
"""For FP16: the two bytes of a number are told apart by their place (lp, pb), the byte in front says nothing (lc). The dictionary holds
all of ResNet-18's 22 MB and is what unpacking takes in memory."""


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="a checkpoint folder that `accel train` wrote")
    options = parser.parse_args(words)
    try:
        for folder in options.folders:
            before, after = pack(folder)
            print(f"{folder / packed.PACKED}: {after} bytes, {after / before:.1%} of {before}")
    except AccelError as error:
        print(f"pack_weights: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def pack(folder: Path) -> tuple[int, int]:
    """Replace the plain weights in `folder` by packed ones that were unpacked again and are the same; returns the bytes of both.

    Raises:
        UsageError: there are no plain weights. CorruptArtifact: they are not those of checkpoint.json; nothing is changed then.
    """
    plain, target = folder / packed.WEIGHTS, folder / packed.PACKED
    if not plain.is_file():
        raise UsageError(f"{folder} has no {packed.WEIGHTS} to pack", remedy="name a folder that accel train wrote")
    checkpoint = read_checkpoint(folder)
    weights = plain.read_bytes()
    with replacing(target) as temporary:
        temporary.write_bytes(lzma.compress(weights, format=lzma.FORMAT_XZ, filters=FILTERS))
    if sha256_bytes(lzma.decompress(target.read_bytes())) != checkpoint.sha256:
        raise CorruptArtifact(f"{target} does not unpack to what was packed", remedy=f"remove it; {plain} is as it was")
    plain.unlink()
    return len(weights), target.stat().st_size


if __name__ == "__main__":
    sys.exit(main())
