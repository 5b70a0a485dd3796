"""Run an nn.Module on a CPU in IEEE FP32: the answer that everything else is compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from accel.errors import UsageError
from accel.optional import require
from accel.types import Array

MOST_THREADS = 4
"""Threads of a call at batch 1. Torch takes one for each processor that it sees; where those are not all ours (a container with a quota,
a virtual machine, several exports at once) they wait for each other: MobileNetV3-Small's golden samples took 8 s with 32 threads in each
of four processes on two processors, and 0.7 s with one thread each."""

_KNOBS = ("mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")


@contextlib.contextmanager
def ieee_cpu() -> Iterator[None]:
    """Forbid oneDNN to round FP32 inputs to TF32 or BF16 inside the block, whatever the process has set."""
    torch = require("torch", extra="train")
    knobs = [_resolve(torch.backends, name) for name in _KNOBS]
    before = [knob.fp32_precision for knob in knobs]
    for knob in knobs:
        knob.fp32_precision = "ieee"
    try:
        yield
    finally:
        for knob, value in zip(knobs, before, strict=True):
            knob.fp32_precision = value


@contextlib.contextmanager
def few_threads(most: int = MOST_THREADS) -> Iterator[None]:
    """Let torch use at most `most` threads inside the block, fewer where the process has set fewer."""
    torch = require("torch", extra="train")
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, most))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_module(module: Any, inputs: Sequence[Array]) -> list[Array]:
    """Call `module` with numpy inputs, positionally; returns its outputs as float32 arrays in order."""
    torch = require("torch", extra="train")
    with torch.inference_mode():
        answer = module(*(torch.from_numpy(array) for array in inputs))
    return [np.asarray(tensor.float().numpy()) for tensor in as_tensors(answer)]


def as_tensors(answer: Any) -> list[Any]:
    """A module's answer as a list of tensors.

    Raises:
        UsageError: the module returns something else than a tensor or a sequence of tensors.
    """
    torch = require("torch", extra="train")
    answers = list(answer) if isinstance(answer, list | tuple) else [answer]
    for item in answers:
        if not isinstance(item, torch.Tensor):
            raise UsageError(f"the module returns a {type(item).__name__}; accel takes a tensor or a tuple of tensors")
    return answers


def _resolve(root: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        root = getattr(root, name)
    return root
