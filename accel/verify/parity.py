"""Hold an engine's outputs against the golden ones: the first gate, passed before an engine enters a bundle."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from accel.engines.running import one_thread
from accel.errors import UnknownName, UsageError
from accel.types import Array, EngineSource

if TYPE_CHECKING:
    from accel.engines import Golden

LIMITS: Mapping[str, float] = {"fp32": 1e-4, "tf32": 5e-3, "fp16": 2e-2, "fp16-autocast": 2e-2, "bf16": 8e-2}
"""Precision → largest max|Δ| / max|golden| that passes.

fp32 leaves room for another order of summation through a deep network; tf32 and fp16 keep 10 mantissa bits and bf16 keeps 7, so
bf16 gets eight times the room of tf32 on top of what its narrower products add (a choice, to be recalibrated from data).
"""


def compare(outputs: Mapping[str, Array], golden: Mapping[str, Array], precision: str, rows: Sequence[int] | None = None) -> dict[str, Any]:
    """Compare every golden output with the engine's, all rows at once.

    Per output: max|Δ| / max|golden| must be within LIMITS[precision], and for an N×C output the argmax must agree in every row whose
    golden top-2 margin exceeds twice the absolute limit (a closer call than that is the rounding's to make).

    Args:
        rows: the golden samples that `outputs` are of, None for all. max|golden| is always that of all, so that some of the samples are
            held to the same limit as all of them.

    Returns:
        An EngineEntry's `parity`: `status` (`passed` or `failed`), `reason`, `max_abs_err`, `max_rel_err` (the worst output's; null where
        a value is not finite), `limit`, `argmax_mismatches`.

    Raises:
        UnknownName: `precision` has no limit. UsageError: `golden` is empty.
    """
    if precision not in LIMITS:
        raise UnknownName("precision", precision, tuple(LIMITS))
    if not golden or any(not wanted.size for wanted in golden.values()):
        raise UsageError("parity was asked for without golden outputs", remedy="export the model again, so that golden.npz is written")
    limit = LIMITS[precision]
    reasons: list[str] = []
    max_abs: list[float] = []
    max_rel: list[float] = []
    mismatches = 0
    for name, wanted in golden.items():
        got = outputs.get(name)
        scale = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)) or 1.0
        wanted = wanted if rows is None else wanted[list(rows)]
        problem = _unusable(name, got, wanted)
        if got is None or problem:
            reasons.append(problem)
            continue
        # float64, so that the comparison adds no rounding of its own.
        reference = wanted.astype(np.float64)
        difference = np.abs(got.astype(np.float64) - reference)
        max_abs.append(float(difference.max()))
        max_rel.append(max_abs[-1] / scale)
        if max_rel[-1] > limit:
            reasons.append(f"{name}: max|Δ|/max|golden| is {max_rel[-1]:.3g}, the limit of {precision} is {limit:g}")
        flipped = _argmax_mismatches(got, reference, margin=2 * limit * scale)
        if flipped:
            mismatches += flipped
            reasons.append(f"{name}: {flipped} of {len(wanted)} samples have another argmax although the golden margin is wide")
    compared = len(max_abs) == len(golden)
    return {
        "status": "failed" if reasons else "passed",
        "reason": "; ".join(reasons),
        "max_abs_err": max(max_abs) if compared else None,
        "max_rel_err": max(max_rel) if compared else None,
        "limit": limit,
        "argmax_mismatches": mismatches if compared else None,
    }


def run(source: EngineSource, golden: Golden) -> dict[str, Any]:
    """Open the runtime of `source`, run every golden sample at its batch size, with one thread (`one_thread`), and compare; raises what the
    runtime raises."""
    source = dataclasses.replace(source, threads=1)
    shares = _shares(source, golden.inputs)
    with one_thread():
        outputs = _run_part(source, shares[0]) if len(shares) == 1 else _run_shares(source, shares)
    return compare(outputs, golden.outputs, source.variant.precision)


def _shares(source: EngineSource, inputs: Mapping[str, Array]) -> list[dict[str, Array]]:
    """The samples in one part, or in one a core where FP16 runs on a CPU: its kernels have one thread and take up to a second a call."""
    total = len(next(iter(inputs.values())))
    slow = source.parity_only and source.device == "cpu" and source.variant.precision == "fp16"
    batches = -(-total // source.batch)
    count = max(1, min(os.cpu_count() or 1, batches)) if slow else 1
    # Cut between batches, so that only the last one of all is padded.
    edges = [source.batch * (batches * index // count) for index in range(count)] + [total]
    return [{name: array[start:stop] for name, array in inputs.items()} for start, stop in itertools.pairwise(edges)]


def _run_shares(source: EngineSource, shares: list[dict[str, Array]]) -> dict[str, Array]:
    """Each share through a runtime of its own, on a thread of its own."""
    import concurrent.futures  # here, because a load compares two samples and starts no threads

    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(len(shares)) as pool:
        try:
            parts = list(pool.map(functools.partial(_run_part, source, stop=stop), shares))
        except BaseException:
            stop.set()
            raise
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _run_part(source: EngineSource, inputs: Mapping[str, Array], stop: threading.Event | None = None) -> dict[str, Array]:
    from accel.verify.opened import open_engine, run_batches

    with open_engine(source) as engine:
        return run_batches(engine, inputs, stop)


def _unusable(name: str, got: Array | None, wanted: Array) -> str:
    if got is None:
        return f"{name}: the engine has no such output"
    if got.shape != wanted.shape:
        return f"{name}: the engine's output has shape {got.shape}, the golden one {wanted.shape}"
    for whose, array in (("the engine's", got), ("the golden", wanted)):
        bad = int(array.size - np.count_nonzero(np.isfinite(array)))
        if bad:
            return f"{name}: {bad} of {array.size} values of {whose} output are not finite"
    return ""


def _argmax_mismatches(got: Array, reference: Array, margin: float) -> int:
    """Rows of an N×C output, C ≥ 2, whose argmax differs although the reference's top two are more than `margin` apart."""
    if reference.ndim != 2 or reference.shape[1] < 2:
        return 0
    second, first = np.partition(reference, -2, axis=1)[:, -2:].T
    decided = first - second > margin
    return int(np.count_nonzero(decided & (got.argmax(axis=1) != reference.argmax(axis=1))))
