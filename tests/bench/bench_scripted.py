"""A bundle of a linear model and a numpy runtime whose calls take scripted durations on a fake clock: no torch, no waiting."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accel.bench import worker
from accel.bench.clock import FakeClock
from accel.checkpoint import write_checkpoint
from accel.engines import Bundle, Golden, create
from accel.errors import AccelError
from accel.runtimes import RuntimeInfo
from accel.types import Binding, Checkpoint, DeviceArray, EngineSource, TensorSpec

CLASSES, SIZE = 4, 4
WEIGHTS = np.random.default_rng(7).standard_normal((CLASSES, 3 * SIZE * SIZE)).astype(np.float32)
PREPROCESS = {"mean": [0.5] * 3, "std": [0.25] * 3, "height": SIZE, "width": SIZE, "resize": "none", "fill": [0, 0, 0]}


def build() -> Any:
    """The factory that the checkpoint names; the scripted runtime never calls it."""
    raise AssertionError("nothing here needs torch")


class Script:
    """What the scripted runtimes of one test do; `launched` lists the workers by mode and variant. With `load_us` they tell their load."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.load_us = 0
        self.call_us: Iterator[float] = itertools.repeat(100.0)
        self.facts: dict[str, dict[str, Any]] = {}
        self.noise: dict[str, float] = {}
        self.fail: dict[tuple[str, str], BaseException] = {}
        self.launched: list[tuple[str, str, str]] = []
        self.pace({})

    def launch(self, request: dict[str, Any], python: str, folder: Path, progress: Any) -> dict[str, Any]:
        """A Launcher that stays in the process."""
        key = (request["mode"], request["variant"])
        self.launched.append((*key, python))
        if key in self.fail:
            raise self.fail[key]
        if request["mode"] == "measure":
            self._next_run(request["variant"])
        folder.mkdir(parents=True, exist_ok=True)
        reply, arrays = worker.answer(request, progress, self.clock)
        if arrays:
            np.savez(folder / "arrays.npz", **arrays)
        return reply

    def pace(self, runs: Mapping[str, Sequence[Iterable[float]]]) -> None:
        """Give each run of a variant its own call times (µs, again and again); the last are those of every run after."""
        self._runs, self._begun = runs, collections.Counter[str]()

    def _next_run(self, variant: str) -> None:
        if variant in self._runs:
            runs = self._runs[variant]
            self.call_us = itertools.cycle(runs[min(self._begun[variant], len(runs) - 1)])
            self._begun[variant] += 1

    def count(self, mode: str) -> int:
        return sum(launched[0] == mode for launched in self.launched)


script = Script()


def table(distribution: str = "numpy") -> dict[str, RuntimeInfo]:
    """RUNTIMES for a test: `eager` and `other`, both scripted."""
    row = RuntimeInfo("bench_scripted:Scripted", None, ("fp32", "tf32", "fp16"), ("odd",), (distribution,), "train")
    return {"eager": row, "other": row}


class Scripted:
    """logits = W·x, plus `script.noise[variant]` on the first class."""

    def __init__(self, source: EngineSource) -> None:
        self.variant, self.source = str(source.variant), source
        shape = source.inputs[0].fixed(source.batch)
        self.inputs = (TensorSpec("image", shape, "float32", "NCHW"),)
        self.outputs = (TensorSpec("logits", (source.batch, CLASSES), "float32", "NC"),)
        self._output = np.zeros((source.batch, CLASSES), np.float32)
        self.precision = source.variant.precision
        self.closed = False

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"precision": self.precision, "runtime_version": "1.0", **script.facts.get(self.variant, {})}

    def open(self, stream: int | None) -> None:
        if script.load_us:
            script.clock.advance_us(script.load_us)
            self.source.loaded()
        script.clock.advance_us(2_000_000)
        self.home = Binding({"image": DeviceArray.of_numpy(np.zeros(self.inputs[0].shape, np.float32))})

    def prepare(self, inputs: Mapping[str, DeviceArray]) -> Binding:
        return Binding(dict(inputs))

    def enqueue(self, binding: Binding) -> None:
        image = binding.inputs["image"].owner
        np.matmul(image.reshape(len(image), -1), WEIGHTS.T, out=self._output)
        self._output[:, 0] += script.noise.get(self.variant, 0.0)
        script.clock.advance_us(next(script.call_us))

    def output(self, binding: Binding) -> Mapping[str, DeviceArray]:
        return {"logits": DeviceArray.of_numpy(self._output)}

    def close(self) -> None:
        self.closed = True


def make_bundle(folder: Path, dataset: str, labels: tuple[str, ...] = ("a", "b", "c", "d")) -> Bundle:
    """A bundle whose golden samples are 16 images and 2 rows of noise."""
    from accel.preprocess import Preprocess

    image = TensorSpec("image", ("batch", 3, SIZE, SIZE), "float32", "NCHW")
    logits = TensorSpec("logits", ("batch", CLASSES), "float32", "NC")
    checkpoint = Checkpoint(
        folder / "checkpoint", "", "tiny", "bench_scripted:build", CLASSES, image, logits, dataset, preprocess=PREPROCESS, labels=labels
    )
    checkpoint = write_checkpoint(checkpoint, {"fc.weight": WEIGHTS, "bn.running_mean": np.zeros(3, np.float32)})
    images = np.random.default_rng(1).integers(0, 256, (16, SIZE, SIZE, 3), dtype=np.uint8)
    inputs = np.concatenate([Preprocess.from_dict(PREPROCESS)(images), np.random.default_rng(2).standard_normal((2, 3, SIZE, SIZE))])
    inputs = inputs.astype(np.float32)
    golden = Golden(images, {"image": inputs}, {"logits": inputs.reshape(18, -1) @ WEIGHTS.T})
    return create(folder / "tiny.accel", checkpoint, golden)


def write_data(path: Path, count: int = 200) -> str:
    """Labelled images on which the linear model is always right; returns the data's specification."""
    from accel.preprocess import Preprocess

    images = np.random.default_rng(3).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    answers = Preprocess.from_dict(PREPROCESS)(images).reshape(count, -1) @ WEIGHTS.T
    np.savez(path, images=images, labels=answers.argmax(1).astype(np.int64))
    return f"npz:{path}"


def boom(message: str = "it broke") -> AccelError:
    return AccelError(message, remedy="mend it")
