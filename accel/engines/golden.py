"""The golden samples that every engine is held against, and the reference logits on the test set."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from accel.engines.manifest import REMEDY
from accel.engines.running import ieee_cpu, one_thread, run_module
from accel.errors import CorruptArtifact, UsageError
from accel.files import replacing
from accel.types import Array, Checkpoint

NOISE_SAMPLES = 8
_IMAGES, _INPUT, _OUTPUT = "images", "input.", "output."
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError)
_BROKEN_ARRAY = (ValueError, KeyError, TypeError, AttributeError, SyntaxError, OverflowError, MemoryError)
_UNREADABLE = (OSError, *_BROKEN_ZIP, *_BROKEN_ARRAY)
"""What numpy and zipfile raise on damaged bytes; a lone .npy in the place of an archive lacks its attributes."""


@dataclasses.dataclass(frozen=True)
class Golden:
    """Inputs and what the FP32 model answered, sample by sample.

    Attributes:
        images: uint8 M×H×W×C, the pictures behind the first M inputs; None for a model that takes no images.
        inputs: public input name → float32 N×…, or uint8 N×H×W×C where the model takes pixels; the last samples are seeded noise.
        outputs: public output name → float32 N×…, computed in IEEE FP32 by eager torch on a CPU at batch 1, or by ONNX Runtime
            for a bundle that was made from an ONNX file; empty where there was nothing to answer with.
    """

    images: Array | None
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]

    @property
    def sha256(self) -> str:
        """Over names, dtypes, shapes and values: equal samples have equal hashes, however the file was packed."""
        return _digest(self._arrays())

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def write(self, path: Path) -> None:
        _write(path, self._arrays())

    @classmethod
    def read(cls, path: Path) -> Golden:
        """Open `path`.

        Raises:
            CorruptArtifact: absent, truncated, or not golden samples.
        """
        arrays = _read(path)
        inputs = {name.removeprefix(_INPUT): array for name, array in arrays.items() if name.startswith(_INPUT)}
        outputs = {name.removeprefix(_OUTPUT): array for name, array in arrays.items() if name.startswith(_OUTPUT)}
        counts = {array.shape[:1] for array in [*inputs.values(), *outputs.values()]}
        if not inputs or len(counts) != 1 or () in counts:
            raise CorruptArtifact(f"{path} holds no golden samples; it has {', '.join(arrays) or 'nothing'}", remedy=REMEDY)
        return cls(arrays.get(_IMAGES), inputs, outputs)

    def _arrays(self) -> dict[str, Array]:
        arrays = {} if self.images is None else {_IMAGES: self.images}
        arrays.update({_INPUT + name: array for name, array in self.inputs.items()})
        arrays.update({_OUTPUT + name: array for name, array in self.outputs.items()})
        return arrays


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the eager FP32 model answers on a whole test set: float32 N×classes, and what it was computed from."""

    logits: Array
    checkpoint_sha256: str
    dataset_sha256: str

    def write(self, path: Path) -> None:
        _write(path, {field.name: np.asarray(getattr(self, field.name)) for field in dataclasses.fields(self)})

    @classmethod
    def read(cls, path: Path) -> Reference:
        """Open `path`; raises CorruptArtifact if it is no reference."""
        arrays = _read(path)
        logits = arrays.get("logits")
        if set(arrays) != {field.name for field in dataclasses.fields(cls)} or logits is None or logits.ndim != 2:
            raise CorruptArtifact(f"{path} holds no reference logits", remedy="delete it and run accel verify again")
        return cls(logits, str(arrays["checkpoint_sha256"]), str(arrays["dataset_sha256"]))


def make(
    checkpoint: Checkpoint,
    module: Any,
    images: Array | None = None,
    preprocess: Callable[[Array], Array] | None = None,
    *,
    noise: int = NOISE_SAMPLES,
    seed: int = 0,
) -> Golden:
    """Build golden samples: `images`, preprocessed, then `noise` inputs, standard normal or random pixels; answered by `module`.

    Args:
        module: the FP32 nn.Module of `checkpoint`, in eval mode, as `build_module` returns it.
        images: uint8 M×H×W×C, stratified train images; None for noise alone.
        preprocess: uint8 M×H×W×C → the public input's dtype and shape; needed with `images`.

    Raises:
        UsageError: an input that is neither float32 nor pixels, or images without preprocessing.
    """
    spec = checkpoint.input
    if spec.dtype != "float32" and not spec.is_pixels:
        raise UsageError(f"golden samples need a float32 input, or pixels; {checkpoint.name} takes {spec.dtype}")
    shape, draw = (noise, *spec.fixed(1)[1:]), np.random.default_rng(seed)
    samples: list[Array] = [
        draw.integers(0, 256, shape, dtype=np.uint8) if spec.is_pixels else draw.standard_normal(shape, dtype=np.float32)
    ]
    if images is not None:
        if preprocess is None:
            raise UsageError(f"images were given for {checkpoint.name}, but no preprocessing to turn them into inputs")
        samples.insert(0, preprocess(images))
    for array in samples:
        if not spec.accepts(array.shape) or array.dtype != spec.dtype:
            raise UsageError(
                f"{checkpoint.name} takes {spec.name} {spec.dtype} {spec.shape}; preprocessing made {array.dtype} {array.shape}"
            )
    inputs = np.ascontiguousarray(np.concatenate(samples))
    with ieee_cpu(), one_thread():
        answers = [run_module(module, [inputs[index : index + 1]])[0] for index in range(len(inputs))]
    return Golden(images, {spec.name: inputs}, {checkpoint.output.name: np.concatenate(answers)})


def _write(path: Path, arrays: Mapping[str, Array]) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def _read(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except _UNREADABLE as error:
        # What is no array at all numpy takes for a pickle, and tells how to load it all the same.
        why = "it is no .npz file" if "pickled (object)" in str(error) else error
        raise CorruptArtifact(f"{path} cannot be read: {why}", remedy=REMEDY) from error
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise CorruptArtifact(f"{path} holds something that is no array", remedy=REMEDY)
    return arrays


def _digest(arrays: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array: Array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
