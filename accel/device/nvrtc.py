"""CUDA C++ made into machine code by NVRTC, through cuda-core: no GPU, no driver and no toolkit are needed."""

from __future__ import annotations

import dataclasses
import io
import re
import threading
from collections.abc import Mapping
from typing import Any

from accel.errors import AccelError, RuntimeUnavailable
from accel.optional import require
from accel.types import Resources

EXTRA = "fused"
STANDARD = "c++17"

_IMPORT = threading.Lock()
"""cuda-core puts another module in its place while it is imported: a second thread that imports it meanwhile sees half of it."""

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Machine code for one compute capability.

    Attributes:
        kernels: `extern "C"` name → what it uses.
        log: of the compiler, its warnings too.
    """

    cubin: bytes
    kernels: Mapping[str, Resources]
    log: str


class NotCompiled(AccelError):
    """The compiler refused the source.

    Attributes:
        log: what it said.
    """

    def __init__(self, message: str, log: str) -> None:
        super().__init__(f"{message}\n{log}")
        self.log = log


def version() -> str:
    """NVRTC's version, as `13.2`.

    Raises:
        MissingExtra: cuda-bindings is absent. RuntimeUnavailable: NVRTC's library is.
    """
    return ".".join(map(str, _asked("nvrtcVersion")))


def capabilities() -> tuple[str, ...]:
    """The compute capabilities that this NVRTC compiles for, as `9.0`; raises as `version`."""
    (found,) = _asked("nvrtcGetSupportedArchs")
    return tuple(f"{number // 10}.{number % 10}" for number in found)


def compile(source: str, name: str, capability: str) -> Compiled:
    """Compile `source` for exactly `capability` (`9.0`); `name` is what the compiler calls it in its messages.

    Raises:
        RuntimeUnavailable: this NVRTC does not know the capability, or is absent. MissingExtra: cuda-core is.
        NotCompiled: the source is refused.
    """
    known = capabilities()
    if capability not in known:
        raise RuntimeUnavailable(
            f"NVRTC {version()} compiles for no GPU of compute capability {capability}",
            remedy=f"choose one of {', '.join(known)}, or install a newer nvidia-cuda-nvrtc",
        )
    with _IMPORT:
        core = require("cuda.core", EXTRA)
    said = io.StringIO()
    # From its cache NVRTC answers without the assembler's words, which say what each kernel uses (seen on an H100 with NVRTC 13.0).
    fresh = {"no_cache": True} if "no_cache" in core.ProgramOptions.__dataclass_fields__ else {}
    options = core.ProgramOptions(name=name, arch=f"sm_{capability.replace('.', '')}", std=STANDARD, ptxas_options=["-v"], **fresh)
    try:
        code = core.Program(source, "c++", options).compile("cubin", logs=said).code
    # cuda-core's own class for it is private; what a compiler refuses is told apart from a defect by NVRTC's name in the text.
    except Exception as error:
        if "NVRTC" not in str(error):
            raise
        raise NotCompiled(f"NVRTC {version()} refuses {name} for compute capability {capability}:", _of(error)) from error
    log = said.getvalue()
    return Compiled(bytes(code), used(log), log)


def used(log: str) -> dict[str, Resources]:
    """What `ptxas -v` says of each entry function."""
    found: dict[str, Resources] = {}
    kernel, spills = "", 0
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            kernel, spills = entry[1], 0
        elif spilled := _SPILLS.search(line):
            # Properties are told of called functions too, which the linker of registers counts to their kernel.
            spills += int(spilled[1]) + int(spilled[2])
        elif kernel and (registers := _USED.search(line)):
            shared = _SHARED.search(line)
            found[kernel] = Resources(int(registers[1]), spills, int(shared[1]) if shared else 0)
    return found


def _of(error: Exception) -> str:
    """The compiler's own log out of cuda-core's message, which begins with the code's name."""
    return str(error).partition("compilation log:")[2].strip(" \n\0") or str(error)


def _asked(function: str) -> tuple[Any, ...]:
    nvrtc = require("cuda.bindings.nvrtc", EXTRA)
    try:
        code, *values = getattr(nvrtc, function)()
    except (RuntimeError, OSError) as error:  # cuda-bindings looks for the library at the first call
        raise RuntimeUnavailable(f"NVRTC's library was not found: {error}", remedy=f"pip install 'accel-engines[{EXTRA}]'") from error
    if code:
        raise RuntimeUnavailable(f"NVRTC failed: {getattr(code, 'name', code)}", remedy=f"pip install 'accel-engines[{EXTRA}]'")
    return tuple(values)
