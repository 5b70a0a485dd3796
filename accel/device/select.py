"""Which device a name means, and what it is called."""

from __future__ import annotations

import dataclasses
import platform
import re
from pathlib import Path

from accel.device import driver
from accel.errors import DeviceUnavailable, UsageError


def parse(text: str) -> str:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into `cpu` or `cuda:N`; `auto` takes the first GPU that works, else the CPU.

    Raises:
        UsageError: any other spelling. DeviceUnavailable: a GPU was asked for and there is no such one, with the reason.
    """
    wanted = text.strip().lower()
    if wanted == "cpu":
        return "cpu"
    if wanted == "auto":
        return "cuda:0" if driver.gpu_available()[0] else "cpu"
    match = re.fullmatch(r"cuda(?::(\d+))?", wanted)
    if not match:
        raise UsageError(f"{text!r} is not a device", remedy="use auto, cpu, cuda or cuda:N")
    device = f"cuda:{int(match[1] or 0)}"
    available, reason = driver.gpu_available()
    if not available:
        raise DeviceUnavailable(f"{device} was asked for, but {reason}", remedy="use --device cpu, or run `accel doctor`")
    driver.handle_of(device)
    return device


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Attributes:
    name: the model, as `NVIDIA H200`.
    compute_capability: as `9.0`.
    driver_cuda: the newest CUDA that the driver speaks, as `13.0`.
    """

    name: str
    compute_capability: str
    driver_cuda: str


def describe(device: str) -> Gpu:
    """What an engine may be tied to on `cuda:N`; makes no context.

    Raises:
        DeviceUnavailable: there is no such GPU.
    """
    cuda, handle = driver.bindings(), driver.handle_of(device)
    asked = cuda.CUdevice_attribute
    major, minor = (
        int(driver.check(cuda.cuDeviceGetAttribute(attribute, handle), f"reading the compute capability of {device}"))
        for attribute in (asked.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, asked.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
    )
    return Gpu(name(device), f"{major}.{minor}", driver.cuda_version())


def name(device: str) -> str:
    """The GPU's name, or the CPU's model."""
    if device == "cpu":
        return _cpu_model()
    raw: bytes = driver.check(driver.bindings().cuDeviceGetName(256, driver.handle_of(device)), f"naming {device}")
    return raw.split(b"\0")[0].decode()


def pci_bus_id(device: str) -> str:
    """Where `cuda:N` is plugged in, as `0000:1b:00.0`; makes no context.

    Raises:
        DeviceUnavailable: there is no such GPU.
    """
    raw: bytes = driver.check(driver.bindings().cuDeviceGetPCIBusId(32, driver.handle_of(device)), f"finding {device} on the PCI bus")
    return raw.split(b"\0")[0].decode().lower()


def uuid(device: str) -> str:
    """The GPU's own number, as nvidia-smi prints it: `GPU-xxxxxxxx-xxxx-…`; makes no context.

    Raises:
        DeviceUnavailable: there is no such GPU.
    """
    found = driver.check(driver.bindings().cuDeviceGetUuid(driver.handle_of(device)), f"reading the UUID of {device}")
    raw = bytes(found.bytes).hex()
    return f"GPU-{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:]}"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
