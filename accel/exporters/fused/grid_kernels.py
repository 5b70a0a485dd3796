"""A grid as a search has it: its tiles and the order of its work; and its machine code, of many at once."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from accel.device import nvrtc
from accel.errors import AccelError
from accel.exporters.fused import generate, pack
from accel.exporters.fused.chains import Part
from accel.exporters.fused.generate import Flow
from accel.exporters.fused.network import Network
from accel.exporters.fused.plan import Plan, Tuning, make
from accel.exporters.fused.tiles import Tile
from accel.exporters.fused.tuning import THREADS
from accel.progress import Progress, silent
from accel.types import Array, Kernel

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Way:
    """A grid: its tiles, by layer, and the order of its work."""

    tiles: tuple[tuple[str, Tile], ...]
    flow: Flow

    @property
    def tuning(self) -> Tuning:
        return {layer: dataclasses.asdict(tile) for layer, tile in self.tiles}

    def to_dict(self) -> dict[str, Any]:
        """All that it takes to generate it again."""
        return {"tiles": self.tuning, "flow": dataclasses.asdict(self.flow)}

    def differs(self, other: Way) -> str:
        """In words, from another of the same network."""
        own, others = dataclasses.asdict(self.flow), dataclasses.asdict(other.flow)
        flow = [f"{name} {value}" for name, value in own.items() if value != others[name]]
        return ", ".join([f"{layer} {tile}" for layer, tile in self.tiles if (layer, tile) not in other.tiles] + flow)

    def with_(self, layer: str, tile: Tile) -> Way:
        return dataclasses.replace(self, tiles=tuple((name, tile if name == layer else own) for name, own in self.tiles))


class Kernels:
    """Grids compiled in threads: NVRTC runs in all of them at once. Weights are packed once for each layer and tile."""

    def __init__(
        self,
        network: Network,
        sms: int,
        input_dtype: str,
        pixels: tuple[Array, Array] | None,
        capability: str,
        progress: Progress = silent,
    ) -> None:
        self._network, self._sms, self._input_dtype = network, sms, input_dtype
        self._pixels, self._capability, self._progress = pixels, capability, progress
        self._packed: dict[tuple[str, Tile | None], dict[str, bytes]] = {}
        self._done: dict[Way, tuple[Plan, Kernel, bytes, int, int]] = {}
        self._lock = threading.Lock()

    def parts(self, ways: Sequence[Way], until: float | None) -> dict[Way, Part]:
        """Those of `ways` that compile without a spill, in time."""
        found: dict[Way, Part] = {}
        with ThreadPoolExecutor(min(os.cpu_count() or 1, THREADS)) as pool:
            futures = {way: pool.submit(self._unspilt, way) for way in dict.fromkeys(ways)}
            try:
                for number, (way, future) in enumerate(futures.items()):
                    self._progress("compile grids", number, len(futures))
                    # What has begun is waited for: it is done within the time of one.
                    if until is not None and time.monotonic() > until and future.cancel():
                        continue
                    try:
                        part = future.result()
                    except AccelError as error:
                        logger.warning("a grid is left out: %s", error.message)
                        continue
                    if part is not None:
                        found[way] = part
            finally:
                pool.shutdown(cancel_futures=True)
        return found

    def part(self, way: Way) -> Part:
        """Raises as `generate` and the compiler; of a way that was compiled before, only its weights are put together again."""
        plan, kernel, cubin, state_bytes, _ = self._compiled(way)
        return Part((kernel,), cubin, 0, self._weights(plan), state_bytes)

    def _unspilt(self, way: Way) -> Part | None:
        return None if self._compiled(way)[-1] else self.part(way)

    def _compiled(self, way: Way) -> tuple[Plan, Kernel, bytes, int, int]:
        """Plan, launch, machine code, bytes of State, bytes that spill."""
        with self._lock:
            found = self._done.get(way)
        if found is None:
            plan = make(self._network, sms=self._sms, input_dtype=self._input_dtype, tuning=way.tuning)
            source, kernel, state_bytes = generate.grid_of(plan, way.flow)
            compiled = nvrtc.compile(source, "grid.cu", self._capability)
            found = plan, kernel, compiled.cubin, state_bytes, compiled.kernels[kernel.name].spills
            with self._lock:
                self._done[way] = found
        return found

    def _weights(self, plan: Plan) -> bytes:
        blob = bytearray(plan.weight_bytes)
        for step in plan.steps:
            key = step.name, step.cut.tile if step.cut else None
            with self._lock:
                if key not in self._packed:
                    self._packed[key] = pack.packed(step, self._pixels)
            for part, data in self._packed[key].items():
                start = plan.weights[step.name, part]
                blob[start : start + len(data)] = data
        return bytes(blob)
