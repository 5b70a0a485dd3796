"""The machine that a number was measured on. What cannot be read is None, never 0 and never a guess."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from accel.device.version import driver_version
from accel.optional import version_of

_DISTRIBUTIONS = {
    "accel-engines": ("accel-engines",),
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "onnx": ("onnx",),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu13-bindings"),
    "cuda-core": ("cuda-core",),
    "cuda-bindings": ("cuda-bindings",),
    "numpy": ("numpy",),
}


def snapshot(device: str) -> dict[str, Any]:
    """The columns of a row that describe machine and software; GPU columns are None on a CPU."""
    from accel import device as devices

    on_gpu = device != "cpu"
    return {
        "gpu_name": devices.name(device) if on_gpu else None,
        "gpu_uuid": devices.uuid(device) if on_gpu else None,
        "driver": driver_version() if on_gpu else None,
        "cuda": _cuda() if on_gpu else None,
        "cpu_model": cpu_model(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load1": load1(),
        "kernel": platform.release() or None,
        "cpu_affinity": cpu_affinity(),
        "python": platform.python_version(),
        "versions": versions(),
        **_git(),
    }


def versions() -> dict[str, str]:
    """Distribution → version of what is installed here, without importing any of it."""
    found = {name: version_of(*candidates) for name, candidates in _DISTRIBUTIONS.items()}
    return {name: version for name, version in found.items() if version}


def cudnn() -> str | None:
    """The cuDNN that this process uses, as `9.10.2`: torch's where torch is loaded, else the installed wheel's; None without either."""
    torch = sys.modules.get("torch")
    number = torch.backends.cudnn.version() if torch is not None else None
    if number is None:
        return version_of("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
    # 8.9.7 is 8907, 9.10.2 is 91002.
    major, rest = divmod(number, 10_000 if number >= 90_000 else 1_000)
    return f"{major}.{rest // 100}.{rest % 100}"


def cpu_model() -> str | None:
    text = _read("/proc/cpuinfo") or ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or None


def load1() -> float | None:
    """The load average over the last minute; above the number of busy threads of ours, somebody else is at work."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def cpu_affinity() -> str | None:
    """The CPUs that this process may use, as `0-1` or `0,2,5`."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    runs: list[list[int]] = []
    for cpu in sorted(os.sched_getaffinity(0)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def peak_resident_mib() -> float | None:
    """The most memory that this process has held resident, in MiB; None outside Linux.

    Not `getrusage`: its peak goes on from the process that started this one, and a coordinator may be the larger of the two.
    """
    match = re.search(r"^VmHWM:\s*(\d+) kB$", _read("/proc/self/status") or "", re.MULTILINE)
    return int(match.group(1)) / 1024 if match else None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _cuda() -> str:
    from accel.device import driver

    return driver.cuda_version()


def _git() -> dict[str, Any]:
    """The commit of the checkout that accel runs from; None outside one."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return {"git_sha": None, "dirty": None}
    try:
        sha = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=here, capture_output=True, text=True, timeout=30, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return {"git_sha": None, "dirty": None}
    return {"git_sha": sha, "dirty": bool(changed)}
