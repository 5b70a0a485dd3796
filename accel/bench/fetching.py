"""Get an engine's outputs on all test samples from a worker, or those of several engines from several workers at once."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from accel.bench.candidates import Job
from accel.bench.launch import ARRAYS
from accel.errors import AccelError
from accel.progress import Progress
from accel.types import Array, Variant

Outputs = tuple[Array, dict[str, Any]]
"""float32, one row a sample; and the facts of the runtime that computed them."""


COMPILE_AT_OPEN = ("compile",)
"""Runtimes that generate code when they are opened: on a CPU for a number of threads, so that what is verified with another number
is not what is timed; on a GPU by timing candidates and keeping the choice, which work beside it would spoil."""

ON_ONE_GPU = 8
"""At batch 1 one engine leaves a GPU idle most of the time; beyond a few the host's cores and the GPU's memory are the limit."""


def together(job: Job, wanted: Mapping[Variant, str]) -> dict[Variant, str]:
    """Those of `wanted` that can be verified side by side, if that leaves more than one."""
    threads_are_set = job.device == "cpu" and job.threads is not None
    chosen = {variant: python for variant, python in wanted.items() if threads_are_set or variant.runtime not in COMPILE_AT_OPEN}
    return chosen if min(len(chosen), at_once(job)) > 1 else {}


def at_once(job: Job) -> int:
    cores = (os.cpu_count() or 1) // (job.threads or 1)
    return cores if job.device == "cpu" else min(cores, ON_ONE_GPU)


def outputs_of(job: Job, data: str, variant: Variant, python: str, progress: Progress) -> Outputs:
    """The outputs of one variant on the samples that `data` names; raises what the worker raised."""
    answer = job.launch(job.request("verify", variant, data=data), python, job.folder, progress)
    with np.load(job.folder / ARRAYS, allow_pickle=False) as arrays:
        return arrays["outputs"], answer["facts"]


def fetch_together(
    job: Job, data: str, wanted: Mapping[Variant, str], progress: Progress
) -> Iterator[tuple[Variant, Outputs | AccelError]]:
    """The outputs of several variants, as many at once as the device takes; on a CPU with one thread each if the job leaves it open.

    At batch 1 two engines with a thread each are done sooner than one after the other with two threads each. Never used for timing.
    On a GPU a variant that fails is left out: alone, it may have the memory that it lacked beside the others.

    Args:
        wanted: variant → interpreter.

    Yields:
        Each variant as it finishes, with its outputs or the error that its worker ended with.
    """
    if not wanted:
        return
    cancelled, lock = threading.Event(), threading.Lock()
    shares = dict.fromkeys(wanted, 0.0)

    def fetch(number: int, variant: Variant, python: str) -> Outputs | AccelError:
        def told(step: str, done: float, total: float | None = None) -> None:
            # The launcher ends the worker if the one that it tells fails: that is how an interrupt reaches it.
            if cancelled.is_set():
                raise concurrent.futures.CancelledError
            with lock:
                shares[variant] = done / total if total else 0.0
                progress(f"verify {job.bundle.name}, {len(wanted)} variants", 100 * sum(shares.values()) / len(shares), 100)

        alone = dataclasses.replace(job, threads=job.threads or 1, folder=job.folder / f"verify-{number}")
        try:
            return outputs_of(alone, data, variant, python, told)
        except AccelError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(at_once(job)) as pool:
        try:
            futures = {pool.submit(fetch, number, variant, python): variant for number, (variant, python) in enumerate(wanted.items())}
            for future in concurrent.futures.as_completed(futures):
                outcome = future.result()
                if job.device == "cpu" or not isinstance(outcome, AccelError):
                    yield futures[future], outcome
        except BaseException:
            cancelled.set()
            pool.shutdown(cancel_futures=True)
            raise
