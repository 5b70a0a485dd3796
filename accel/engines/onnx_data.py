"""Hold an ONNX file to being data: it reads no file but its own, runs no code but its operators, and is what its entry says."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from accel.engines import onnx_file
from accel.engines.onnx_file import OnnxFile, OnnxTensor
from accel.errors import CorruptArtifact, UntrustedArtifact
from accel.types import EngineEntry, TensorSpec

CODE = frozenset({"EPContext", "PythonOp", "PythonOpGrad", "PyOp", "ATen"})
"""Operators that carry a compiled engine (ONNX Runtime's providers hand it to TensorRT and others) or name a function to call."""

_REMEDY = "copy the whole folder again from where it came, or export it again"


def check(path: Path, entry: EngineEntry) -> None:
    """Read the file `path` of `entry`, without its weights.

    Raises:
        CorruptArtifact: it is no ONNX model, names a file that is not the entry's, or has other inputs than the entry says.
        UntrustedArtifact: it has an operator that is code in the shape of data.
    """
    found = onnx_file.read(path)
    _demand_own_files(path, found, entry)
    code = sorted(name for name in found.operators if name.rpartition(".")[2] in CODE)
    if code:
        raise UntrustedArtifact(
            f"{path} has the operator {code[0]}, which carries code; an ONNX engine is data", remedy="export it again from the model itself"
        )
    # An initialiser may stand among the inputs, under a name of its own.
    given = {tensor.name: tensor for tensor in found.inputs}
    for spec in entry.inputs:
        if spec.name not in given or not _agree(given[spec.name], spec):
            has = ", ".join(f"{tensor.name} {tensor.dtype} {tensor.shape}" for tensor in found.inputs)
            raise CorruptArtifact(f"{path} has the inputs {has}; accel.json says {spec.name} {spec.dtype} {spec.shape}", remedy=_REMEDY)


def _demand_own_files(path: Path, found: OnnxFile, entry: EngineEntry) -> None:
    """ONNX Runtime opens what a tensor names, relative to the model; the entry's own files are hashed and inside the bundle."""
    folder = PurePosixPath(next(iter(entry.files))).parent
    for place in found.external:
        if f"{folder}/{place}" not in entry.files:
            raise CorruptArtifact(
                f"{path} keeps weights in {place!r}, which is none of the files that accel.json names for {entry.name}", remedy=_REMEDY
            )


def _agree(tensor: OnnxTensor, spec: TensorSpec) -> bool:
    """Whether they say the same, as far as the file says anything; a dynamic size has a name in both, not necessarily one."""
    if tensor.dtype != spec.dtype or tensor.shape is None:
        return tensor.dtype == spec.dtype
    return len(tensor.shape) == len(spec.shape) and all(map(_same_size, tensor.shape, spec.shape))


def _same_size(one: int | str, other: int | str) -> bool:
    return one == other or (isinstance(one, str) and isinstance(other, str))
