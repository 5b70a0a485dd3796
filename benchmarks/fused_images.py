"""Images in memory of their own, which a fused engine must read there: whether each call answers its own, and what bringing them costs."""

from __future__ import annotations

import functools
import time
from typing import Any

import fused_timing
import numpy as np
from fused_context import Built, Context, fresh, opened

from accel import device
from accel.device import kernels
from accel.runtimes.fused_image import IMAGE
from accel.types import Array, Binding

IMAGES = 8
LAUNCHES = 2000
"""Most of them; each is of another image, downloaded and compared."""
WATCHDOG_S = 3.0
"""A slow host must not look like a call that waits for the GPU."""
READ_WHERE_IT_IS = "read where it is"
"""What the runtime's facts say of the image where its address is set in the graph."""


def images(built: Built, schedule: str, draw: np.random.Generator, launches: int, samples: int, until: float) -> dict[str, Any]:
    """With a graph and without: see `fused_check.py`."""
    found: dict[str, Any] = {}
    wanted = min(launches, LAUNCHES)
    for options in ((), ("-graph",)):
        with opened(built, schedule, 1, *options) as (context,):
            rotated = Rotated(context, draw)
            for name, value in {**rotated.in_turn(draw, wanted, until), **rotated.at_once()}.items():
                found[name] = found.get(name, 0) + value
            if context.runtime.graph is not None:
                # Of the captured nodes: the driver tells none of an instantiated graph's. That the grid ends tells the rest.
                kernels.demand_cooperative(context.runtime.graph.kept, context.scheduled.kernels)
                found |= {"image": context.runtime.facts["settings"]["image"], **rotated.times(samples)}
    right = not found["differing"] and not found["differing_at_once"] and not found["blocked"] and found["image"] == READ_WHERE_IT_IS
    if right and found["launches"] < 2 * wanted:
        return {"ok": None, "reason": f"the time ended after {found['launches']} of {2 * wanted}", **found}
    return {"ok": right, **found}


class Rotated:
    """IMAGES of them in memory of their own, their bindings and the home one, and what the engine answers to each from home."""

    def __init__(self, context: Context, draw: np.random.Generator) -> None:
        self.context = context
        runtime, home = context.runtime, context.runtime.home
        ((name, place),) = home.inputs.items()
        images = [fresh(context.built, draw) for _ in range(IMAGES)]
        self.expected = [self._alone(image) for image in images]
        arrays = [device.to_device(image, place.dtype, context.built.on, context.stream) for image in images]
        self.elsewhere = [runtime.prepare({name: array}) for array in arrays]
        # Home has the last image.
        self.bindings = [*self.elsewhere, home]
        self.expected.append(self.expected[-1])

    def _alone(self, image: Array) -> Array:
        self.context.set(image)
        return self.context.again()

    def in_turn(self, draw: np.random.Generator, launches: int, until: float) -> dict[str, int]:
        done, differing = 0, 0
        while done < launches and time.monotonic() < until:
            index = int(draw.integers(len(self.bindings)))
            differing += not _same(self.context.again(self.bindings[index]), self.expected[index])
            done += 1
        return {"launches": done, "differing": differing}

    def at_once(self) -> dict[str, int]:
        """All of them enqueued behind a gate: addresses are set while the launches before wait."""
        runtime, stream = self.context.runtime, self.context.stream
        (logits,) = runtime.output(runtime.home).values()
        answers = [device.empty(logits.shape, logits.dtype, self.context.built.on) for _ in self.bindings]
        gate = device.Gate(stream, WATCHDOG_S)
        with gate:
            for binding, answer in zip(self.bindings, answers, strict=True):
                runtime.enqueue(binding)
                device.copy(answer, logits.ptr, stream)
        found = [device.to_numpy(answer, stream) for answer in answers]
        runtime.output(runtime.home)
        device.synchronize(stream)
        runtime.check()
        wrong = sum(not _same(one, other) for one, other in zip(found, self.expected, strict=True))
        return {"differing_at_once": wrong, "blocked": int(gate.blocked)}

    def times(self, samples: int) -> dict[str, Any]:
        runtime = self.context.runtime
        graph, home = runtime.graph, runtime.home
        assert graph is not None
        given = [binding.inputs for binding in self.elsewhere]
        copied = [Binding(inputs, graph.calls(home.inputs, inputs)) for inputs in given]
        own = [self._captured(next(iter(inputs.values())).ptr) for inputs in given]
        calls = {
            "home": [lambda: runtime.enqueue(home)],
            "set": [functools.partial(runtime.enqueue, binding) for binding in self.elsewhere],
            "copied": [functools.partial(device.replay, binding) for binding in copied],
            "own": [one.launch for one in own],
        }
        try:
            return fused_timing.ways(runtime, self.context.stream, calls, samples)
        finally:
            for one in own:
                one.close()

    def _captured(self, address: int) -> device.Graph:
        """A graph for this image alone."""
        runtime = self.context.runtime
        launches = [launch.with_argument(IMAGE, address) if launch.kernel.reads_image else launch for launch in runtime.launches]

        def enqueue() -> None:
            for launch in launches:
                launch()

        return device.capture(self.context.built.on, self.context.stream or 0, enqueue)


def _same(one: Array, other: Array) -> bool:
    """Bit for bit: NaN, which poisoned logits have, equals itself here, and so an answer that is NaN must not be the expected one."""
    return bool(np.isfinite(one).all()) and np.array_equal(one.view(np.uint32), other.view(np.uint32))
