"""A bundle made from an ONNX file, without torch: its public inputs and outputs, its golden samples, and the file as its first engine."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from accel.engines import Bundle, Golden, entry_name
from accel.engines.golden import NOISE_SAMPLES
from accel.engines.onnx_file import OnnxFile, OnnxTensor
from accel.errors import CorruptArtifact, MissingExtra, UsageError
from accel.exporters import FORMATS
from accel.files import disk_errors, sha256_file
from accel.types import ITEMSIZE, Array, EngineEntry, EngineSource, TensorSpec, Variant
from accel.verify.opened import open_engine, run_batches

logger = logging.getLogger(__name__)

FORMAT = "onnx"
NO_GOLDEN = "no onnxruntime here to make golden outputs"
_LAYOUTS = {4: "NCHW", 2: "NC"}


def public_specs(source: OnnxFile) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The bundle's inputs and outputs: the file's names, floating tensors in float32, the first dimension a dynamic batch.

    Raises:
        UsageError: a tensor of a type or shape that a bundle cannot have.
    """
    natives = [_native(source, tensor) for tensor in (*source.inputs, *source.outputs)]
    public = tuple(
        dataclasses.replace(spec, shape=("batch", *spec.shape[1:]), dtype="float32" if "float" in spec.dtype else spec.dtype)
        for spec in natives
    )
    return public[: len(source.inputs)], public[len(source.inputs) :]


def batch_of(source: OnnxFile) -> int | str:
    """The fixed batch size of the file, or `dynamic`.

    Raises:
        UsageError: its inputs disagree.
    """
    batches = {_native(source, tensor).shape[0] for tensor in source.inputs}
    batch = next(iter(batches))
    if len(batches) > 1:
        raise UsageError(f"the inputs of {source.path.name} have different first dimensions", remedy="put the batch first in each")
    return batch if isinstance(batch, int) else "dynamic"


def adopt(source: OnnxFile, folder: Path) -> EngineEntry:
    """Copy the file, with the weights that lie beside it, into `folder` unchanged, and describe it; the parity is left open."""
    batch = batch_of(source)
    name = entry_name(FORMAT, source.precision, batch)
    main = FORMATS[FORMAT].file
    files = {main: source.path, **{place: _beside(source, place) for place in source.external}}
    for inner, path in files.items():
        target = folder / inner
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return EngineEntry(
        name=name,
        format=FORMAT,
        precision=source.precision,
        files={f"{name}/{inner}": sha256_file(folder / inner) for inner in files},
        inputs=tuple(_native(source, tensor) for tensor in source.inputs),
        outputs=tuple(_native(source, tensor) for tensor in source.outputs),
        toolchain={"exporter": "none: the file as it was given"},
        built_s=0.0,
        opset=source.opset,
        precision_proof={"weights": dict(source.weights)},
    )


def golden_of(source: OnnxFile, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Golden:
    """Seeded noise, answered by ONNX Runtime on the CPU, which computes in FP32; without ONNX Runtime the outputs stay empty."""
    draw = np.random.default_rng(0)
    samples = {spec.name: _noise(draw, spec) for spec in inputs}
    batch = batch_of(source)
    native = [tuple(_native(source, tensor) for tensor in tensors) for tensors in (source.inputs, source.outputs)]
    entry = EngineEntry(entry_name(FORMAT, source.precision, batch), FORMAT, source.precision, {}, native[0], native[1], {}, 0.0)
    engine = EngineSource(
        variant=Variant("onnxruntime", source.precision),
        device="cpu",
        inputs=inputs,
        outputs=outputs,
        batch=batch if isinstance(batch, int) else 1,
        entry=entry,
        file=source.path,
        parity_only=True,
    )
    answers: Mapping[str, Array] = {}
    try:
        with open_engine(engine) as opened:
            answers = run_batches(opened, samples)
    except MissingExtra as error:
        logger.warning("%s: parity cannot be run for engines of this bundle (%s)", NO_GOLDEN, error.message)
    return Golden(None, samples, answers)


def holds(bundle: Bundle, source: OnnxFile) -> bool:
    """Whether `bundle` was made from this file."""
    digest = sha256_file(source.path)
    return not bundle.has_checkpoint and any(
        entry.format == FORMAT and next(iter(entry.files.values())) == digest for entry in bundle.entries
    )


def _native(source: OnnxFile, tensor: OnnxTensor) -> TensorSpec:
    if tensor.dtype not in ITEMSIZE:
        raise UsageError(f"{tensor.name} of {source.path.name} has the type {tensor.dtype or 'none'}", remedy=f"use {', '.join(ITEMSIZE)}")
    if not tensor.shape or any(isinstance(size, str) for size in tensor.shape[1:]):
        found = "no shape" if tensor.shape is None else f"the shape {tensor.shape}"
        raise UsageError(
            f"{tensor.name} of {source.path.name} has {found}; only the first dimension may be open, which is the batch",
            remedy="fix the others: python -m onnxruntime.tools.make_dynamic_shape_fixed, then onnx.shape_inference for the outputs",
        )
    shape = ("batch" if isinstance(tensor.shape[0], str) else tensor.shape[0], *tensor.shape[1:])
    return TensorSpec(tensor.name, shape, tensor.dtype, _LAYOUTS.get(len(shape), "") if "float" in tensor.dtype else "")


def _beside(source: OnnxFile, place: str) -> Path:
    """A file of external weights, which must lie in the ONNX file's folder."""
    parts = PurePosixPath(place)
    if parts.is_absolute() or ".." in parts.parts or "\\" in place:
        raise CorruptArtifact(f"{source.path.name} keeps weights outside its folder: {place}", remedy="export it again, into one file")
    path = source.path.parent / place
    if not path.is_file():
        raise CorruptArtifact(f"{path} is missing; {source.path.name} keeps its weights there", remedy="copy it beside the ONNX file")
    return path


def _noise(draw: np.random.Generator, spec: TensorSpec) -> Array:
    shape = (NOISE_SAMPLES, *spec.fixed(1)[1:])
    if spec.dtype == "float32":
        return draw.standard_normal(shape, dtype=np.float32)
    # 0 and 1 are valid wherever whole numbers are indices, masks or pixels.
    whole: Array = draw.integers(0, 2, shape).astype(spec.dtype)
    return whole
