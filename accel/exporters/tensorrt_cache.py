"""The timing cache: what TensorRT measured of its kernels on this GPU, kept so that the next build need not measure again."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from accel.device.select import describe
from accel.device.version import driver_version
from accel.errors import UsageError
from accel.exporters.options import OFF
from accel.exporters.request import ExportRequest
from accel.files import cache_dir, replacing
from accel.trt import Library

logger = logging.getLogger(__name__)

FILE = "timing.cache"


def path_of(library: Library, request: ExportRequest) -> Path | None:
    """Where the cache is kept; None where none is wanted.

    Without a choice of the user it is one file for each version, GPU, compute capability and driver: timings of others mislead.
    Several builds that are to be compared share nothing: each keeps its own file beside its plan.
    """
    options = request.options
    if options.timing_cache == OFF:
        return None
    if options.builds > 1:
        return request.folder / FILE
    if options.timing_cache is not None:
        path = Path(options.timing_cache).expanduser()
        if path.is_dir():
            raise UsageError(f"the timing cache {path} is a folder", remedy=f"--timing-cache {path / FILE}, or --timing-cache {OFF}")
        return path
    version = ".".join(map(str, library.version))
    gpu = describe(request.device)
    words = (library.flavor.name, version, gpu.name, gpu.compute_capability, driver_version() or gpu.driver_cuda)
    key = "-".join(re.sub(r"[^\w.]+", "_", word) for word in words)
    return cache_dir() / "timing" / f"{key}.cache"


def attach(config: Any, path: Path) -> Any:
    """Give the configuration the cache at `path`, or an empty one; returns it, for `store` after the build."""
    blob = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(blob)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        logger.warning("the timing cache %s is of another TensorRT or GPU, or damaged: starting an empty one", path)
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def store(cache: Any, path: Path) -> None:
    """Write the cache, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(bytes(cache.serialize()))
