"""What an engine says of its own inputs and outputs: names, dtypes, and the shapes at the batch that it is run with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel.errors import AccelError, UsageError
from accel.runtimes.tensorrt_engines import said
from accel.trt import Library
from accel.types import Shape, TensorSpec

_DYNAMIC = -1
Specs = tuple[TensorSpec, ...]


def fix(library: Library, engine: Any, context: Any, batch: int, layouts: Mapping[str, str]) -> tuple[Specs, Specs]:
    """Set every dynamic dimension of the inputs to `batch` on `context`; the inputs and outputs, native and fixed.

    Args:
        layouts: of tensors whose layout the bundle knows.

    Raises:
        UsageError: the batch is outside the engine's profile, or it has a tensor that no caller of ours could fill or read.
        AccelError: TensorRT refused a shape; with its log.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    for name in names:
        _demand_plain(library, engine, name)
    is_input = {name: engine.get_tensor_mode(name) == library.trt.TensorIOMode.INPUT for name in names}
    shapes: dict[str, Shape] = {}
    with library.listening() as heard:
        for name in filter(is_input.__getitem__, names):
            shapes[name] = _fixed(library, engine, name, batch)
            if not context.set_input_shape(name, shapes[name]):
                raise AccelError(f"{library.title} refused the shape {shapes[name]} for the input {name!r}{said(heard)}")
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise AccelError(f"{library.title} cannot tell the outputs' shapes: {error}{said(heard)}") from error
        if missing:
            raise AccelError(f"{library.title} cannot tell the outputs' shapes without {', '.join(missing)}{said(heard)}")
    for name in names:
        if not is_input[name]:
            shapes[name] = tuple(int(size) for size in context.get_tensor_shape(name))
            if _DYNAMIC in shapes[name]:
                raise UsageError(
                    f"the output {name!r} has the shape {shapes[name]}, which depends on the input's values",
                    remedy="export the model with outputs of fixed shapes",
                )
    specs = {
        name: TensorSpec(name, shapes[name], library.dtype_name(engine.get_tensor_dtype(name)), layouts.get(name, "")) for name in names
    }
    return tuple(specs[name] for name in names if is_input[name]), tuple(specs[name] for name in names if not is_input[name])


def _demand_plain(library: Library, engine: Any, name: str) -> None:
    """On the GPU and in rows: what is read as a plain array must be one."""
    place, layout = engine.get_tensor_location(name), engine.get_tensor_format(name)
    if place != library.trt.TensorLocation.DEVICE:
        raise UsageError(f"the tensor {name!r} is a shape in the host's memory", remedy="export the model with shapes that are fixed")
    if layout != library.trt.TensorFormat.LINEAR:
        raise UsageError(f"the tensor {name!r} has the format {layout}", remedy="build the plan with linear inputs and outputs")


def _fixed(library: Library, engine: Any, name: str, batch: int) -> Shape:
    shape = tuple(int(size) for size in engine.get_tensor_shape(name))
    if _DYNAMIC not in shape:
        return shape
    fixed = tuple(batch if size == _DYNAMIC else size for size in shape)
    low, _, high = (tuple(int(size) for size in limit) for limit in engine.get_tensor_profile_shape(name, 0))
    if not all(least <= size <= most for least, size, most in zip(low, fixed, high, strict=True)):
        raise UsageError(
            f"the input {name!r} was built for {low} to {high}; a batch of {batch} makes it {fixed}",
            remedy="choose a batch inside the engine's profile, or export it for another: accel export BUNDLE --to trt --batch N",
        )
    return fixed
