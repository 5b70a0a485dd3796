"""What the measurements of fused kernels share: a kernel ready to be launched, its time back to back, and the record that is kept."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np

from accel import device
from accel.bench.clock import EventTimer
from accel.device import kernels
from accel.exporters.fused.compiling import compile
from accel.exporters.fused.program import Program
from accel.types import DeviceArray
from benchmarks import records


def ready(program: Program, on: str, stream: int | None) -> tuple[kernels.Launch, list[DeviceArray]]:
    """The first kernel of `program` on an image of noise, and what it reads and writes, in the order of its arguments: image, weights,
    arena, logits, state. Keep them as long as it is launched."""
    capability = ".".join(map(str, kernels.limits(on).capability))
    module = kernels.Module(compile(program, capability)[0], on, "a measured kernel")
    image = np.random.default_rng(0).standard_normal(program.input_shape).astype(np.float16)
    held = [
        device.to_device(image, "float16", on, stream),
        device.to_device(np.frombuffer(program.weights, np.uint8), "uint8", on, stream),
        device.empty((program.arena_bytes,), "uint8", on),
        device.empty(program.output_shape, "float32", on),
        device.to_device(np.zeros(program.state_bytes, np.uint8), "uint8", on, stream),
    ]
    return kernels.Launch(module, program.kernels[0], [one.ptr for one in held], stream or 0, "look at another schedule"), held


def back_to_back_us(launch: kernels.Launch, stream: int | None, count: int) -> float:
    """µs a launch, of `count` behind a gate."""
    timer, gate = EventTimer(stream), device.Gate(stream)
    try:
        with gate:
            timer.start()
            for _ in range(count):
                launch()
            timer.stop()
        device.synchronize(stream)
        return timer.elapsed_ns() / count / 1000
    finally:
        timer.close()


def finite(us: float) -> float | None:
    """None of what answered otherwise than the first."""
    return round(us, 3) if np.isfinite(us) else None


def read(kept: Path) -> dict[str, Any]:
    """What `keep` wrote; a repository has some of it packed (`.xz`)."""
    data = kept.read_bytes()
    found: dict[str, Any] = json.loads(lzma.decompress(data) if kept.suffix == ".xz" else data)
    return found


def keep(record: dict[str, Any], out: Path | None) -> None:
    """Write `record` as JSON, where a file is named."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(records.text(record) + "\n", encoding="utf-8")
