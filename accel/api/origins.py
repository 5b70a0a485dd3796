"""What is exported: a checkpoint, a bundle that is there, or any ONNX file; each with the bundle that its engines go into."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from accel import engines, trainers
from accel.api import models, onnx_models
from accel.engines import Bundle, Golden, embedding, module, onnx_file, trust
from accel.engines.manifest import MANIFEST_FILE
from accel.engines.onnx_file import OnnxFile
from accel.errors import UsageError
from accel.types import Checkpoint, TensorSpec

ONNX_SUFFIX = ".onnx"


@dataclasses.dataclass(frozen=True)
class Origin:
    """A model that can be exported.

    Attributes:
        typed: how the user named it, for commands in messages.
        name: of the bundle.
        path: of the bundle; it need not exist.
        checkpoint: None for an ONNX file, or a bundle that was made from one: there is no PyTorch model then.
        onnx: the ONNX file that was named, if it lies in no bundle.
        bundle: what the checkpoint was read from, if that is a bundle.
        trusted: the caller vouches for its code.
    """

    typed: str
    name: str
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    checkpoint: Checkpoint | None = None
    onnx: OnnxFile | None = None
    bundle: Bundle | None = None
    trusted: bool = False

    @functools.cached_property
    def module(self) -> Any:
        """The FP32 nn.Module.

        Raises:
            UsageError: there is none. UntrustedArtifact: nobody vouches for the factory of the bundle that it is from.
        """
        if self.checkpoint is None:
            raise UsageError(
                f"{self.typed} has no PyTorch model, only an ONNX file",
                remedy="--to trt builds from that; for other formats name the model",
            )
        if self.bundle is not None:
            trust.demand_module(self.bundle, self.trusted)
        return module.build_module(self.checkpoint)

    def golden(self) -> Golden:
        """Samples for a new bundle."""
        if self.checkpoint is not None:
            return models.golden_of(self.checkpoint, self.module)
        if self.onnx is None:
            raise UsageError(f"{self.typed} is a bundle without a PyTorch model: it cannot be made anew", remedy="leave --force out")
        return onnx_models.golden_of(self.onnx, self.inputs, self.outputs)

    def holds(self, bundle: Bundle) -> bool:
        """Whether `bundle` is this model's."""
        if self.checkpoint is not None:
            return engines.holds(bundle, self.checkpoint)
        if self.onnx is None:
            return bundle.path.resolve() == self.path.resolve()
        return onnx_models.holds(bundle, self.onnx)

    def create(self, golden: Golden, *, replace: bool) -> Bundle:
        """Make the bundle, or open the one that is there; raises as `engines.create`."""
        if self.checkpoint is not None:
            return engines.create(self.path, self.checkpoint, golden, replace=replace)
        if self.onnx is None:
            return Bundle.open(self.path)
        return engines.create_bare(self.path, self.name, self.inputs, self.outputs, golden, replace=replace)


def find(
    model: str,
    scratch: Path,
    engines_dir: Path,
    *,
    weights: Path | None,
    shape: str | None,
    name: str | None,
    moved: bool,
    pixels: bool = False,
    trusted: bool = False,
) -> Origin:
    """What MODEL names.

    Args:
        scratch: an empty folder, where a user's own module is described.
        engines_dir: where a new bundle goes.
        weights, shape, name: as `models.resolve` takes them.
        moved: `--out` or `--name` was typed: a bundle that was named may be exported into another one.
        trusted: the caller vouches for the code of a bundle or a checkpoint.
        pixels: the bundle takes uint8 pictures, its preprocessing a part of the model (`--embed-preprocess`).

    Raises:
        UsageError: pixels of a model that has no preprocessing or no module, or into a bundle that takes something else; a name that a
            bundle cannot have.
        UsageError, UnknownName, BundleMissing, CorruptArtifact: as `models.resolve`; an ONNX file that cannot be a bundle's.
        UntrustedArtifact: a checkpoint folder that names code of its own; a bundle nobody vouches for that does, if it is to be another.
    """
    path = _named(model, engines_dir)
    if path.suffix == ONNX_SUFFIX and path.is_file():
        _refuse_factory_options(model, weights, shape)
        inside = path.resolve().parent.parent
        if not (inside / MANIFEST_FILE).is_file():
            _refuse_pixels(model, pixels)
            source = onnx_file.read(path)
            called = _demand_name(name or path.stem)
            inputs, outputs = onnx_models.public_specs(source)
            return Origin(model, called, engines_dir / f"{called}.accel", inputs, outputs, onnx=source)
        path = inside
    bundle = Bundle.open(path) if (path / MANIFEST_FILE).is_file() else None
    if bundle is not None and not (moved and not _same(path, engines_dir, name)):
        _refuse_factory_options(model, weights, shape)
        checkpoint = bundle.checkpoint if bundle.has_checkpoint else None
        if pixels and not bundle.inputs[0].is_pixels:
            _refuse_pixels(str(path), checkpoint is None)
            raise mixed(path, bundle, "uint8 NHWC")
        return Origin(str(path), bundle.name, path, bundle.inputs, bundle.outputs, checkpoint, None, bundle, trusted)
    found = models.resolve(str(path) if path.exists() else model, scratch, weights=weights, shape=shape, name=name)
    if path.exists() and (bundle is None or trust.vouched_by(bundle) is None):
        trust.demand_checkpoint(found, trusted, trainers.MODELS.values())
    found = embedding.embed(found) if pixels else found
    target = engines_dir / f"{_demand_name(found.name)}.accel"
    return Origin(model, found.name, target, (found.input,), (found.output,), found, None, bundle, trusted)


def _named(model: str, engines_dir: Path) -> Path:
    """The path that `model` is; that of the bundle which every other command knows by this name, where accel ships no such model."""
    path, bundle = Path(model).expanduser(), engines_dir / f"{model}.accel"
    plain = path.name == model and not trainers.is_shipped(model) and not path.exists()
    return bundle if plain and (bundle / MANIFEST_FILE).is_file() else path


def _demand_name(name: str) -> str:
    """`name`, if a folder of the engines folder can be called so and accel.json can hold it."""
    if not name.strip(".") or not name.isprintable() or {"/", "\\"} & set(name):
        raise UsageError(f"{name!r} cannot be a bundle's name", remedy="give --name one without slashes; --out chooses the folder")
    return name


def mixed(path: Path, bundle: Bundle, wanted: str) -> UsageError:
    """Of a bundle that takes another kind of input than its new engine would."""
    (spec,) = bundle.inputs[:1]
    return UsageError(
        f"{path} takes {spec.dtype} {spec.layout}, and an engine that takes {wanted} was asked for; all engines of a bundle take the same",
        remedy="--name makes a bundle of its own for it (as --name NAME_uint8, with --embed-preprocess for uint8 NHWC)",
    )


def _refuse_pixels(model: str, wanted: bool) -> None:
    if wanted:
        raise UsageError(
            f"{model} has no PyTorch model that its preprocessing could be put before", remedy="export the model itself, or a checkpoint"
        )


def _same(path: Path, engines_dir: Path, name: str | None) -> bool:
    """Whether the bundle that would be written is the one that was named."""
    return (engines_dir / (f"{name}.accel" if name else path.name)).resolve() == path.resolve()


def _refuse_factory_options(model: str, weights: Path | None, shape: str | None) -> None:
    if weights is not None or shape is not None:
        raise UsageError(f"{model} has its own weights and input", remedy="--weights and --input go with package.module:factory only")
