"""Sources made from a tiny network, for every runtime of the table; no bundle, no data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tiny_net import FILES, FORMATS, INPUTS, OUTPUTS, build_net, export

from accel.types import EngineEntry, EngineSource, Variant


@pytest.fixture(scope="session")
def make_source(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., EngineSource]:
    """make_source("onnxruntime:fp32", device="cpu", batch=1) → an EngineSource; files are exported once a session."""
    folder = tmp_path_factory.mktemp("engines")

    def make(spelling: str, device: str = "cpu", batch: int = 1, **changes: Any) -> EngineSource:
        variant = Variant.parse(spelling)
        format = FORMATS.get(variant.runtime)
        if format is None:
            return EngineSource(variant, device, INPUTS, OUTPUTS, batch, module=build_net, **changes)
        if variant.runtime == "onnxruntime":
            pytest.importorskip("onnxruntime")
        stored = "fp16" if variant.precision == "fp16" else "fp32"
        kind = device.partition(":")[0] if format == "aoti" else "any"
        path = folder / f"{format}-{stored}-{batch}-{kind}" / FILES.get(format, "file")
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            export(format, stored, batch, path, device)
        entry = EngineEntry(path.name, format, stored, {path.name: ""}, INPUTS, OUTPUTS, {}, 0.0)
        return EngineSource(variant, device, INPUTS, OUTPUTS, batch, entry=entry, file=path, **changes)

    return make
