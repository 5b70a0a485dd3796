"""Is this machine ready: what works, proven by doing it, what does not, and what mends it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accel.errors import AccelError, CorruptArtifact, MissingExtra
from accel.optional import require, version_of

OK, WARN, FAIL = "ok", "warn", "fail"

DISTRIBUTION = "accel-engines"
ENOUGH_GB, TOO_LITTLE_GB = 5.0, 0.5
"""Free space: under the first a toolkit install or a result set may not fit, under the second nothing does."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One line: `status` is ok, warn (something optional is not there) or fail; `fix` is empty if nothing is to be mended."""

    name: str
    status: str
    found: str
    fix: str = ""


def examine() -> list[Check]:
    """Carry out every check; none raises for what it finds."""
    return [line for check in CHECKS for line in check()]


def python() -> Iterator[Check]:
    found = f"Python {platform.python_version()} at {sys.executable}"
    if sys.version_info < (3, 11):
        yield Check("python", WARN, found, "the base package and [ort] run on it; [toolkit] needs Python 3.11, 3.12 or 3.13")
    elif sys.version_info >= (3, 14):
        yield Check("python", WARN, found, "TorchScript does not work from Python 3.14 on; use 3.11, 3.12 or 3.13")
    else:
        yield Check("python", OK, found)


def distribution() -> Iterator[Check]:
    owners = set(importlib.metadata.packages_distributions().get("accel", []))
    foreign = sorted(name for name in owners if name.lower().replace("_", "-") != DISTRIBUTION)
    ours = version_of(DISTRIBUTION)
    if foreign:
        found = f"the package {', '.join(foreign)} installs another module called accel"
        yield Check("accel", FAIL, found, f"pip uninstall {' '.join(foreign)}; pip install --force-reinstall {DISTRIBUTION}")
    else:
        yield Check("accel", OK, f"{DISTRIBUTION} {ours}" if ours else f"run from {Path(__file__).parent}, not installed")


def gpu() -> Iterator[Check]:
    from accel import device

    available, reason = device.gpu_available()
    if available:
        yield Check("gpu", OK, f"{device.name('cuda:0')}, driver {_driver()}")
    elif Path("/proc/driver/nvidia/version").exists():
        found = f"an NVIDIA driver is loaded and no GPU can be used: {reason}"
        yield Check("gpu", FAIL, found, "look at nvidia-smi; pip install 'accel-engines[toolkit]'")
    else:
        yield Check("gpu", WARN, f"none: {reason}", "engines run on the CPU; for CUDA use a machine with an NVIDIA GPU and its driver")


def torch() -> Iterator[Check]:
    from accel import device

    try:
        module = require("torch", extra="train")
        require("torchvision", extra="train")
    except MissingExtra as error:
        broken = version_of("torch") is not None and version_of("torchvision") is not None
        yield Check("torch", FAIL if broken else WARN, error.message, error.remedy or "")
        return
    found = f"torch {module.__version__}, CUDA {module.version.cuda}"
    if not device.gpu_available()[0]:
        yield Check("torch", OK, found)
    elif module.cuda.is_available():
        yield Check("torch", OK, f"{found}, sees {module.cuda.get_device_name(0)}")
    else:
        yield Check("torch", FAIL, f"{found} does not see the GPU", "install the build of torch for this driver's CUDA version")


def onnx() -> Iterator[Check]:
    version = version_of("onnx")
    if version is None:
        yield Check("onnx", WARN, "not installed: no ONNX export", "pip install 'accel-engines[onnx]'")
    else:
        yield Check("onnx", OK, f"onnx {version}")


def onnxruntime_packages() -> Iterator[Check]:
    both = [f"{name} {version}" for name in ("onnxruntime", "onnxruntime-gpu") if (version := version_of(name))]
    if len(both) == 2:
        fix = "pip uninstall onnxruntime onnxruntime-gpu; pip install 'accel-engines[ort]'"
        yield Check("onnxruntime packages", FAIL, f"{' and '.join(both)} are installed and overwrite each other", fix)
    elif both:
        yield Check("onnxruntime packages", OK, both[0])


def onnxruntime_providers() -> Iterator[Check]:
    from accel import device

    try:
        ort = require("onnxruntime", extra="ort")
    except MissingExtra as error:
        yield Check("onnxruntime", FAIL if version_of("onnxruntime-gpu", "onnxruntime") else WARN, error.message, error.remedy or "")
        return
    wanted = ["cpu", "cuda:0"] if device.gpu_available()[0] else ["cpu"]
    for place in wanted:
        name = f"onnxruntime on {place}"
        try:
            run_one_node(place)
        except AccelError as error:
            yield Check(name, FAIL, error.message, error.remedy or "")
        else:
            yield Check(name, OK, f"onnxruntime {ort.__version__} ran a one-node model")


def tensorrt() -> Iterator[Check]:
    from accel import trt

    for flavor in trt.FLAVORS.values():
        try:
            found = trt.load(flavor.name)
        except MissingExtra as error:
            broken = version_of(*flavor.distributions) is not None
            yield Check(flavor.name, FAIL if broken else WARN, f"{error.message}: no {flavor.title} engines", error.remedy or "")
        else:
            yield Check(flavor.name, OK, found.title)


def compiler() -> Iterator[Check]:
    names = (os.environ.get("CXX", ""), *({"win32": ("cl",)}.get(sys.platform, ("g++", "clang++", "c++"))))
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if found is None:
        yield Check("compiler", WARN, f"none of {', '.join(filter(None, names))}: torch.compile falls back to eager", "apt-get install g++")
    elif not headers.is_file():
        said = f"{found}, but {headers} is missing: torch.compile may fall back to eager"
        yield Check("compiler", WARN, said, "apt-get install python3-dev")
    else:
        yield Check("compiler", OK, f"{found}, with Python's headers")


def dataset() -> Iterator[Check]:
    from accel import datasets

    try:
        missing = [item for item in datasets.status() if item.name == "cifar10" and not item.present]
    except CorruptArtifact as error:
        yield Check("dataset", FAIL, error.message, error.remedy or "accel data fetch cifar10")
        return
    if missing:
        splits = ", ".join(item.split for item in missing)
        yield Check("dataset", WARN, f"cifar10 ({splits}) is not in {missing[0].path.parent}", "accel data fetch cifar10")
    else:
        yield Check("dataset", OK, "cifar10 is in the cache")


def disk() -> Iterator[Check]:
    from accel.files import cache_dir

    for name, folder in (("disk, cache", cache_dir()), ("disk, here", Path.cwd())):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free / 1e9
        found = f"{free:.1f} GB free at {folder}"
        if not there.is_dir() or not os.access(there, os.W_OK):
            yield Check(name, FAIL, f"{there} cannot be written", "choose another folder: ACCEL_CACHE_DIR, or change to one")
        elif free < ENOUGH_GB:
            yield Check(name, FAIL if free < TOO_LITTLE_GB else WARN, found, "free some space, or set ACCEL_CACHE_DIR to another disk")
        else:
            yield Check(name, OK, found)


CHECKS: tuple[Callable[[], Iterator[Check]], ...] = (
    python,
    distribution,
    gpu,
    torch,
    onnx,
    onnxruntime_packages,
    onnxruntime_providers,
    tensorrt,
    compiler,
    dataset,
    disk,
)


def run_one_node(place: str) -> None:
    """Run `y = x + x` through the runtime that serves engines, on `cpu` or `cuda:N`, and look at the answer.

    Raises:
        AccelError: it did not run there, or answered something else.
    """
    import tempfile

    import numpy as np

    from accel.types import EngineSource, TensorSpec, Variant
    from accel.verify.opened import open_engine

    spec = TensorSpec("x", (1, 4)), TensorSpec("y", (1, 4))
    with tempfile.TemporaryDirectory(prefix="accel-doctor-") as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(one_node_model())
        source = EngineSource(Variant("onnxruntime", "fp32"), place, inputs=spec[:1], outputs=spec[1:], file=file)
        with open_engine(source) as engine:
            answer = engine.infer({"x": np.ones((1, 4), np.float32)})["y"]
    if not (answer == 2.0).all():
        raise AccelError(
            f"onnxruntime on {place} answers {answer.tolist()} to 1 + 1", remedy="pip install --force-reinstall 'accel-engines[ort]'"
        )


def one_node_model() -> bytes:
    """The ONNX file of `y = x + x` for float32 1×4, written field by field, so that the check needs no onnx package."""
    dims = b"".join(_field(1, _field(1, size)) for size in (1, 4))
    float_tensor = _field(1, _field(1, 1) + _field(2, dims))
    node = _field(1, b"x") + _field(1, b"x") + _field(2, b"y") + _field(4, b"Add")
    values = {number: _field(1, name) + _field(2, float_tensor) for number, name in ((11, b"x"), (12, b"y"))}
    graph = _field(1, node) + _field(2, b"one_node") + b"".join(_field(number, value) for number, value in values.items())
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, b"") + _field(2, 17))


def _field(number: int, value: int | bytes) -> bytes:
    """One protobuf field: a varint under 128, or bytes under 16384 long."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    length = bytes([len(value)]) if len(value) < 128 else bytes([len(value) & 0x7F | 0x80, len(value) >> 7])
    return bytes([number << 3 | 2]) + length + value


def _driver() -> str:
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        done: Any = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "of unknown version (no nvidia-smi)"
    return str(done.stdout.strip())
