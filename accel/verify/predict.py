"""Run an engine over a whole dataset, the way a service would: pinned copy, H2D into `home`, enqueue, D2H, an owned copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from accel.errors import UsageError
from accel.progress import Progress, silent
from accel.types import Array, EngineSource, TensorSpec
from accel.verify.data import Prepare
from accel.verify.opened import OpenEngine, open_engine

if TYPE_CHECKING:
    from accel.datasets import Samples


def logits(source: EngineSource, samples: Samples, preprocess: Prepare | None, progress: Progress = silent) -> Array:
    """Open the runtime of `source` and return its first output for every sample, float32, N×C in the samples' order.

    Args:
        preprocess: applied to uint8 samples; float32 samples are taken as they are (already preprocessed, CHW), unless the model takes
            pixels.
        progress: told how many samples are done, in samples.

    Raises:
        UsageError: no samples, uint8 samples without a preprocessing, or shapes that the engine does not take.
    """
    with open_engine(source) as engine:
        return engine_logits(engine, samples, preprocess, progress)


def engine_logits(engine: OpenEngine, samples: Samples, preprocess: Prepare | None, progress: Progress = silent) -> Array:
    """`logits` with an engine that is open already."""
    if len(engine.public_inputs) != 1:
        names = ", ".join(spec.name for spec in engine.public_inputs)
        raise UsageError(f"the model has the inputs {names}; a dataset feeds one", remedy="verify it by parity alone")
    (spec,), total = engine.public_inputs, len(samples)
    if not total:
        raise UsageError(f"{samples.name} holds no samples", remedy="name another dataset with --data")
    parts: list[Array] = []
    done = 0
    for batch in batches(samples, preprocess, engine.batch, spec):
        parts.append(next(iter(engine.infer({spec.name: batch}).values())))
        done += len(batch)
        progress("verify", done, total)
    return np.concatenate(parts)


def batches(samples: Samples, preprocess: Prepare | None, size: int, spec: TensorSpec) -> Iterator[Array]:
    """Batches of `size` for the input `spec`; the last may be shorter. Images are prepared one by one: their sizes may differ.

    Raises:
        UsageError: a sample of another dtype or shape than the model takes.
    """
    for start in range(0, len(samples), size):
        indices = range(start, min(start + size, len(samples)))
        rows = [_fitting(_prepared(samples, index, preprocess, spec.dtype), samples, spec) for index in indices]
        yield rows[0] if len(rows) == 1 else np.concatenate(rows)


def _fitting(row: Array, samples: Samples, spec: TensorSpec) -> Array:
    if spec.accepts(row.shape):
        return row
    wanted, found = ("×".join(map(str, shape[1:])) for shape in (spec.shape, row.shape))
    raise UsageError(
        f"{samples.name} holds samples of {found}, and the model's {spec.name} takes {wanted}", remedy="give samples of the model's size"
    )


def _prepared(samples: Samples, index: int, preprocess: Prepare | None, dtype: str) -> Array:
    sample = np.asarray(samples[index])[None]
    if sample.dtype == np.uint8 and preprocess is not None:
        return preprocess(sample)
    if sample.dtype == dtype == "float32":
        return sample
    if sample.dtype == np.float32:
        raise UsageError(
            f"{samples.name} holds float32 samples, and the model takes {dtype} pixels: it normalises by itself", remedy="give uint8 images"
        )
    remedy = "export the model with a preprocessing" if sample.dtype == np.uint8 else "give uint8 images, or preprocessed float32"
    raise UsageError(f"{samples.name} holds {sample.dtype} samples that the model's preprocessing does not take", remedy=remedy)
