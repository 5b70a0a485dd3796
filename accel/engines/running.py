"""Run an nn.Module on a CPU in IEEE FP32: the answer that everything else is compared with."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from accel.errors import UsageError
from accel.optional import require
from accel.types import Array

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
def one_thread() -> Iterator[None]:
    """Let torch use a single thread inside the block, if the process has loaded it.

    For calls at batch 1: several wait for each other after every layer, and where one of them has lost its processor to another program (a
    container with a quota, a virtual machine, several exports at once) all others spin until it is back. MobileNetV3-Small's golden samples
    took 33 s with two threads beside two busy programs on two processors, and 0.43 s with one thread (alone 0.26 and 0.33 s).
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
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
