"""A network as a fused engine that is open on a GPU, for the checks of `fused_check.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from accel import device, runtimes
from accel.device import driver
from accel.engines import fused_plan
from accel.engines.fused_plan import Schedule
from accel.exporters.fused import exporting
from accel.exporters.fused.describing import shape_of
from accel.exporters.fused.generate import Flow
from accel.exporters.fused.grid_kernels import Way
from accel.exporters.fused.network import Network
from accel.exporters.fused.plan import make
from accel.exporters.fused.tiles import Tile
from accel.exporters.fused.tuning import Tuned
from accel.exporters.fused.tuning_grid import TunedGrid
from accel.exporters.request import ExportRequest
from accel.runtimes.fused import Fused
from accel.types import Array, Binding, EngineEntry, EngineSource, TensorSpec, Variant

NAN = 0xFF
"""Of every byte: NaN in FP16 and in FP32."""

WayOf = Callable[[Network, int], Way]
"""A network's grid for a GPU of so many multiprocessors."""


class Built:
    """A network exported for one device into a folder of its own."""

    def __init__(self, name: str, network: Network, folder: Path, on: str, way: WayOf | None = None) -> None:
        self.name, self.network, self.on = name, network, on
        image, classes = network.input, network.layers[-1].output.channels
        self.inputs = (TensorSpec("image", ("batch", image.channels, image.height, image.width), "float32", "NCHW"),)
        self.outputs = (TensorSpec("logits", ("batch", classes), "float32", "NC"),)
        folder.mkdir(parents=True)
        request = ExportRequest(None, self.inputs, self.outputs, "fp16", folder, device=on)
        given: dict[Schedule, Tuned | TunedGrid] = {}
        if way is not None:
            sms = exporting.multiprocessors(request, exporting.capabilities(request)[0])
            given["grid"] = AsTold(*[way(network, sms)] * 2, (), (), 0, 0.0, 0.0, 0.0)
        self.entry: EngineEntry = exporting.export_network(network, request, given=given)
        self.file = folder / fused_plan.PLAN_FILE
        self.plan = fused_plan.read(self.file)

    def source(self, schedule: str, *options: str) -> EngineSource:
        variant = Variant("fused", "fp16", (*options, schedule))
        return EngineSource(variant, self.on, self.inputs, self.outputs, 1, entry=self.entry, file=self.file)


class AsTold(TunedGrid):
    """A grid that nobody has searched for."""

    def to_dict(self) -> dict[str, Any]:
        return self.way.to_dict()


def way_of(flow: Mapping[str, Any], killed: Path | None = None, number: int = 0) -> WayOf:
    """A grid by the model's tiles, or the `number`th that ended its process in a plan's record, with fields of Flow in place of its own.

    Layers are known by their shape and their order among those of one shape, as names differ between exporters.
    """

    def found(network: Network, sms: int) -> Way:
        plan = make(network, sms=sms)
        steps = [step for step in plan.steps if step.cut]
        if killed is None:
            tiles = tuple((step.layer_names[-1], step.cut.tile) for step in steps if step.cut)
            return Way(tiles, Flow(**flow))
        of = json.loads(killed.read_text(encoding="utf-8"))["schedules"]["grid"]["plan"]
        one = of["tuned"]["killed"][number]
        waiting: dict[tuple[str, int], list[str]] = {}
        for step in steps:
            if step.cut:
                waiting.setdefault((shape_of(step), step.cut.steps), []).append(step.layer_names[-1])
        named = [(waiting[step["shape"], step["k_steps"]].pop(0), step["layers"][-1]) for step in of["steps"] if step["tile"]]
        return Way(tuple((name, Tile(**one["tiles"][theirs])) for name, theirs in named), Flow(**{**one["flow"], **flow}))

    return found


def build(name: str, make: Callable[[], Network], folder: Path, on: str, way: WayOf | None = None) -> Built:
    return Built(name, make(), folder, on, way)


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
