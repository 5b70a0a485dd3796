"""A network as a fused engine that is open on a GPU, for the checks of `fused_check.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from accel import device, runtimes
from accel.device import driver
from accel.engines import fused_plan
from accel.exporters.fused import exporting
from accel.exporters.fused.network import Network
from accel.exporters.request import ExportRequest
from accel.runtimes.fused import Fused
from accel.types import Array, Binding, EngineEntry, EngineSource, TensorSpec, Variant

NAN = 0xFF
"""Of every byte: NaN in FP16 and in FP32."""


class Built:
    """A network exported for one device into a folder of its own."""

    def __init__(self, name: str, network: Network, folder: Path, on: str) -> None:
        self.name, self.network, self.on = name, network, on
        image, classes = network.input, network.layers[-1].output.channels
        self.inputs = (TensorSpec("image", ("batch", image.channels, image.height, image.width), "float32", "NCHW"),)
        self.outputs = (TensorSpec("logits", ("batch", classes), "float32", "NC"),)
        folder.mkdir(parents=True)
        request = ExportRequest(None, self.inputs, self.outputs, "fp16", folder, device=on)
        self.entry: EngineEntry = exporting.export_network(network, request)
        self.file = folder / fused_plan.PLAN_FILE
        self.plan = fused_plan.read(self.file)

    def source(self, schedule: str, *options: str) -> EngineSource:
        variant = Variant("fused", "fp16", (*options, schedule))
        return EngineSource(variant, self.on, self.inputs, self.outputs, 1, entry=self.entry, file=self.file)


def build(name: str, make: Callable[[], Network], folder: Path, on: str) -> Built:
    return Built(name, make(), folder, on)


class Context:
    """One open runtime with a stream of its own."""

    def __init__(self, built: Built, schedule: str, *options: str) -> None:
        self.built = built
        self.stream = device.open_stream(built.on)
        runtime = runtimes.create(built.source(schedule, *options))
        assert isinstance(runtime, Fused)
        self.runtime = runtime
        runtime.open(self.stream)
        self.scheduled = built.plan.schedules[schedule]  # type: ignore[index]
        self.staging = device.Staging(runtime.home, self.stream)

    def poison(self, name: str = "") -> None:
        """Fill the logits, and the arena where it is named, with NaN."""
        (logits,) = self.runtime.output(self.runtime.home).values()
        for buffer in (logits, *([self.runtime.buffers["arena"]] if name == "arena" else [])):
            driver.check(driver.bindings().cuMemsetD8Async(buffer.ptr, NAN, buffer.nbytes, self.stream), "filling with NaN")

    def set(self, image: Array) -> None:
        """Put an image to its place, once."""
        (home,) = self.runtime.home.inputs.values()
        driver.check(driver.bindings().cuMemcpyHtoDAsync(home.ptr, image.ctypes.data, image.nbytes, self.stream), "copying to the GPU")
        device.synchronize(self.stream)

    def again(self, binding: Binding | None = None) -> Array:
        """The logits of one more launch, float32, of the image at home or in `binding`."""
        self.poison()
        self.runtime.enqueue(binding or self.runtime.home)
        (logits,) = self.staging.download(self.runtime.output(self.runtime.home)).values()
        self.runtime.check()
        return logits

    def close(self) -> None:
        self.runtime.close()
        device.close_stream(self.stream)


@contextmanager
def opened(built: Built, schedule: str, count: int = 1, *options: str) -> Iterator[list[Context]]:
    found: list[Context] = []
    try:
        for _ in range(count):
            found.append(Context(built, schedule, *options))
        yield found
    finally:
        for context in found:
            context.close()


def fresh(built: Built, draw: np.random.Generator) -> Array:
    image = built.network.input
    return draw.standard_normal((1, image.channels, image.height, image.width)).astype(np.float16)
